"""The order in which experts take their tokens, in blocks that each belong to one expert."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.moe_align import moe_align
from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.expert_gemm import align, padded_capacity


class MoEAlign(Op):
    """Sorts slots by expert, each expert's in order of slot and filled up to whole blocks of block_size.

    Slot i * top_k + j is choice j of token i. What is filled up holds num_slots = num_tokens * top_k; blocks that no
    expert needs hold num_experts. Slots of id -1 (an expert of another rank) are left out: they follow the last block
    in use, in order of slot.

    Shapes:  topk_ids: [num_tokens, top_k], in [-1, num_experts); sorted_token_ids: [num_sorted], the most that can be
             needed: num_slots + min(num_slots, num_experts) * (block_size - 1), rounded up to whole blocks;
             expert_ids: [num_sorted / block_size], the expert of each block; num_tokens_post_padded: [1], slots in use.
    Dtypes:  all int32.
    Returns: (sorted_token_ids, expert_ids, num_tokens_post_padded). No argument is written to.
    Errors:  ValueError when block_size is below 1.
    Source:  as vLLM's moe_align_block_size, with a stable order and everything behind the last block written; vLLM
             leaves out by expert_map.
    """

    spec = OpSpec(
        inputs={
            "topk_ids": TensorSpec(
                ("num_tokens", "top_k"), dtype="int32", role=Role.OPTIONAL_INDEX, bound="num_experts"
            ),
            "block_size": scalar(),
        },
        outputs={
            "sorted_token_ids": TensorSpec(("num_sorted",), dtype="int32", compare=Compare.EXACT),
            "expert_ids": TensorSpec(("num_blocks",), dtype="int32", compare=Compare.EXACT),
            "num_tokens_post_padded": TensorSpec(("1",), dtype="int32", compare=Compare.EXACT),
        },
        examples=({"num_experts": 8}, {"num_experts": 67}),
        example_axes={"top_k": (2, 7), "block_size": (16, 5, 1)},
    )

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, topk_ids: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}.")
        if uses_reference(topk_ids):
            return self.reference(topk_ids, block_size)
        capacity = padded_capacity(topk_ids.numel(), self.num_experts, block_size)
        return moe_align(topk_ids, self.num_experts, block_size, capacity)

    def reference(self, topk_ids: Tensor, block_size: int) -> tuple[Tensor, Tensor, Tensor]:
        sorted_token_ids, expert_ids, num_tokens_post_padded = align(topk_ids, self.num_experts, block_size)
        return sorted_token_ids, expert_ids, num_tokens_post_padded

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        num_sorted = padded_capacity(sizes["num_tokens"] * sizes["top_k"], self.num_experts, sizes["block_size"])
        return {"num_sorted": num_sorted, "num_blocks": num_sorted // sizes["block_size"]}
