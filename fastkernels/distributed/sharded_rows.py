"""Tensors whose rows are stacked segments, each split over the ranks of a tensor-parallel group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastkernels.distributed.sharded_layer import Shard, ShardedLayer, ShardId
from fastkernels.distributed.tensor_parallel import WeightSource, shard_size, tp_rank, tp_size


def load_segments(param: Tensor, source: WeightSource, sizes: Sequence[int]) -> None:
    """This rank's part of every segment of `source`, one below the other. sizes: rows of each before it is split."""
    rank, size = tp_rank(), tp_size()
    first = offset = 0
    for rows in sizes:
        own = rows // size
        param.data.narrow(0, offset, own).copy_(source.narrow(0, first + rank * own, own))
        first, offset = first + rows, offset + own


@dataclass(frozen=True)
class RegroupedRows:
    """Of a tensor whose rows are groups of parts (sizes: rows of each in one group) the same rows part by part."""

    whole: WeightSource
    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.whole.shape)

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        groups = self.whole.narrow(0, 0, self.shape[0]).unflatten(0, (-1, sum(self.sizes)))
        parts = [part.flatten(0, 1) for part in groups.split(self.sizes, dim=1)]
        return torch.cat(parts).narrow(dim, start, length)


class ShardedRows(nn.Module):
    """weight: [rows, *tail] and, if any, bias: [rows], held without an op: a layer hands them to one.

    Errors: ValueError when a segment does not split evenly.
    """

    def __init__(self, sizes: Sequence[int], tail: Sequence[int], bias: bool) -> None:
        super().__init__()
        self.sizes = list(sizes)
        rows = sum(shard_size(n, tp_size(), "A segment of rows") for n in self.sizes)
        self.weight = nn.Parameter(torch.zeros(rows, *tail))
        self.bias = nn.Parameter(torch.zeros(rows)) if bias else None

    def checkpoint_shape(self, param: Tensor, shard_id: ShardId = None) -> tuple[int, ...]:
        return (sum(self.sizes), *param.shape[1:])

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        load_segments(param, loaded_weight, self.sizes)


class ShardedVectors(nn.Module):
    """A base of layers whose own parameters have a number a head, the heads split over the ranks."""

    def checkpoint_shape(self, param: Tensor, shard_id: ShardId = None) -> tuple[int, ...]:
        return (param.shape[0] * tp_size(), *param.shape[1:])

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        param.data.copy_(loaded_weight.narrow(0, tp_rank() * param.shape[0], param.shape[0]))


class ShardedNorm(ShardedLayer):
    """A norm whose weight is split as the rows that it takes."""

    inner = "norm"

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.tp_rank, self.tp_size = tp_rank(), tp_size()
        self.norm = norm

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        return self.norm(x, gate)

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        size = self.weight.shape[0]
        return Shard(0, size * self.tp_size, self.tp_rank * size, size)
