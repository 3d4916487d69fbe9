"""What every kernel module needs: Triton (or a stand-in that says how to install it) and launch-time checks.

Without Triton the modules still import; only a launch raises EnvironmentProblem.

Programmatic dependent launch: a kernel launched with `**dependent_launch(device)` may start while the kernel before
it still runs. Its programs call `let_dependents_start`, then `wait_for_dependencies`, always both, before any return
and before they read or write what another kernel may touch. The wait ends when the kernel before has completed; that
kernel waited likewise, so every earlier one has completed too: memory handed back to the allocator and anything an
earlier kernel still reads are safe to write after it, and only after it. Ahead of the wait a program computes
addresses and loads, where may_read_ahead(), a module's parameters and, where may_read_earlier_steps(), what was
written before the step: nothing else, for all else may be a result.
A kernel launched without the attribute starts after all of them, as ever.

Within `step_graph` a step of the engine is captured, or runs once so that its kernels are compiled. Its first kernel
is launched without the attribute, behind the copies of the step's inputs, and all later ones start after that one:
whatever no kernel of the step writes can be read before any wait. That is: the step's inputs (token ids, positions,
slots, lengths, page tables) and the keys and values of every position before the step's own, for a page is shared
with another sequence only after the step that fills it was launched. What the step writes, its own positions among
them, is read after the wait, and has not been read before it.
"""
# mypy: allow-untyped-defs

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

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
    "PLAN_POINTERS",
    "ROW_POINTERS",
    "Gpu",
    "assume_gpu",
    "check_dtypes",
    "dependent_launch",
    "gl",
    "gluon",
    "gpu_of",
    "hopper",
    "is_hopper",
    "let_dependents_start",
    "may_read_ahead",
    "may_read_earlier_steps",
    "num_sms",
    "shared_memory_limit",
    "step_counters",
    "step_graph",
    "tl",
    "triton",
    "wait_for_dependencies",
]

PLAN_POINTERS = ("query_start_ptr", "seq_lens_ptr", "table_ptr", "arrivals_ptr", "sinks_ptr")
"""A step's lengths, page table and counters, and what stands in for missing sinks, read a number at a time: no slice of
them is to compile a kernel anew."""

ROW_POINTERS = (
    "temperature_ptr", "top_k_ptr", "top_p_ptr", "min_p_ptr", "repetition_ptr", "frequency_ptr", "presence_ptr",
    "row_ptr", "position_ptr", "seed_ptr", "mask_index_ptr", "id_ptr", "bias_ptr",
)  # fmt: skip
"""What sampling reads of a row, a number at a time: rows of one gathered table, whose places depend on its width."""

_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def check_dtypes(kernel: str, **tensors: Tensor | None) -> None:
    """Errors: UnsupportedError when a tensor is not bfloat16, float16 or float32."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in _FLOATS:
            raise UnsupportedError(
                f"{kernel} takes bfloat16, float16 or float32, got {name} of dtype {str(tensor.dtype).split('.')[1]}. "
                "Cast it, or call the op's reference."
            )


class Gpu(NamedTuple):
    """What kernels and their launches are chosen by.

    capability: NVIDIA's, (0, 0) for what has none; shared_memory_bytes: that one thread block may ask for.
    """

    capability: tuple[int, int]
    num_sms: int
    shared_memory_bytes: int


_NO_GPU = Gpu((0, 0), 4, 227 * 1024)
"""Where Triton's interpreter stands in for a GPU."""


class _Assumed:
    gpu: Gpu | None = None


@contextmanager
def assume_gpu(gpu: Gpu) -> Iterator[None]:
    """Inside, every device is taken for `gpu`: for compiling ahead, nothing can be launched."""
    before, _Assumed.gpu = _Assumed.gpu, gpu
    try:
        yield
    finally:
        _Assumed.gpu = before


def gpu_of(device: torch.device) -> Gpu:
    """The GPU that a tensor's device is."""
    return _Assumed.gpu or _properties(device)


@lru_cache
def _properties(device: torch.device) -> Gpu:
    if device.type != "cuda":
        return _NO_GPU
    properties = torch.cuda.get_device_properties(device)
    capability = (0, 0) if torch.version.hip else torch.cuda.get_device_capability(device)
    shared_memory_bytes = getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block)
    return Gpu(capability, properties.multi_processor_count, shared_memory_bytes)


def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; 4 where Triton's interpreter stands in for one."""
    return gpu_of(device).num_sms


def shared_memory_limit(device: torch.device) -> int:
    """Bytes of shared memory that one thread block may ask for."""
    return gpu_of(device).shared_memory_bytes


def is_hopper(device: torch.device) -> bool:
    """Whether the device is an NVIDIA GPU of compute capability 9 or later."""
    return gpu_of(device).capability >= (9, 0)


def dependent_launch(device: torch.device) -> dict[str, Any]:
    """Launch options of a kernel with a constexpr PDL: programmatic dependent launch where the device has it."""
    return {"PDL": True, "launch_pdl": True} if is_hopper(device) else {"PDL": False}


def may_read_ahead() -> bool:
    """Whether parameters may be read before earlier kernels of the stream end: within inference mode.

    Who writes parameters does so outside of it, or waits for the device before the next step.
    """
    return torch.is_inference_mode_enabled()


class _Step:
    """Of this process, as the forward context: one step is captured at a time."""

    counters: Tensor | None = None


@contextmanager
def step_graph(counters: Tensor) -> Iterator[None]:
    """Inside, kernels may read what earlier steps wrote before they wait: for captures of the engine's steps alone.

    counters: int32 zeros that live as long as the graphs, and that no other stream uses at the same time. A kernel
    finds them zero and leaves them zero.
    """
    if _Step.counters is not None:
        raise RuntimeError("A step is being captured already; steps do not nest.")
    _Step.counters = counters
    try:
        yield
    finally:
        _Step.counters = None


def may_read_earlier_steps() -> bool:
    """Whether what was written before the running step may be read before earlier kernels of the stream end."""
    return _Step.counters is not None


def step_counters(count: int) -> Tensor | None:
    """Zeros for `count` groups of programs that must find out who ends last; None outside of step_graph."""
    counters = _Step.counters
    return counters if counters is not None and counters.numel() >= count else None


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
