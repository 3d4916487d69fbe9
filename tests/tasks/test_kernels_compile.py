"""Every Triton kernel, compiled for the GPU that it is written for, which need not be here."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
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
from fastkernels.engine.dummy_steps import WARM_DECODES, WARM_LENS
from fastkernels.kernels.ahead import H200, Compiled, compiling_for, package_kernels
from fastkernels.kernels.backend import Gpu, assume_gpu, gpu_of, is_hopper, num_sms, shared_memory_limit, tl, triton
from fastkernels.kernels.flash_attn_decode import DecodeTile, decode_tile, merged_at_once, window_tile
from fastkernels.kernels.flash_attn_varlen import flash_attn_varlen
from fastkernels.kernels.launch import BF16, SPILLS, complaints, floats, ints, meta, without_launch
from fastkernels.kernels.launches import launches
from fastkernels.kernels.moe_align import moe_align
from fastkernels.kernels.moe_grouped_gemm import moe_grouped_gemm
from fastkernels.kernels.topk_softmax import topk_softmax


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


def test_another_number_of_tokens_compiles_no_other_routing() -> None:
    """A server sees every number: what divides 16 must be no kernel of its own."""

    def route(tokens: int) -> None:
        slots = 2 * tokens
        topk_softmax(floats(tokens, 8), 2, True)
        moe_align(ints(tokens, 2), 8, 64, 64 * (slots // 64 + 8))
        blocks = slots // 64 + 8
        order = (ints(64 * blocks), ints(blocks), ints(1))
        moe_grouped_gemm(meta(tokens, 64, dtype=BF16), meta(8, 64, 64, dtype=BF16), None, *order, 2)

    with compiling_for() as compiled:
        route(512)
        known = len(compiled)
        for tokens in (513, 514, 515, 516, 520, 543):
            route(tokens)
    assert known == 4
    assert len(compiled) == known


def test_where_prompts_begin_in_a_step_compiles_no_other_attention() -> None:
    """Lengths and pages behind the single tokens begin at any number: aligned to 16 bytes, or not."""

    def attend(num_decodes: int, width: int) -> None:
        num = num_decodes + 2
        query = meta(num_decodes + 901, 8, 64, dtype=BF16)
        key, value = meta(2, 64, 16, 2, 64, dtype=BF16).unbind(0)
        pages = (key, value, ints(num + 1), ints(num), ints(num, width))
        flash_attn_varlen(query, *pages, 600, 512, 0.125, num_decodes)

    with compiling_for() as compiled:
        attend(8, 32)
        known = len(compiled)
        for num_decodes, width in ((8, 33), (9, 32), (9, 33), (10, 35)):
            attend(num_decodes, width)
    assert {kernel.kernel for kernel in compiled} >= {
        "split_attention.split_kernel",
        "split_attention.merge_kernel",
        "flash_attn_hopper._flash_attn_kernel",
    }
    assert len(compiled) == known


@pytest.mark.parametrize("tile_of", [decode_tile, window_tile])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4, 8, 20])
def test_warming_up_meets_every_way_of_splitting(num_kv_heads: int, tile_of: Callable[..., DecodeTile]) -> None:
    query = meta(1, 128, dtype=BF16)

    def ways(num_seqs: Iterable[int], lengths: Iterable[int]) -> set[tuple[object, ...]]:
        tiles = [tile_of(query, 128, num_kv_heads * n, length) for n, length in itertools.product(num_seqs, lengths)]
        merged = [merged_at_once(tile.num_splits, 16 * 128) if tile.num_splits > 1 else 0 for tile in tiles]
        return {(tile._replace(num_splits=0), parts) for tile, parts in zip(tiles, merged, strict=True)}

    with assume_gpu(H200):
        every = ways(range(1, 513), (1, 16, 33, 64, 65, 100, 200, 256, 300, 512, 700, 1024, 1500, 4096, 100_000))
        assert every <= ways(WARM_DECODES, WARM_LENS)


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
