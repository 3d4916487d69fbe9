"""What every kernel module needs: Triton (or a stand-in that says how to install it) and launch-time checks.

Without Triton the modules still import; only a launch raises EnvironmentProblem.
"""

from functools import lru_cache
from typing import Any, NoReturn

import torch
from torch import Tensor

from fastkernels.errors import EnvironmentProblem, UnsupportedError

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
        """Names that are evaluated when a kernel is defined, such as `tl.constexpr`."""

        def __getattr__(self, name: str) -> Any:
            return lambda value=None, *args, **kwargs: value

    triton = _MissingTriton()
    tl = _MissingLanguage()


try:
    from triton.experimental import gluon
    from triton.experimental.gluon import language as gl
    from triton.experimental.gluon.language.nvidia import hopper

    HAS_GLUON = True
except ImportError:
    HAS_GLUON = False
    gluon, gl, hopper = triton, tl, tl

__all__ = [
    "HAS_GLUON",
    "HAS_TRITON",
    "check_dtypes",
    "gl",
    "gluon",
    "hopper",
    "num_sms",
    "shared_memory_limit",
    "tl",
    "triton",
]

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def check_dtypes(kernel: str, **tensors: Tensor | None) -> None:
    """Errors: UnsupportedError when a tensor is not bfloat16, float16 or float32."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in _FLOATS:
            raise UnsupportedError(
                f"{kernel} takes bfloat16, float16 or float32, got {name} of dtype {str(tensor.dtype).split('.')[1]}. "
                "Cast it, or call the op's reference."
            )


@lru_cache
def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 4 where Triton's interpreter stands in for one."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@lru_cache
def shared_memory_limit(device: torch.device) -> int:
    """Bytes of shared memory that one thread block may ask for."""
    if device.type != "cuda":
        return 227 * 1024
    properties = torch.cuda.get_device_properties(device)
    return getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
