"""Bytes that an op's cost counts: of tables those of the rows that are named, each once. More would be a false floor
under its times, and a candidate that is as fast as the memory allows would be called impossible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.context import set_forward_context
from fastkernels.harness.expect import baseline_class
from fastkernels.op import Op
from fastkernels.registry import ops

CLIP = {"vocab_size": 100, "embed_dim": 16, "max_position_embeddings": 9}


def build(name: str, **init: Any) -> Op:
    return baseline_class(ops()[name])(**init)


def num_bytes(name: str, inputs: dict[str, Any], outputs: dict[str, Tensor], **init: Any) -> int:
    with set_forward_context(None):
        return build(name, **init).cost(inputs, outputs).num_bytes


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def test_gather_tokens_counts_the_tokens_that_are_chosen() -> None:
    x, index = meta(2, 262144, 1024, dtype=torch.bfloat16), torch.tensor([[5, 5, 9], [5, 0, 262143]])
    y = meta(2, 3, 1024, dtype=torch.bfloat16)
    assert num_bytes("gather_tokens", {"x": x, "index": index}, {"y": y}) == (5 + 6) * 2048 + 6 * 8


def test_draw_seeds_counts_the_seeds_of_the_rows() -> None:
    inputs = {"seeds": meta(1 << 20, dtype=torch.int64), "row_index": torch.tensor([7, 7, 3])}
    inputs["positions"] = torch.arange(3)
    assert num_bytes("draw_seeds", inputs, {"draws": torch.zeros(3).long()}) == (2 + 3 + 3 + 3) * 8


def test_embeddings_count_a_row_once() -> None:
    ids = torch.tensor([4, 4, 4, 7])
    for name in ("embedding", "vocab_parallel_embedding"):
        counted = num_bytes(name, {"input_ids": ids}, {}, num_embeddings=100, embedding_dim=16)
        assert counted == 4 * 8 + 4 * 64 + 2 * 64, name
    counted = num_bytes("clip_text_embeddings", {"input_ids": ids[None]}, {"y": meta(1, 4, 16)}, **CLIP)
    assert counted == 4 * 8 + 4 * 64 + (2 + 4) * 64


def test_rotary_tables_count_a_row_once_and_of_an_axis_its_columns() -> None:
    query = meta(4, 2, 16)
    given, turned = {"query": query, "key": None}, {"query_out": query}
    init = {"head_size": 16, "rotary_dim": 16, "max_position_embeddings": 99, "base": 1e4}
    own = 2 * 4 * 2 * 16 * 4
    positions = torch.tensor([8, 8, 8, 9])
    assert num_bytes("rotary_embedding", {"positions": positions, **given}, turned, **init) == own + 32 + 2 * 16 * 4
    positions = torch.tensor([[0, 1, 2, 3], [5, 5, 5, 5], [6, 6, 7, 7]])
    counted = num_bytes(
        "m_rotary_embedding", {"positions": positions, **given}, turned, **init, mrope_section=(2, 3, 3)
    )
    assert counted == own + 96 + (4 * 2 + 1 * 3 + 2 * 3) * 2 * 4


def test_a_sparse_product_counts_the_rows_that_a_value_stands_beside() -> None:
    inputs = {"crow_indices": torch.tensor([0, 2, 3]), "col_indices": torch.tensor([9, 9, 0]), "values": torch.ones(3)}
    counted = num_bytes("spmm", {**inputs, "x": meta(5000, 16)}, {"y": meta(2, 16)})
    assert counted == 3 * 8 + 3 * 8 + 3 * 4 + 2 * 64 + 2 * 64


def test_the_logits_processors_count_a_row_of_counts_or_a_mask_once() -> None:
    counts = torch.zeros(50, 64, dtype=torch.int32)
    counts[3, :4] = 1
    zeros = torch.zeros(3)
    inputs = {"logits": meta(3, 64), "token_counts": counts, "row_index": torch.tensor([3, 3, 8])}
    penalties = {"repetition": torch.tensor([1.5, 1.5, 1.0]), "frequency": zeros, "presence": zeros}
    assert num_bytes("apply_penalties", {**inputs, **penalties}, {}) == 12 * 3 + 4 * 64 + 2 * (4 + 4) * 4
    mask = torch.full((9, 2), -1, dtype=torch.int32)
    mask[2, 0] = -2  # the first token is barred
    inputs = {"logits": meta(3, 64), "bitmask": mask, "mask_index": torch.tensor([2, 2, -1], dtype=torch.int32)}
    assert num_bytes("apply_token_bitmask", inputs, {}) == 4 * 3 + 4 * 2 + 2 * 4


def test_a_rasterizer_counts_the_pairs_that_there_are() -> None:
    inputs = {
        **{"means2d": meta(1, 1000, 2), "conics": meta(1, 1000, 3), "colors": meta(1, 1000, 3)},
        **{"opacities": meta(1, 1000), "backgrounds": meta(1, 3), "width": 16, "height": 16},
        **{"flatten_ids": torch.tensor([7, 7, 2, *[-1] * 100_000]), "offsets": torch.tensor([0, 3], dtype=torch.int32)},
    }
    counted = num_bytes("rasterize_gaussians", inputs, {"image": meta(1, 16, 16, 3)})
    assert counted == 3 * 8 + 2 * 4 + 3 * 4 + 2 * 9 * 4 + 16 * 16 * 3 * 4


@pytest.mark.parametrize("num_going_on", [0, 1, 3])
def test_a_state_is_read_by_the_sequences_that_go_on(num_going_on: int) -> None:
    inputs = {
        **{"x": meta(3, 8), "conv_states": meta(50, 3, 8), "weight": meta(8, 4), "bias": None},
        **{"state_indices": torch.arange(3), "has_initial_state": torch.arange(3) < num_going_on},
    }
    counted = num_bytes("causal_conv1d_update", inputs, {"y": meta(3, 8)})
    assert counted == (3 * 8 + 8 * 4 + 3 * 8) * 4 + 3 * 8 + 3 + (3 + num_going_on) * 3 * 8 * 4


def test_models_count_the_rows_of_their_vocabulary_that_are_named() -> None:
    one, many = torch.zeros(1, 6, dtype=torch.int64), torch.arange(6)[None]
    given = {"pixel_values": meta(1, 1, 3, 28, 28), "text_mask": one.bool()}
    for name, outputs in (
        ("clip_text_model", {"hidden_states": meta(1, 6, 64), "pooled": meta(1, 64)}),
        ("pi0_prefix", {"keys": meta(1, 2, 9, 1, 16), "values": meta(1, 2, 9, 1, 16)}),
    ):
        op = build(name, **baseline_class(ops()[name]).spec.examples[0])
        few, more = (op.cost({**given, "input_ids": ids}, outputs).num_bytes for ids in (one, many))
        table = next(p for n, p in op.named_parameters() if "embed" in n and len(p) == op.vocab_size)
        assert more - few == 5 * table[0].numel() * 4, name
