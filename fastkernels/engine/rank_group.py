"""The process group that the ranks of a tensor-parallel engine share: joined, left, taken away."""

from __future__ import annotations

import contextlib
import threading
from dataclasses import replace

import torch
import torch.distributed as dist

from fastkernels.engine.config import EngineConfig
from fastkernels.engine.model import find_device
from fastkernels.errors import UsageError

STOP_SECONDS = 10


def check_devices(config: EngineConfig) -> None:
    """Errors: UsageError for a device of which each rank cannot have one, or which is one rank's; for more ranks than
    GPUs; those of find_device."""
    device, size = find_device(config.device), config.tensor_parallel_size
    asked = f"tensor_parallel_size is {size}"
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"{asked} and device {config.device!r}; ranks run on cpu or cuda.")
    if device.index is not None:
        raise UsageError(
            f"{asked} and device {config.device!r}: leave the index out. Ranks on cuda take cuda:0 to "
            f"cuda:{size - 1}; CUDA_VISIBLE_DEVICES says which GPUs those are."
        )
    if device.type == "cuda" and torch.cuda.device_count() < size:
        raise UsageError(f"{asked}; {torch.cuda.device_count()} GPUs are visible.")


def is_cuda(config: EngineConfig) -> bool:
    return find_device(config.device).type == "cuda"


def on_device(config: EngineConfig, rank: int) -> EngineConfig:
    """That of one rank, which has a device of its own."""
    return replace(config, device=f"cuda:{rank}" if is_cuda(config) else "cpu")


def take_device(config: EngineConfig, rank: int) -> None:
    """What can fail on a rank alone before it joins the others."""
    if is_cuda(config):
        torch.cuda.set_device(rank)


def join_group(config: EngineConfig, rank: int, store: int) -> None:
    """Enter the ranks' process group: NCCL between GPUs, gloo on a CPU. Waits for all, half an hour at most.

    store: descriptor of a file in memory that all have open, through which they find each other: none is left,
        whoever is killed when.
    """
    has_gpu = is_cuda(config)
    device = torch.device("cuda", rank) if has_gpu else None
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        init_method=f"file:///proc/self/fd/{store}",
        rank=rank,
        world_size=config.tensor_parallel_size,
        device_id=device,
    )


def leaving_group() -> threading.Thread:
    """A thread that leaves the process group: NCCL waits there for its other ranks, and for every CUDA graph that holds
    one of its collectives, without an end."""

    def leave() -> None:
        if dist.is_initialized():
            with contextlib.suppress(RuntimeError, ValueError):  # it was taken away, or another rank is gone
                dist.destroy_process_group()

    thread = threading.Thread(target=leave, daemon=True)
    thread.start()
    return thread


def see_group_left(leaving: threading.Thread) -> None:
    """Wait for that thread, and take the group away when it does not come back."""
    leaving.join(STOP_SECONDS)
    if leaving.is_alive():
        aborting = threading.Thread(target=abort_group, daemon=True)
        aborting.start()
        aborting.join(STOP_SECONDS)


def abort_group() -> None:
    """Take the group away from whoever waits in one of its collectives."""
    with contextlib.suppress(Exception):
        dist.distributed_c10d._abort_process_group()
