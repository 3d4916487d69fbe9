"""Embedding bags, sparse products and the best of each row."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.embedding_bag import embedding_bag
from fastkernels.kernels.launch import Launch, longs, meta
from fastkernels.kernels.spmm import spmm
from fastkernels.kernels.top_k_per_row import top_k_per_row


def launches() -> Iterator[Launch]:
    def look_up(dtype: torch.dtype) -> None:
        embedding_bag(longs(2048, 26, 128), longs(26), meta(204_000_000, 128, dtype=dtype))

    def propagate(dtype: torch.dtype) -> None:
        users_and_items, edges = 6040 + 3706, 2 * 1_000_209
        x, values = meta(users_and_items, 64, dtype=dtype), meta(edges, dtype=dtype)
        spmm(longs(users_and_items + 1), longs(edges), values, x)

    def recommend(dtype: torch.dtype) -> None:
        top_k_per_row(meta(6040, 3706, dtype=dtype), 20)

    yield Launch("DLRMv2", "embedding_bag", look_up, is_tested=True)
    yield Launch("LightGCN", "spmm", propagate, is_tested=True)
    yield Launch("LightGCN", "top_k_per_row", recommend, is_tested=True)
