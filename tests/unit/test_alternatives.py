"""The shipped implementation sets compute what the definitions say."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.errors import EnvironmentProblem
from fastkernels.loading import load_class
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

PAGE_SIZE = 4


def build(set_name: str, op: str, **init: Any) -> tuple[Any, Callable[..., Any]]:
    """The set's op, and its definition over the same parameters."""
    entry = ops()[op]
    baseline = getattr(importlib.import_module(entry.module), entry.class_name)
    torch.manual_seed(0)
    built = load_class(entry, resolve_set(set_name))(**init)
    twin = baseline(**init)
    twin.load_state_dict(built.state_dict())
    return built, twin.reference


def assert_same(given: Any, expected: Any) -> None:
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)


def pages(seq_lens: list[int], num_kv_heads: int, head_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two caches, lengths and a block table; what no sequence owns is NaN, entries behind a sequence's end are -1."""
    torch.manual_seed(1)
    counts = [-(-n // PAGE_SIZE) for n in seq_lens]
    caches = torch.full((2, sum(counts) + 1, PAGE_SIZE, num_kv_heads, head_size), float("nan"))
    table = torch.full((len(seq_lens), max(counts) + 1), -1, dtype=torch.int32)
    free = iter(torch.randperm(sum(counts)).tolist())
    for i, seq_len in enumerate(seq_lens):
        for j in range(counts[i]):
            table[i, j] = page = next(free)
            filled = min(PAGE_SIZE, seq_len - j * PAGE_SIZE)
            caches[:, page, :filled] = torch.randn(2, filled, num_kv_heads, head_size)
    return caches[0], caches[1], torch.tensor(seq_lens, dtype=torch.int32), table


@pytest.mark.parametrize("set_name", ["reference", "torch_compile", "torch_native", "liger"])
def test_every_op_a_set_offers_has_the_baselines_signatures(set_name: str) -> None:
    found = resolve_set(set_name)
    classes = {entry.name: load_class(entry, found) for entry in found.ops()}
    assert {ops()[name].class_name for name in classes} == {cls.__name__ for cls in classes.values()}


@pytest.mark.parametrize("set_name", ["reference", "torch_native", "torch_compile"])
@pytest.mark.parametrize("has_residual", [False, True])
def test_rms_norm_of_a_set_is_the_definition(set_name: str, has_residual: bool) -> None:
    norm, definition = build(set_name, "rms_norm", hidden_size=33, eps=1e-5)
    for num_tokens in (5, 7):
        inputs = [torch.randn(num_tokens, 33) for _ in range(1 + has_residual)]
        assert_same(norm(*inputs), definition(*inputs))


@pytest.mark.parametrize("set_name", ["reference", "torch_native", "torch_compile"])
def test_silu_and_mul_of_a_set_is_the_definition(set_name: str) -> None:
    silu, definition = build(set_name, "silu_and_mul")
    x = torch.randn(3, 2, 34)
    assert_same(silu(x), definition(x))


@pytest.mark.parametrize("set_name", ["reference", "torch_compile"])
def test_a_composite_of_a_set_runs_over_its_parts_definitions(set_name: str) -> None:
    entry = ops()["llama_mlp"]
    example = getattr(importlib.import_module(entry.module), entry.class_name).spec.examples[0]
    mlp, definition = build(set_name, "llama_mlp", **example)
    x = torch.randn(5, example["hidden_size"])
    assert_same(mlp(x), definition(x))


@pytest.mark.parametrize("heads", [(4, 2), (3, 3), (5, 1)])
@pytest.mark.parametrize("starts", [[0, 5], [0, 1, 1, 9, 12]])
@pytest.mark.parametrize("is_causal", [True, False])
def test_prefill_of_torch_native_is_the_definition(heads: tuple[int, int], starts: list[int], is_causal: bool) -> None:
    sizes = {"num_heads": heads[0], "head_size": 16, "scale": 0.3, "num_kv_heads": heads[1]}
    attention, definition = build("torch_native", "flash_attn_prefill", **sizes, is_causal=is_causal)
    q, k, v = (torch.randn(starts[-1], n, 16) for n in (heads[0], heads[1], heads[1]))
    inputs = (q, k, v, torch.tensor(starts, dtype=torch.int32), 8)
    assert_same(attention(*inputs), definition(*inputs))


@pytest.mark.parametrize("seq_lens", [[1], [3, 4, 5], [9, 0, 2]])
def test_decode_of_torch_native_is_the_definition_and_reads_nothing_behind_an_end(seq_lens: list[int]) -> None:
    attention, definition = build(
        "torch_native", "flash_attn_decode", num_heads=4, head_size=16, scale=0.25, num_kv_heads=2
    )
    keys, values, lengths, table = pages(seq_lens, 2, 16)
    inputs = (torch.randn(len(seq_lens), 4, 16), keys, values, lengths, table, max(seq_lens))
    assert not attention(*inputs).isnan().any()
    assert_same(attention(*inputs), definition(*inputs))


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("has_sinks", [False, True])
def test_mixed_attention_of_torch_native_is_the_definition(window: int | None, has_sinks: bool) -> None:
    sizes = {"num_heads": 4, "head_size": 16, "scale": 0.25, "num_kv_heads": 2}
    attention, definition = build("torch_native", "flash_attn_varlen", **sizes, window=window, has_sinks=has_sinks)
    for op in (attention, definition.__self__) if has_sinks else ():
        op.sinks.data = torch.tensor([0.0, 1.0, -2.0, 3.0])
    keys, values, lengths, table = pages([9, 6, 4, 1], 2, 16)
    starts = torch.tensor([0, 1, 4, 8, 9], dtype=torch.int32)  # a decode, a chunk, a prefill, a first token
    inputs = (torch.randn(9, 4, 16), keys, values, starts, lengths, table, 4, 9)
    assert_same(attention(*inputs), definition(*inputs))


def test_liger_without_a_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentProblem, match="needs an NVIDIA GPU"):
        build("liger", "silu_and_mul")


def test_liger_without_its_library_gives_the_pip_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "liger_kernel", None)
    with pytest.raises(EnvironmentProblem, match=r"pip install 'liger-kernel>=0\.8'"):
        build("liger", "rms_norm", hidden_size=8)
