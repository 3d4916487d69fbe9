"""What is called impossible is."""

from __future__ import annotations

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fastkernels.harness import ceilings
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


def test_the_judge_holds_nothing_on_the_gpu_once_it_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """With tensors of a CPU: none is alive when the cache is emptied, from where the workers could have it."""
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def noted(make: Any) -> Any:
        def call(*given: Any, **options: Any) -> torch.Tensor:
            tensor = make(*given, **options)
            made.append(weakref.ref(tensor))
            return tensor

        return call

    monkeypatch.setattr(torch, "ones", noted(torch.ones))
    monkeypatch.setattr(torch, "empty_like", noted(torch.empty_like))
    monkeypatch.setattr(torch, "randn", noted(lambda *_, device: torch.zeros(4, 4)))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8 << 10, 8 << 10))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=100))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: alive.append(sum(ref() is not None for ref in made)))
    monkeypatch.setattr(ceilings, "_best_cuda", lambda call: (call(), 0.5)[1])
    found = ceilings._measure_cuda("cpu")
    assert alive == [0]
    assert len(made) == 2 + 2 * 3
    assert (found.copy_bytes_per_s, found.flush_bytes) == (2 * 1024 / 0.5, 200)
