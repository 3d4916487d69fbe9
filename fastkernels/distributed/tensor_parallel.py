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
_keeps_experts_whole: ContextVar[bool] = ContextVar("fastkernels_expert_parallel", default=False)


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


@contextmanager
def expert_parallel(is_enabled: bool = True) -> Iterator[None]:
    """Layers built inside hold whole experts, other ones on each rank, instead of a slice of every expert."""
    token = _keeps_experts_whole.set(is_enabled)
    try:
        yield
    finally:
        _keeps_experts_whole.reset(token)


def ep_size() -> int:
    """Over how many ranks whole experts are spread; 1 where each rank has all of them, or a slice of all."""
    return tp_size() if _keeps_experts_whole.get() else 1


def own_experts(num_experts: int) -> range:
    """The experts that this rank holds: blocks in the order of ranks, the first ones longer by one where they do not
    come out even.

    Errors: ValueError when a rank would hold none.
    """
    size = ep_size()
    if num_experts < size:
        raise ValueError(f"{num_experts} experts do not give each of {size} ranks one; choose at most {num_experts}.")
    rank = tp_rank() if size > 1 else 0
    share, rest = divmod(num_experts, size)
    first = rank * share + min(rank, rest)
    return range(first, first + share + (rank < rest))


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
    if size % total_kv_heads:
        raise ValueError(
            f"{total_kv_heads} key-value heads cannot be shared evenly by {size} ranks; choose a divisor or a multiple "
            f"of {total_kv_heads}."
        )
    return rank // (size // total_kv_heads), 1


def padded_vocab_size(vocab_size: int, padding_size: int, size: int) -> int:
    """The smallest multiple of padding_size that also splits evenly over `size` ranks."""
    step = padding_size
    while step % size:
        step += padding_size
    return -(-vocab_size // step) * step
