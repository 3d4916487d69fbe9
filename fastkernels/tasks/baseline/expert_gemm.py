"""What the ops of a mixture of experts share: how slots are sorted, and each one's product with its expert's matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastkernels.op import compute_dtype
from fastkernels.spec import Cost, Role, TensorSpec

INPUTS = {
    "x": TensorSpec(("num_rows", "input_size")).strided(),
    "sorted_token_ids": TensorSpec(("num_sorted",), dtype="int32", role=Role.COUPLED),
    "expert_ids": TensorSpec(("num_blocks",), dtype="int32", role=Role.COUPLED),
    "num_tokens_post_padded": TensorSpec(("1",), dtype="int32", role=Role.COUPLED),
}
OUTPUTS = {"y": TensorSpec(("num_slots", "output_size"))}
EXAMPLE_AXES = {"block_size": (1, 16, 5)}
_LEFT_OUT_SHARE = 1 / 8


class Alignment(NamedTuple):
    """What MoEAlign returns."""

    sorted_token_ids: Tensor
    expert_ids: Tensor
    num_tokens_post_padded: Tensor


def padded_capacity(num_slots: int, num_experts: int, block_size: int) -> int:
    """The most slots that blocks of block_size can take, each of one expert, when num_slots are held."""
    most = num_slots + min(num_slots, num_experts) * (block_size - 1)
    return -(-most // block_size) * block_size


def align(topk_ids: Tensor, num_experts: int, block_size: int) -> Alignment:
    """MoEAlign's definition."""
    experts = topk_ids.flatten().long()
    experts = experts.where(experts >= 0, num_experts)  # what is left out sorts behind every expert
    num_slots, device = experts.numel(), experts.device
    counts = torch.bincount(experts, minlength=num_experts + 1)
    num_blocks = (counts + block_size - 1) // block_size
    capacity = padded_capacity(num_slots, num_experts, block_size)
    order = experts.argsort(stable=True)
    sorted_experts = experts[order]
    rank = torch.arange(num_slots, device=device) - (counts.cumsum(0) - counts)[sorted_experts]
    first = (num_blocks.cumsum(0) - num_blocks) * block_size
    sorted_token_ids = torch.full((capacity,), num_slots, dtype=torch.int32, device=device)
    sorted_token_ids[first[sorted_experts] + rank] = order.int()
    expert_ids = torch.full((capacity // block_size,), num_experts, dtype=torch.int32, device=device)
    num_blocks = num_blocks[:num_experts]
    held = torch.repeat_interleave(torch.arange(num_experts, device=device), num_blocks)
    expert_ids[: len(held)] = held.int()
    return Alignment(sorted_token_ids, expert_ids, (num_blocks.sum() * block_size).int()[None])


def groups(
    sorted_token_ids: Tensor, expert_ids: Tensor, num_tokens_post_padded: Tensor, num_slots: int
) -> Iterator[tuple[int, Tensor]]:
    """Each expert that has slots, with its slots."""
    block_size = sorted_token_ids.numel() // max(expert_ids.numel(), 1)
    num_padded = int(num_tokens_post_padded)
    held = expert_ids[: num_padded // max(block_size, 1)]
    experts, counts = torch.unique_consecutive(held, return_counts=True)
    slots = sorted_token_ids[:num_padded].long().split((counts * block_size).tolist())
    for expert, some in zip(experts.tolist(), slots, strict=True):
        yield expert, some if block_size == 1 else some[some < num_slots]


def grouped_gemm(
    x: Tensor,
    alignment: tuple[Tensor, Tensor, Tensor],
    top_k: int,
    output_size: int,
    expert: Callable[[int], tuple[Tensor, Tensor | None]],
) -> Tensor:
    """The definition; `expert` gives an expert's matrix and bias in the dtype that is computed in."""
    num_slots = x.shape[0] * top_k
    y = x.new_zeros(num_slots, output_size)
    rows = x.to(compute_dtype(x))
    for number, slots in groups(*alignment, num_slots):
        y[slots] = linear(rows[slots // top_k], *expert(number)).to(y.dtype)
    return y


class ExpertGemm(nn.Module):
    """What grouped products share, whatever form their weights have; beside Op among the bases.

    ep_size: ranks over which whole experts are spread; about one slot in ep_size is of an expert here.
    """

    ep_size: int
    num_experts: int
    input_size: int
    output_size: int
    top_k: int

    def check(self, x: Tensor) -> None:
        """Errors: ValueError when the rows of x are not of input_size."""
        if x.dim() != 2 or x.shape[1] != self.input_size:
            raise ValueError(f"{type(self).__name__} has input_size {self.input_size}, got x of {tuple(x.shape)}.")

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        num_slots = sizes["num_rows"] * self.top_k
        num_sorted = padded_capacity(num_slots, self.num_experts, sizes["block_size"])
        return {"num_slots": num_slots, "num_sorted": num_sorted, "num_blocks": num_sorted // sizes["block_size"]}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Slots of every expert but the last, which gets no token; one in eight is of no expert."""
        shape = (sizes["num_rows"], self.top_k)
        experts = torch.randint(max(1, self.num_experts - 1), shape, generator=generator)
        experts.masked_fill_(torch.rand(shape, generator=generator) < _LEFT_OUT_SHARE, -1)
        return align(experts, self.num_experts, sizes["block_size"])._asdict()

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Of the weights those of the experts that have slots; of the products those of their slots."""
        experts, num_slots = inputs["expert_ids"], len(inputs["x"]) * self.top_k
        num_hit = experts[experts < self.num_experts].unique().numel()
        num_held = int((inputs["sorted_token_ids"][: int(inputs["num_tokens_post_padded"])] < num_slots).sum())
        tensors = [t for t in (*inputs.values(), *outputs.values()) if isinstance(t, Tensor)]
        weights = sum(p.numel() * p.element_size() for p in self.parameters()) * num_hit // self.num_experts
        num_bytes = sum(t.numel() * t.element_size() for t in tensors) + weights
        return Cost(num_bytes, 2 * num_held * self.input_size * self.output_size)
