"""Triton where it is installed; elsewhere a stand-in, so that kernel modules import and only a launch fails."""

from typing import Any, NoReturn

from fastkernels.errors import EnvironmentProblem

try:
    import triton
    import triton.language as tl

    HAS_TRITON = True
except ModuleNotFoundError:
    HAS_TRITON = False

    class _MissingKernel:
        """What `triton.jit` returns here: any launch says how to install Triton."""

        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> "_MissingKernel":
            return self

        def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
            raise EnvironmentProblem(
                f"The kernel {self.name!r} needs Triton >= 3.6, which is not installed. "
                "Install it: pip install 'fastkernels[cuda]'."
            )

    class _MissingTriton:
        @staticmethod
        def jit(function: Any = None, **options: Any) -> Any:
            if function is None:
                return _MissingTriton.jit
            return _MissingKernel(function.__name__)

        @staticmethod
        def cdiv(x: int, y: int) -> int:
            return -(-x // y)

        @staticmethod
        def next_power_of_2(n: int) -> int:
            return 1 << max(n - 1, 0).bit_length()

    class _MissingLanguage:
        """`tl.constexpr` and other names that are evaluated when a kernel is defined."""

        def __getattr__(self, name: str) -> Any:
            return lambda value=None, *args, **kwargs: value

    triton = _MissingTriton()
    tl = _MissingLanguage()

__all__ = ["HAS_TRITON", "tl", "triton"]
