"""What every kernel module needs: Triton (or a stand-in that says how to install it) and launch-time checks.

Without Triton the modules still import; only a launch raises EnvironmentProblem.

Programmatic dependent launch: a kernel launched with `**dependent_launch(device)` may start while the kernel before
it still runs. Its programs call `let_dependents_start`, then `wait_for_dependencies`, always both, before any return
and before they read or write what another kernel may touch. The wait ends when the kernel before has completed; that
kernel waited likewise, so every earlier one has completed too: memory handed back to the allocator and anything an
earlier kernel still reads are safe to write after it, and only after it. Ahead of the wait a program computes
addresses and, where may_read_ahead(), loads a module's parameters: nothing else, for all else may be a result.
A kernel launched without the attribute starts after all of them, as ever.
"""
# mypy: allow-untyped-defs

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
    "dependent_launch",
    "gl",
    "gluon",
    "hopper",
    "is_hopper",
    "let_dependents_start",
    "may_read_ahead",
    "num_sms",
    "shared_memory_limit",
    "tl",
    "triton",
    "wait_for_dependencies",
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


@lru_cache
def is_hopper(device: torch.device) -> bool:
    """Whether the device is an NVIDIA GPU of compute capability 9 or later."""
    return device.type == "cuda" and torch.version.hip is None and torch.cuda.get_device_capability(device)[0] >= 9


def dependent_launch(device: torch.device) -> dict[str, Any]:
    """Launch options of a kernel with a constexpr PDL: programmatic dependent launch where the device has it."""
    return {"PDL": True, "launch_pdl": True} if is_hopper(device) else {"PDL": False}


def may_read_ahead() -> bool:
    """Whether parameters may be read before earlier kernels of the stream end: within inference mode.

    Who writes parameters does so outside of it, or waits for the device before the next step.
    """
    return torch.is_inference_mode_enabled()


@triton.jit
def let_dependents_start(PDL: tl.constexpr):  # noqa: N803
    """The next kernel may start once every program has called this; its wait still is for this one's end."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_dependencies(PDL: tl.constexpr):  # noqa: N803
    """Returns when all kernels before have completed and what they wrote can be read."""
    if PDL:
        tl.extra.cuda.gdc_wait()
