"""DenseAttention on a GPU at Pi0's sizes and at others' with a mask, against its definition in float32."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.tasks.baseline.L1.dense_attention import DenseAttention

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
NAN = float("nan")
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Of a number to its nearest, at most."""
PI0, CLIP = (8, 1, 256, 256), (20, 20, 64, 64)
CALLS = {
    "actions": (PI0, 1, 51, 816, "queries"),
    "actions of 4": (PI0, 4, 51, 864, "queries"),
    "actions of 64": (PI0, 64, 51, 304, "queries"),
    "prefix": (PI0, 1, 816, 0, "keys"),
    "prefix of 4": (PI0, 4, 864, 0, "keys"),
    "no mask": (PI0, 3, 51, 333, "none"),
    "text": (CLIP, 2, 77, 0, "causal"),
    "one query": ((8, 2, 128, 128), 2, 1, 1000, "queries"),
    "groups of 3": ((12, 4, 72, 40), 2, 130, 7, "queries"),
    "two sizes": ((8, 2, 32, 64), 2, 400, 0, "none"),
}
"""Heads, batch, queries, past keys, and by what the mask differs."""


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is NaN: an element that no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: empty(*args, **kwargs).fill_(NAN))


def drawn(name: str, dtype: torch.dtype) -> tuple[DenseAttention, list[Any]]:
    """The op and its arguments: views of a fused qkv, and of one layer of a kept past, NaN around them."""
    (heads, kv_heads, size, value_size), batch, num, num_past, kind = CALLS[name]

    def inside(length: int, num_heads: int, of: int) -> Tensor:
        wide = torch.full((batch, 2, length + 1, num_heads, of + 16), NAN, device="cuda", dtype=dtype)
        x = wide[:, 1, :length, :, :of]
        return x.copy_(torch.randn(x.shape, device="cuda"))

    new = [inside(num, heads, size), inside(num, kv_heads, size), inside(num, kv_heads, value_size)]
    past: list[Any] = [inside(num_past, kv_heads, of) for of in (size, value_size)] if num_past else [None] * 2
    mask = None
    if kind == "causal":
        mask = torch.ones(batch, num, num, dtype=torch.bool, device="cuda").tril()
    elif kind != "none":
        mask = torch.rand(batch, 1 if kind == "keys" else num, num_past + num, device="cuda") < 0.8
        mask[:, :, -1] = True
        mask[:, :, 64:192] = False  # whole tiles
        mask = mask.expand(-1, num, -1)
    op = DenseAttention(heads, size, num_kv_heads=kv_heads, value_head_size=value_size)
    return op, [*new, mask, *past]


def in_float32(op: DenseAttention, arguments: list[Any], *, is_absolute: bool = False) -> Tensor:
    query, key, value, mask, past_key, past_value = (
        x.float() if x is not None and x.is_floating_point() else x for x in arguments
    )
    if is_absolute:
        value, past_value = (None if x is None else x.abs() for x in (value, past_value))
    return op.reference(query, key, value, mask, past_key, past_value)


@pytest.mark.parametrize("dtype", list(ROUNDING), ids=str)
@pytest.mark.parametrize("name", list(CALLS))
def test_it_equals_its_definition(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities are rounded before they meet the values, and sums are once."""
    op, arguments = drawn(name, dtype)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    exact, spread = in_float32(op, arguments), in_float32(op, arguments, is_absolute=True)
    with torch.inference_mode():
        got = op(*arguments)
    assert got.is_contiguous()
    bound = 1.02 * ROUNDING[dtype] * (exact.abs() + spread) + 1e-5
    error = (got.float() - exact).abs()
    assert bool((error <= bound).all()), float((error / bound).max())
    assert float(error.square().mean().sqrt() / exact.square().mean().sqrt()) <= 0.8 * ROUNDING[dtype]


@pytest.mark.parametrize("name", ["actions", "prefix", "text"])
def test_a_graph_of_it_follows_its_inputs(name: str) -> None:
    op, arguments = drawn(name, torch.bfloat16)
    with torch.inference_mode():
        op(*arguments)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = op(*arguments)
        for seed in range(3):
            for x in arguments:
                if x is not None and x.is_floating_point():
                    x.copy_(torch.randn(x.shape, device="cuda", generator=torch.Generator("cuda").manual_seed(seed)))
            graph.replay()
            assert torch.equal(out, op(*arguments))


def test_a_query_that_sees_no_key_gets_nan_and_no_other_does() -> None:
    op, arguments = drawn("actions", torch.bfloat16)
    arguments[3][0, 7] = False
    with torch.inference_mode():
        got = op(*arguments)
    assert got.isnan().flatten(2).all(-1).nonzero().tolist() == [[0, 7]]
    assert int(got.isnan().sum()) == got[0, 7].numel()
