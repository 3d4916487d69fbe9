"""Recommendations by LightGCN."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fastkernels.errors import CheckpointError, UsageError
from fastkernels.pipelines.inputs import as_integers, as_whole_number
from fastkernels.pipelines.result import Result
from fastkernels.tasks.configs.lightgcn import LightGCNConfig


class LightGCNPipeline:
    """{"users": ids, "k": 20} -> items [users, k], the likeliest first, counted from the first item.

    The graph of who liked what is the checkpoint's; of random weights one is drawn by seed.
    """

    def __init__(self, model: nn.Module, config: LightGCNConfig, checkpoint: Path | None) -> None:
        self.model, self.config = model, config
        some = next(model.parameters())
        edges = _read_graph(config, checkpoint) if config.graph else _drawn_graph(config)
        self.graph = [t.to(some.device) for t in normalized_graph(edges, config.num_nodes, some.dtype)]

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError for users that are not there and a k over the number of items."""
        if "users" not in inputs:
            raise UsageError(f"A request has 'users', got {', '.join(inputs) or 'nothing'}.")
        users = as_integers(inputs["users"], "users", "a list of ids").flatten()
        if not len(users) or not 0 <= int(users.min()) <= int(users.max()) < self.config.num_users:
            raise UsageError(f"users are ids in [0, {self.config.num_users}), got {users.tolist()[:8]}.")
        k = as_whole_number(inputs.get("k", min(20, self.config.num_items)), "k", 1, self.config.num_items)
        return {"users": users, "ranks": torch.arange(k)}

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        users, k = batch["users"], batch["ranks"].shape[1]
        items = self.model.recommend(users.flatten(), *self.graph, k)  # type: ignore[operator]
        return {"items": items.view(*users.shape, k)}

    def finish(self, result: dict[str, Tensor]) -> Result:
        return Result({"items": result["items"].cpu()})

    def example_requests(self, num: int, seed: int) -> list[dict[str, Any]]:
        generator = torch.Generator().manual_seed(seed)
        users = torch.randint(self.config.num_users, (num, 3), generator=generator)
        return [{"users": some, "k": min(5, self.config.num_items)} for some in users.tolist()]


def _read_graph(config: LightGCNConfig, checkpoint: Path | None) -> Tensor:
    """[2, num_edges] int64. Errors: CheckpointError when the file or an edge of it is wrong."""
    if checkpoint is None:
        raise CheckpointError(f"graph {config.graph!r} is a file beside the weights; a config alone draws its graph.")
    path = checkpoint / str(config.graph)
    try:
        edges = load_file(path)["edge_index"]
    except (OSError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} has no edge_index: {error}.") from error
    if edges.dim() != 2 or len(edges) != 2 or edges.is_floating_point():
        raise CheckpointError(f"edge_index of {path} is {list(edges.shape)} {edges.dtype}, not [2, edges] of integers.")
    if edges.numel() and not 0 <= int(edges.min()) <= int(edges.max()) < config.num_nodes:
        raise CheckpointError(f"edge_index of {path} names nodes outside [0, {config.num_nodes}).")
    return edges.long()


def _drawn_graph(config: LightGCNConfig) -> Tensor:
    """Edges both ways between users and items; some items are liked far more often than others."""
    generator = torch.Generator().manual_seed(0)
    users = torch.randint(config.num_users, (config.num_edges,), generator=generator)
    items = (torch.rand(config.num_edges, generator=generator) ** 3 * config.num_items).long() + config.num_users
    one_way = torch.stack([users, items])
    return torch.cat([one_way, one_way.flip(0)], dim=1)


def normalized_graph(edge_index: Tensor, num_nodes: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Compressed rows of D^-1/2 A D^-1/2, a row a target: crow_indices, col_indices, values.

    edge_index: [2, num_edges], sources above targets; an edge that comes twice counts twice.
    """
    source, target = edge_index
    degree = torch.bincount(target, minlength=num_nodes).double()
    scale = torch.where(degree > 0, degree.rsqrt(), 0.0)
    order = torch.argsort(target, stable=True)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(target, minlength=num_nodes).cumsum(0)])
    values = (scale[source] * scale[target])[order]
    return starts, source[order], values.to(dtype)
