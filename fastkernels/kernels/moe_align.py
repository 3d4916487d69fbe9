"""Slots sorted by expert: one program an expert counts its own, then places them behind all lower experts'.

A negative id is no expert's: the program behind the last expert's places such slots, and fills what is left.

Nothing is read back by the host and every shape follows from the arguments', so both launches can be captured.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import (
    dependent_launch,
    let_dependents_start,
    tl,
    triton,
    wait_for_dependencies,
)


@triton.jit(do_not_specialize=["num_slots"])
def _count_kernel(ids_ptr, counts_ptr, num_slots, BLOCK: tl.constexpr, PDL: tl.constexpr):
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    expert = tl.program_id(0)
    count = tl.zeros([BLOCK], dtype=tl.int32)
    for start in range(0, num_slots, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        ids = tl.load(ids_ptr + slots, mask=slots < num_slots, other=-1)
        count += (ids == expert).to(tl.int32)
    tl.store(counts_ptr + expert, tl.sum(count, axis=0))


@triton.jit(do_not_specialize=["num_slots", "num_blocks"])
def _place_kernel(
    ids_ptr, counts_ptr, sorted_ptr, expert_ids_ptr, padded_ptr, num_slots, num_experts, num_blocks, block_size,
    BLOCK: tl.constexpr, BLOCK_E: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The program behind the last expert's places what is left out, and fills what no expert needs."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    expert = tl.program_id(0)
    experts = tl.arange(0, BLOCK_E)
    counts = tl.load(counts_ptr + experts, mask=experts < num_experts, other=0)
    blocks = (counts + block_size - 1) // block_size
    first_block = tl.sum(tl.where(experts < expert, blocks, 0), axis=0)
    own_blocks = tl.sum(tl.where(experts == expert, blocks, 0), axis=0)
    own_count = tl.sum(tl.where(experts == expert, counts, 0), axis=0)
    if expert == num_experts:
        own_blocks = num_blocks - first_block
        own_count = num_slots - tl.sum(counts, axis=0)
        tl.store(padded_ptr, first_block * block_size)
    for start in range(0, own_blocks, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.zeros([BLOCK], dtype=tl.int32) + expert
        tl.store(expert_ids_ptr + first_block + places, values, mask=places < own_blocks)
    for start in range(own_count, own_blocks * block_size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        values = tl.zeros([BLOCK], dtype=tl.int32) + num_slots
        tl.store(sorted_ptr + first_block * block_size + places, values, mask=places < own_blocks * block_size)
    done = first_block * block_size
    if own_count > 0:
        for start in range(0, num_slots, BLOCK):
            slots = start + tl.arange(0, BLOCK)
            ids = tl.load(ids_ptr + slots, mask=slots < num_slots, other=-1)
            owners = tl.where(ids < 0, num_experts, ids)
            is_own = ((owners == expert) & (slots < num_slots)).to(tl.int32)
            tl.store(sorted_ptr + done + tl.cumsum(is_own, axis=0) - 1, slots, mask=is_own > 0)
            done += tl.sum(is_own, axis=0)


def moe_align(topk_ids: Tensor, num_experts: int, block_size: int, capacity: int) -> tuple[Tensor, Tensor, Tensor]:
    """(sorted_token_ids [capacity], expert_ids [capacity / block_size], num_tokens_post_padded [1]), all int32.

    topk_ids: int32 in [-1, num_experts), -1: left out; capacity: a multiple of block_size that is enough for any ids.
    """
    ids = topk_ids.contiguous()
    num_slots, num_blocks = ids.numel(), capacity // block_size
    counts, sorted_ids, expert_ids, padded = (
        torch.empty(n, dtype=torch.int32, device=ids.device) for n in (num_experts, capacity, num_blocks, 1)
    )
    block = max(32, min(1024, triton.next_power_of_2(num_slots)))
    options = {"BLOCK": block, "num_warps": 4 if block > 256 else 1, **dependent_launch(ids.device)}
    _count_kernel[(num_experts,)](ids, counts, num_slots, **options)
    _place_kernel[(num_experts + 1,)](
        ids, counts, sorted_ids, expert_ids, padded, num_slots, num_experts, num_blocks, block_size,
        BLOCK_E=triton.next_power_of_2(num_experts), **options,
    )  # fmt: skip
    return sorted_ids, expert_ids, padded
