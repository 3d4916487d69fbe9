"""What compiled steps on a CPU call in C++: tokens stored in pages, attention of one new token per sequence, and
products of few rows.

A step that torch.export traces sees custom operators; the library that torch.compile's generated code calls for
them is built by `library` when the first step is compiled, by the machine's C++ compiler, and kept. Eager steps
never come here.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastkernels.errors import EnvironmentProblem

C_SHIMS = {
    "store_paged_kv": (
        "AOTITorchError aoti_torch_cpu_store_paged_kv(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle, void* = nullptr)"
    ),
    "decode_paged_kv": (
        "AOTITorchError aoti_torch_cpu_decode_paged_kv(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle, "
        "AtenTensorHandle, AtenTensorHandle, double, AtenTensorHandle*)"
    ),
    "linear_few_rows": (
        "AOTITorchError aoti_torch_cpu_linear_few_rows(AtenTensorHandle, AtenTensorHandle, AtenTensorHandle*, "
        "AtenTensorHandle*)"
    ),
}
"""What the generated code calls, by operator, a result of None being one more argument; paged_cpu.cpp defines them."""


@torch.library.custom_op("fastkernels::store_paged_kv", mutates_args=("key_cache", "value_cache"))
def store_paged_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """StoreKVCache; only within a step that is compiled."""
    raise NotImplementedError("store_paged_kv runs within a compiled step.")


@torch.library.custom_op("fastkernels::decode_paged_kv", mutates_args=())
def decode_paged_kv(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float
) -> Tensor:
    """FlashAttnDecode; only within a step that is compiled."""
    raise NotImplementedError("decode_paged_kv runs within a compiled step.")


@torch.library.custom_op("fastkernels::linear_few_rows", mutates_args=())
def linear_few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """linear(x, weight, bias) in float32, for some tens of rows; only within a step that is compiled."""
    raise NotImplementedError("linear_few_rows runs within a compiled step.")


@linear_few_rows.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty((x.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)


@store_paged_kv.register_fake
def _(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    return None


@decode_paged_kv.register_fake
def _(
    query: Tensor, key_cache: Tensor, value_cache: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float
) -> Tensor:
    return torch.empty(query.shape, dtype=query.dtype, device=query.device)


def is_compiling() -> bool:
    """Whether a step is being traced to be compiled."""
    return torch.compiler.is_exporting()


_SOURCE = Path(__file__).with_suffix(".cpp")
_FLAGS = [
    "-O3",
    "-march=native",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-freciprocal-math",
]
"""Sums in any order, but NaN and infinities as they are."""


@cache
def library() -> ctypes.CDLL:
    """The C++ library, built when this machine has not built it before; its symbols are there for generated code.

    Errors: EnvironmentProblem when there is no C++ compiler or it fails, or no folder to keep the library in.
    """
    try:
        return ctypes.CDLL(str(_built()), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:  # torch's modules ask for the folder too, when they are imported
        raise EnvironmentProblem(
            f"{_SOURCE.name} cannot be built and kept: {error}. Let TORCHINDUCTOR_CACHE_DIR name a folder for it."
        ) from error


def _built() -> Path:
    """Errors: EnvironmentProblem; OSError."""
    root = Path(torch.__file__).parent
    compiler = _compiler()
    command = [compiler, *_FLAGS, f"-I{root / 'include'}", f"-L{root / 'lib'}"]
    key = hashlib.sha256(repr((command, built_for())).encode() + _SOURCE.read_bytes()).hexdigest()[:16]
    path = kept_folder() / f"paged_cpu_{key}.so"
    if path.is_file():
        return path
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = Path(folder) / path.name
        done = subprocess.run([*command, "-o", str(made), str(_SOURCE), "-ltorch_cpu"], capture_output=True, text=True)
        if done.returncode:
            raise EnvironmentProblem(f"{compiler} cannot build {_SOURCE.name}: {done.stderr.strip()[-500:]}")
        os.replace(made, path)
    return path


def kept_folder() -> Path:
    """Where libraries are kept, within torch's own cache. Errors: OSError."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    folder = Path(cache_dir()) / "fastkernels"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def built_for() -> tuple[str, ...]:
    """The compiler, torch and processor that a library is of use with. Errors: EnvironmentProblem."""
    return _compiler(), torch.__version__, _cpu()


def _compiler() -> str:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return str(get_cpp_compiler())
    except InvalidCxxCompiler as error:
        raise EnvironmentProblem("No C++ compiler is here; install g++.") from error


def _cpu() -> str:
    """What -march=native depends on."""
    known = Path("/proc/cpuinfo")
    lines = known.read_text().splitlines() if known.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
