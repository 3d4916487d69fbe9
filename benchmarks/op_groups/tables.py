"""Embedding bags of DLRMv2, the sparse product of LightGCN, and the best of each row, as it and YOLOv10 take them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from fastkernels.tasks.baseline.L1.embedding_bag import EmbeddingBag
from fastkernels.tasks.baseline.L1.spmm import SpMM
from fastkernels.tasks.baseline.L1.top_k_per_row import TopKPerRow
from op_groups.bench import Bench, Row

MOST_ROWS = 4_000_000
"""Of a table: six of DLRMv2's have 40 million, and all of them 105 GB in float32."""

NUM_IDS = (3, 2, 1, 2, 6, 1, 1, 1, 1, 7, 3, 8, 1, 6, 9, 5, 1, 1, 1, 12, 100, 27, 10, 3, 1, 1)
"""Of a request by table: multi_hot_sizes of mlcommons/inference, recommendation/dlrm_v2/pytorch/python/main.py."""


def rows(bench: Bench) -> Iterator[Row]:
    yield from _bags(bench)
    yield from _propagation(bench)
    yield from _best(bench)


def _bags(bench: Bench) -> Iterator[Row]:
    config = bench.config("dlrm-v2", "tiny-dlrmv2")
    limits = [min(n, MOST_ROWS) for n in config.num_embeddings_per_feature]
    init = {"num_embeddings": limits, "embedding_dim": config.embedding_dim}
    op = bench.build(EmbeddingBag, init, torch.float32)
    most = min(config.max_ids, max(NUM_IDS))

    def make(n: int) -> tuple[Tensor]:
        ids = torch.full((n, len(limits), most), -1, device=bench.device)
        for i, (limit, count) in enumerate(zip(limits, NUM_IDS, strict=False)):
            count = min(count, most)
            ids[:, i, :count] = torch.randint(limit, (n, count), device=bench.device)
        return (ids,)

    def packed(ids: Tensor) -> Tensor:
        """torch's bags without the empty places; to find those the host waits."""
        is_given = (ids >= 0).flatten(0, 1)
        starts = is_given.sum(1).cumsum(0) - is_given.sum(1)
        flat = (ids + op.first_rows[:, None]).flatten(0, 1)[is_given]
        return embedding_bag(flat, op.weight, starts, mode="sum").unflatten(0, ids.shape[:2])

    for n in (256, 2048) if not bench.is_rehearsal else (5,):
        shape = f"{n} x {len(limits)} tables, {sum(NUM_IDS[: len(limits)])} ids, rows of {config.embedding_dim}"
        others = {"torch bags, packed": packed}
        made = {"init": init, "dtype": torch.float32}
        yield bench.row("DLRMv2", shape, op, lambda n=n: make(n), others, **made)


def _propagation(bench: Bench) -> Iterator[Row]:
    """Users and items by popularity, each edge both ways."""
    config = bench.config("lightgcn-movielens-1m", "tiny-lightgcn")
    users, items, dim = config.num_users, config.num_items, config.embedding_dim
    num, op = config.num_edges, bench.build(SpMM, {}, torch.float32)

    def make() -> tuple[Tensor, ...]:
        device = bench.device
        user = torch.randint(users, (num,), device=device)
        item = (torch.rand(num, device=device) ** 2 * items).long() + users
        row = torch.cat((user, item))
        order = row.argsort(stable=True)
        degree = torch.bincount(row, minlength=users + items)
        columns = torch.cat((item, user))[order]
        values = (degree[row[order]] * degree[columns]).float().rsqrt()
        starts = torch.cat((degree.new_zeros(1), degree.cumsum(0)))
        return starts, columns, values, bench.randn(users + items, dim, dtype=torch.float32)

    shape = f"{users + items} nodes, {2 * num} edges, rows of {dim}"
    yield bench.row("LightGCN, MovieLens-1M", shape, op, make, init={}, dtype=torch.float32)


def _best(bench: Bench) -> Iterator[Row]:
    """Of users' scores of items; of an image's scores of places and classes. The definition is torch.topk."""
    graph = bench.config("lightgcn-movielens-1m", "tiny-lightgcn")
    image = bench.config("yolov10n", "tiny-yolov10")
    num_places = 21 * (image.image_size // 32) ** 2
    num_pairs = num_places * image.num_classes
    for model, num_rows, num_columns, k in (
        ("LightGCN, MovieLens-1M", bench.size(graph.num_users, 5), graph.num_items, 20),
        ("LightGCN, MovieLens-1M", 1, graph.num_items, 20),
        ("YOLOv10-N", 1, num_pairs, image.max_detections),
        ("YOLOv10-N", bench.size(8, 2), num_pairs, image.max_detections),
    ):
        k, op = min(k, num_columns), bench.build(TopKPerRow, {}, torch.float32)

        def make(n: int = num_rows, width: int = num_columns, k: int = k) -> tuple[Tensor, int]:
            return bench.randn(n, width, dtype=torch.float32), k

        yield bench.row(model, f"{k} of {num_rows} x {num_columns}", op, make, init={}, dtype=torch.float32)
