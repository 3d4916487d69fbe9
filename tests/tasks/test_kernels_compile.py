"""Every Triton kernel, compiled for the GPU that it is written for, which need not be here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastkernels.env import triton_interpreted

pytest.importorskip("triton")
if triton_interpreted():
    pytest.skip("compiles kernels, which TRITON_INTERPRET=1 does not", allow_module_level=True)

from triton import knobs
from triton.compiler.errors import CompilationError

import fastkernels.kernels
from fastkernels.kernels.ahead import H200, Compiled, compiling_for, package_kernels
from fastkernels.kernels.backend import Gpu, gpu_of, is_hopper, num_sms, shared_memory_limit, tl, triton
from fastkernels.kernels.launch import BF16, SPILLS, complaints, without_launch
from fastkernels.kernels.launches import launches


@pytest.fixture(autouse=True)
def cold_cache(tmp_path: Path) -> Iterator[None]:
    with knobs.cache.scope():
        knobs.cache.dir = str(tmp_path)
        yield


@triton.jit
def _center_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):  # noqa: N803
    """Every value is needed again once their sum is known."""
    x = tl.load(x_ptr + tl.arange(0, SIZE))
    tl.store(y_ptr + tl.arange(0, SIZE), x - tl.sum(x, axis=0))


@triton.jit
def _product_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):  # noqa: N803
    """Both sides of the product lie in shared memory."""
    i = tl.arange(0, SIZE)
    places = i[:, None] * SIZE + i[None, :]
    x, y = tl.load(x_ptr + places), tl.load(y_ptr + places)
    tl.store(x_ptr + places, tl.dot(x, y).to(x_ptr.dtype.element_ty))


@triton.jit
def _two_types_kernel(x_ptr, FLAG: tl.constexpr):  # noqa: N803
    """What the interpreter takes and the compiler does not: a name of one type before a branch and another in it."""
    at = tl.arange(0, 16)
    if tl.program_id(0) == 0:
        at = tl.load(x_ptr).to(tl.int64)
    tl.store(x_ptr + at, 0)


@pytest.mark.slow
def test_every_kernel_compiles_and_fits_and_spills_little() -> None:
    compiled: list[Compiled] = []
    for launch in launches():
        if launch.is_tested:
            with torch.inference_mode(), compiling_for() as kernels:
                launch.call(BF16 if BF16 in launch.dtypes else launch.dtypes[0])
            assert kernels, f"{launch.name} of {launch.model} launched nothing."
            compiled += kernels
    assert [complaint for kernel in compiled for complaint in complaints(kernel)] == []
    names = package_kernels(fastkernels.kernels)
    assert without_launch(names, compiled) == [], "Give each a Launch with is_tested in fastkernels/kernels/launches/."
    assert {kernel.kernel for kernel in compiled} == set(names)
    assert set(SPILLS) <= set(names)
    assert max(kernel.shared_bytes for kernel in compiled) > 48 * 1024  # figures are read, not made up
    assert all(kernel.num_registers > 0 and kernel.seconds for kernel in compiled)
    left_out = [kernel for kernel in compiled if kernel.kernel != "spmm._spmm_kernel"]
    assert without_launch(names, left_out) == ["spmm._spmm_kernel"]


def test_names_of_launches_are_unlike() -> None:
    names = [(launch.model, launch.name) for launch in launches()]
    assert len(set(names)) == len(names)


def test_a_kernel_that_overflows_shared_memory_is_reported() -> None:
    x, y = torch.empty(2, 256, 256)
    with compiling_for() as kernels:
        _product_kernel[(1,)](x.half(), y.half(), SIZE=256, num_warps=8)
    (kernel,) = kernels
    assert kernel.shared_bytes > H200.shared_memory_bytes
    assert len(kernel.problems()) == 1
    assert f"{kernel.shared_bytes} bytes of shared memory" in complaints(kernel)[0]
    assert not kernel.problems(H200._replace(shared_memory_bytes=2**20))


def test_a_kernel_that_spills_and_a_grid_that_is_too_large_are_reported() -> None:
    x = torch.empty(16384)
    with compiling_for() as kernels:
        _center_kernel[(7, 70000)](x, x, SIZE=16384, num_warps=1)
        _center_kernel[(9, 1)](x, x, SIZE=16384, num_warps=1)
    (kernel,) = kernels
    assert kernel.grid == (9, 70000, 1)
    assert min(kernel.stack_bytes, kernel.spill_store_bytes, kernel.spill_load_bytes) > 0
    assert ["grid" in kernel.problems()[0], "spilled" in complaints(kernel)[1]] == [True, True]


def test_an_error_of_the_compiler_is_raised_and_leaves_nothing_behind() -> None:
    with pytest.raises(CompilationError, match="redefines"), compiling_for():
        _two_types_kernel[(1,)](torch.empty(1, dtype=torch.int32), FLAG=True)
    assert knobs.compilation.listener is None
    assert gpu_of(torch.device("cpu")) == Gpu((0, 0), 4, H200.shared_memory_bytes)


def test_inside_a_device_is_the_gpu_compiled_for_and_nothing_runs() -> None:
    device, y = torch.device("cpu"), torch.full((64,), 7.0)
    with compiling_for() as kernels:
        assert (num_sms(device), shared_memory_limit(device), is_hopper(device)) == (132, 232448, True)
        _center_kernel[(1,)](torch.ones(64), y, SIZE=64)
        _center_kernel[(1,)](torch.ones(64), y, SIZE=64)
        _center_kernel[(1,)](torch.ones(64, dtype=BF16), y, SIZE=64)
    assert bool((y == 7.0).all())
    assert [kernel.arguments for kernel in kernels] == ["2 *fp32; SIZE=64", "*bf16, *fp32; SIZE=64"]
    assert {kernel.kernel for kernel in kernels} == {"test_kernels_compile._center_kernel"}
    assert not is_hopper(device)
    with compiling_for(Gpu((8, 0), 108, 166912)) as kernels:
        assert not is_hopper(device)
        _center_kernel[(1,)](torch.ones(64), y, SIZE=64)
    assert len(kernels) == 1
