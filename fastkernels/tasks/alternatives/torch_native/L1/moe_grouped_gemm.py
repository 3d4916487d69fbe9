"""MoEGroupedGemm by torch's grouped product over rows in their experts' order; where it takes no such tensors, by one
dense layer an expert.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastkernels.tasks.baseline.expert_gemm import groups
from fastkernels.tasks.baseline.L1.moe_grouped_gemm import MoEGroupedGemm as Baseline


class MoEGroupedGemm(Baseline):
    """Source: https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.grouped_mm.html."""

    def forward(
        self, x: Tensor, sorted_token_ids: Tensor, expert_ids: Tensor, num_tokens_post_padded: Tensor
    ) -> Tensor:
        num_slots = len(x) * self.top_k
        if not self._takes_groups(x) or not num_slots:
            y = x.new_zeros(num_slots, self.output_size)
            for expert, slots in groups(sorted_token_ids, expert_ids, num_tokens_post_padded, num_slots):
                bias = None if self.bias is None else self.bias[expert]
                y[slots] = linear(x[slots // self.top_k], self.weight[expert], bias)
            return y
        slots, block_size = sorted_token_ids.long(), sorted_token_ids.numel() // expert_ids.numel()
        counts = torch.zeros(self.num_experts + 1, dtype=torch.int32, device=x.device)
        counts.index_add_(0, expert_ids, torch.full_like(expert_ids, block_size))
        ends = counts[:-1].cumsum(0, dtype=torch.int32)
        rows = x[(slots // self.top_k).clamp(max=len(x) - 1)]
        products = torch._grouped_mm(rows, self.weight.transpose(1, 2), offs=ends)
        if self.bias is not None:
            owner = expert_ids.clamp(max=self.num_experts - 1).repeat_interleave(block_size, output_size=len(slots))
            products = products + self.bias[owner]
        is_held = torch.arange(len(slots), device=x.device) < num_tokens_post_padded
        y = products.new_zeros(num_slots + 1, self.output_size)  # a row behind takes what is of no slot here
        y[slots.where(is_held, num_slots)] = products
        return y[:num_slots]

    def _takes_groups(self, x: Tensor) -> bool:
        """Rows of whole 16 bytes; bfloat16 on a GPU."""
        is_aligned = not any(n * x.element_size() % 16 for n in (self.input_size, self.output_size))
        return is_aligned and x.dtype in ((torch.bfloat16,) if x.is_cuda else (torch.bfloat16, torch.float32))
