"""Which part of a layer this process holds: rank, size and the arithmetic of shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch.distributed as dist
from torch import Tensor

_simulated: ContextVar[tuple[int, int] | None] = ContextVar("fastkernels_tensor_parallel", default=None)


class WeightSource(Protocol):
    """A full tensor of a checkpoint, of which a rank reads only its part; torch.Tensor is one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def narrow(self, dim: int, start: int, length: int) -> Tensor: ...


@dataclass(frozen=True)
class PartSource:
    """Of a tensor with a leading axis one entry of it, or [start, start + length) of that entry's first axis."""

    whole: WeightSource
    index: int
    start: int = 0
    length: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        first, *rest = self.whole.shape[1:]
        return (first if self.length is None else self.length, *rest)

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        one = self.whole.narrow(0, self.index, 1)[0].narrow(0, self.start, self.shape[0])
        return one.narrow(dim, start, length)


@dataclass(frozen=True)
class TransposedSource:
    """A tensor of three axes with the last two exchanged."""

    whole: WeightSource

    @property
    def shape(self) -> tuple[int, ...]:
        first, second, third = self.whole.shape
        return (first, third, second)

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        return self.whole.narrow((0, 2, 1)[dim], start, length).transpose(1, 2)


def tp_rank() -> int:
    """This process's rank in its tensor-parallel group; 0 without one."""
    if (simulated := _simulated.get()) is not None:
        return simulated[0]
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def tp_size() -> int:
    """How many processes share each layer; 1 without a process group."""
    if (simulated := _simulated.get()) is not None:
        return simulated[1]
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@contextmanager
def simulated_rank(rank: int, size: int) -> Iterator[None]:
    """Layers built inside hold the shards of `rank` of `size`; no process group is involved.

    Errors: ValueError when rank is not below size.
    """
    if not 0 <= rank < size:
        raise ValueError(f"The rank must be in [0, {size}), got {rank}.")
    token = _simulated.set((rank, size))
    try:
        yield
    finally:
        _simulated.reset(token)


def shard_size(total: int, size: int, what: str) -> int:
    """total / size.

    Errors: ValueError when it does not come out even.
    """
    if total % size:
        raise ValueError(f"{what} {total} cannot be split evenly over {size} ranks; choose a divisor of {total}.")
    return total // size


def kv_head_shard(total_kv_heads: int, rank: int, size: int) -> tuple[int, int]:
    """(first head, number of heads) of a rank; with fewer heads than ranks, neighbours hold the same one.

    Errors: ValueError when heads and ranks do not divide each other.
    """
    if total_kv_heads >= size:
        num_heads = shard_size(total_kv_heads, size, "The number of key-value heads")
        return rank * num_heads, num_heads
    replicas = shard_size(size, total_kv_heads, "The number of ranks (divided by key-value heads):")
    return rank // replicas, 1


def padded_vocab_size(vocab_size: int, padding_size: int, size: int) -> int:
    """The smallest multiple of padding_size that also splits evenly over `size` ranks."""
    step = padding_size
    while step % size:
        step += padding_size
    return -(-vocab_size // step) * step
