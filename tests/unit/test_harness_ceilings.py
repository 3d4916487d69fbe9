"""What is called impossible is."""

from __future__ import annotations

import pytest
import torch

from fastkernels.harness.ceilings import Ceilings

H200 = Ceilings(
    "cuda", 4.2e12, {"bfloat16": 750e12, "float16": 750e12, "float32": 52e12}, flush_bytes=100 << 20, least_us=0.8
)
FLOPS = 2 * 8192**3


def test_float32_product_of_three_on_tensor_cores_is_possible() -> None:
    """Dense peaks of the H200's data sheet in TFLOP/s: 494 of TF32, 989 of bf16."""
    floor = H200.floor_us(0, FLOPS, torch.float32)
    for peak in (494e12, 989e12):
        assert 1e6 * FLOPS / (peak / 3) >= floor
    assert floor > 1e6 * FLOPS / 494e12  # one TF32 product is not float32
    assert H200.ideal_us(0, FLOPS, torch.float32) == pytest.approx(1e6 * FLOPS / 52e12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_bytes_are_held_to_what_was_measured(dtype: torch.dtype) -> None:
    assert H200.floor_us(0, FLOPS, dtype) == pytest.approx(1e6 * FLOPS / 750e12 / 1.5)
    assert H200.floor_us(100 << 20, 0, dtype) == 0.8
    assert H200.floor_us((100 << 20) + 42 * 10**9, 0, dtype) == pytest.approx(1e4 / 1.5)


def test_cpu_holds_each_dtype_to_its_own_instructions() -> None:
    """Of a CPU with matrix instructions for bf16 the float32 rate says nothing of it."""
    measured = Ceilings.measured("cpu")
    assert set(measured.flops_per_s) == {"float32", "bfloat16"}
    fastest = max(measured.flops_per_s.values())
    assert measured.floor_us(0, FLOPS, torch.float16) == pytest.approx(1e6 * FLOPS / fastest / 1.5)
