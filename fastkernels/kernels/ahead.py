"""Compiling for a GPU that is not here: what a launch would need of it, known before one is paid for.

Triton brings NVIDIA's assembler along, so that all of a compilation runs on any machine; only a launch needs the GPU.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import pkgutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch.overrides import TorchFunctionMode

from fastkernels.env import triton_interpreted
from fastkernels.errors import EnvironmentProblem
from fastkernels.kernels.backend import HAS_TRITON, Gpu, assume_gpu

H200 = Gpu((9, 0), 132, 232448)
"""https://docs.nvidia.com/cuda/hopper-tuning-guide/: 227 KB of shared memory for one block."""

_MAX_GRID = (2**31 - 1, 65535, 65535)


@dataclass(frozen=True)
class Compiled:
    """One kernel, compiled for one set of argument types and constants.

    kernel: module and function, e.g. "rms_norm._rms_norm_kernel"; arguments: their types in order, then constants;
    stack_bytes: local memory of a thread; spill bytes: of it, what is stored and loaded for want of registers;
    shared_bytes: of a block; seconds: of compiling, None where Triton's cache had it; grid: the largest launched.
    """

    kernel: str
    arguments: str
    num_warps: int
    num_stages: int
    num_registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int
    seconds: float | None
    grid: tuple[int, int, int] = (0, 0, 0)

    def problems(self, gpu: Gpu = H200) -> list[str]:
        """Why a launch would fail; empty when it would not."""
        found = []
        if self.shared_bytes > gpu.shared_memory_bytes:
            found.append(f"{self.shared_bytes} bytes of shared memory a block, of {gpu.shared_memory_bytes}")
        if self.num_warps > 32:
            found.append(f"{self.num_warps} warps a block, of 32")
        if any(size > most for size, most in zip(self.grid, _MAX_GRID, strict=True)):
            found.append(f"a grid of {self.grid}, of {_MAX_GRID}")
        return found


@contextmanager
def compiling_for(gpu: Gpu = H200) -> Iterator[list[Compiled]]:
    """Inside, a launch of a Triton or Gluon kernel compiles it for `gpu` and runs nothing.

    Tensors may lie on any device, "meta" among them; outputs keep whatever they held. Wrappers choose their kernels as
    they would on that GPU. Yields what was compiled, each set of types and constants once. Of the whole process: one
    at a time, and no other thread may launch.

    Errors: EnvironmentProblem without Triton or under TRITON_INTERPRET=1; a kernel's own errors of compilation.
    """
    with _absent_driver(gpu) as absent, _knobs() as knobs:
        knobs.compilation.listener = absent.note
        yield absent.compiled


@contextmanager
def naming_for(gpu: Gpu = H200) -> Iterator[set[str]]:
    """As compiling_for, but nothing is compiled: yields the name, types and constants of what would be.

    Of pointers and numbers that are no constants it also says which are multiples of 16, for each such set is compiled
    by itself. Tensors on "meta" have the pointer 0, slices of them too, unless a torch function mode says otherwise.

    Errors: EnvironmentProblem without Triton or under TRITON_INTERPRET=1.
    """
    names: set[str] = set()
    with _absent_driver(gpu) as absent, _knobs() as knobs:

        def note(*, fn: Any, compile: Mapping[str, Any], **_: Any) -> bool:
            absent.functions.append(fn.jit_function)
            warps, stages = compile["num_warps"], compile["num_stages"]
            arguments = _arguments(compile["signature"], compile["constants"])
            aligned = _aligned(compile["signature"], compile["configs"][0])
            options = f"aligned={aligned}, num_warps={warps}, num_stages={stages}"
            names.add(f"{_name(fn.jit_function)}({arguments}, {options})")
            return True  # taken as compiled elsewhere

        knobs.runtime.jit_cache_hook = note
        yield names


Compile = Callable[[], object]
"""Compiles one kernel into Triton's cache, for as long as its tensors' types and the sources stay as they are."""


@contextmanager
def handing_over_for(gpu: Gpu, take: Callable[[str, Compile], None]) -> Iterator[None]:
    """As compiling_for, but each kernel's compilation is handed to `take` with the kernel's name, once.

    Calling it, now or later, here or in a fork of this process, leaves in Triton's cache on disk what a process with
    that GPU then finds there.
    Errors: EnvironmentProblem without Triton or under TRITON_INTERPRET=1.
    """
    with _absent_driver(gpu) as absent, _knobs() as knobs:
        from triton import AsyncCompileMode

        def note(*, fn: Any, **_: Any) -> bool:
            absent.functions.append(fn.jit_function)
            return False  # to be compiled

        knobs.runtime.jit_cache_hook = note
        with AsyncCompileMode(_HandingOver(lambda work: take(_name(absent.functions[-1]), work))):
            yield


class _HandingOver(Executor):
    """What Triton believes to compile for it: it gets a kernel at once that does nothing, and asks for no other."""

    def __init__(self, take: Callable[[Compile], None]) -> None:
        self._take = take

    def submit(self, fn: Compile, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self._take(lambda: _build_launcher(fn()))
        done: Future[Any] = Future()
        done.set_result(_NoKernel())
        return done


def _build_launcher(kernel: Any) -> None:
    """Of a kernel that Triton has compiled: the function in C that passes its arguments on, which the first launch of
    such a list of types would compile otherwise, one after another.

    It is linked with the GPU's driver: without one, where nothing is launched either, nothing is done.
    """
    from triton.backends.nvidia import driver

    try:
        driver.libcuda_dirs()
    except AssertionError:
        return
    driver.CudaLauncher(kernel.src, kernel.metadata)


class _NoKernel:
    """The part of triton.compiler.CompiledKernel that a launch uses."""

    function = packed_metadata = None

    def launch_metadata(self, *arguments: Any) -> None:
        return None

    def run(self, *arguments: Any) -> None:
        return None


_reads_is_cuda = cast(Any, torch.Tensor.is_cuda).__get__


class TensorsOnGpu(TorchFunctionMode):
    """Inside, tensors say that they are on a GPU, those without data among them, and ops launch their kernels."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return True if func == _reads_is_cuda else func(*args, **(kwargs or {}))


@contextmanager
def _absent_driver(gpu: Gpu) -> Iterator[_AbsentDriver]:
    if not HAS_TRITON or triton_interpreted():
        problem = "TRITON_INTERPRET=1 is set" if HAS_TRITON else "Triton is not installed"
        raise EnvironmentProblem(f"Compiling ahead needs Triton's compiler, and {problem}.")
    from triton.runtime import driver

    absent = _AbsentDriver(gpu)
    before = driver._active  # reading `driver.active` would look for a GPU
    driver.set_active(absent)
    try:
        with assume_gpu(gpu):
            yield absent
    finally:
        driver.set_active(before)
        for function in absent.functions:
            function.device_caches.pop(absent.device, None)


@contextmanager
def _knobs() -> Iterator[Any]:
    """Triton's; what is set of these two is put back."""
    from triton import knobs

    listener, hook = knobs.compilation.listener, knobs.runtime.jit_cache_hook
    try:
        yield knobs
    finally:
        knobs.compilation.listener, knobs.runtime.jit_cache_hook = listener, hook


def package_kernels(package: ModuleType) -> dict[str, Any]:
    """Every kernel of a package's modules that is launched, by "module.function", without those that kernels call."""
    from triton.runtime.jit import JITFunction

    functions: dict[str, JITFunction[Any]] = {}
    for info in pkgutil.iter_modules(package.__path__):
        module = importlib.import_module(f"{package.__name__}.{info.name}")
        for value in vars(module).values():
            if isinstance(value, JITFunction) and value.__module__ == module.__name__:
                functions[_name(value)] = value
    called: set[str] = set()
    for function in functions.values():
        names = {node.id for node in ast.walk(function.parse()) if isinstance(node, ast.Name)}
        used = (function.__globals__.get(name) for name in names)
        called |= {_name(value) for value in used if isinstance(value, JITFunction) and value is not function}
    return {name: function for name, function in functions.items() if name not in called}


class _AbsentDriver:
    """What Triton asks of a GPU's driver between a launch and its kernel's start."""

    _numbers = itertools.count()

    def __init__(self, gpu: Gpu) -> None:
        from triton.backends.compiler import GPUTarget

        self.gpu = gpu
        self.target = GPUTarget("cuda", 10 * gpu.capability[0] + gpu.capability[1], 32)
        # Triton keeps kernels by device: those of another time, or of a GPU that is here, must not be found.
        self.device = f"absent {next(self._numbers)}"
        self.utils = self
        self.compiled: list[Compiled] = []
        self.functions: list[Any] = []
        self._places: dict[str, int] = {}

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> str:
        return self.device

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_device_properties(self, device: str) -> dict[str, int]:
        """More shared memory than there is: what does not fit is reported, and does not end the run."""
        return {"max_shared_mem": 2**31 - 1, "multiprocessor_count": self.gpu.num_sms}

    def load_binary(self, *arguments: Any) -> tuple[None, None, int, int, int]:
        """(module, function, registers, spills, most threads) of a kernel."""
        return None, None, 0, 0, 1024

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        place = self._places[metadata.hash]

        def launch(grid_0: int, grid_1: int, grid_2: int, *arguments: Any) -> None:
            known = self.compiled[place]
            x, y, z = (max(pair) for pair in zip(known.grid, (grid_0, grid_1, grid_2), strict=True))
            self.compiled[place] = replace(known, grid=(x, y, z))

        return launch

    def note(
        self, *, src: Any, metadata: Mapping[str, Any], metadata_group: Mapping[str, str], times: Any, cache_hit: bool
    ) -> None:
        files = {Path(path).suffix: Path(path) for path in metadata_group.values()}
        registers, stack = _usage(files[".cubin"])
        stores, loads = _spills(files[".ptx"], metadata) if stack else (0, 0)
        self._places[metadata["hash"]] = len(self.compiled)
        self.functions.append(src.fn)
        self.compiled.append(
            Compiled(
                _name(src.fn),
                _arguments(src.signature, src.constants),
                metadata["num_warps"],
                metadata["num_stages"],
                registers,
                stack,
                stores,
                loads,
                metadata["shared"],
                None if cache_hit else times.total / 1e6,
            )
        )


def _name(function: Any) -> str:
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def _arguments(signature: Mapping[str, Any], values: Mapping[tuple[int, ...], Any]) -> str:
    """Such as "2 *bf16, i32, fp32; BLOCK=4096, PDL=True"."""
    types = [str(kind) for kind in signature.values() if kind != "constexpr"]
    runs = [(kind, len(list(group))) for kind, group in itertools.groupby(types)]
    names = list(signature)
    constants = [f"{names[place[0]]}={value}" for place, value in values.items() if len(place) == 1]
    return ", ".join(kind if n == 1 else f"{n} {kind}" for kind, n in runs) + "; " + ", ".join(constants)


def _aligned(signature: Mapping[str, Any], attributes: Mapping[tuple[int, ...], Any]) -> str:
    """Pointers and numbers that the compiler may take as multiples of 16, by name."""
    names = list(signature)
    found = (names[place[0]] for place, said in attributes.items() if ["tt.divisibility", 16] in said)
    return "+".join(found) or "none"


def _usage(cubin: Path) -> tuple[int, int]:
    """(registers of a thread, bytes of its stack)."""
    from triton import knobs

    words = _output([knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]).split()
    found = dict(word.split(":", 1) for word in words if ":" in word)
    return int(found["REG"]), int(found["STACK"])


def _spills(ptx: Path, metadata: Mapping[str, Any]) -> tuple[int, int]:
    """Bytes (stored, loaded): the assembler says so as it works, and its result does not."""
    from triton import knobs

    target = metadata["target"].arch
    command = [knobs.nvidia.ptxas.path, "-v", "-lineinfo", f"--gpu-name=sm_{target}{'a' if target >= 90 else ''}"]
    command += [] if metadata["enable_fp_fusion"] else ["--fmad=false"]
    command += (metadata["ptx_options"] or "").split()
    with tempfile.TemporaryDirectory() as folder:
        text = _output([*command, str(ptx), "-o", f"{folder}/cubin"])
    words = [line.split(", ") for line in text.splitlines() if "bytes spill stores" in line]
    stores, loads = (sum(int(line[place].split()[0]) for line in words) for place in (1, 2))
    return stores, loads


def _output(command: list[str]) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout
