"""A dense layer with a matrix for each expert: every slot is multiplied with its own expert's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastkernels.context import uses_reference
from fastkernels.distributed.tensor_parallel import ep_size
from fastkernels.kernels.moe_grouped_gemm import moe_grouped_gemm
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec
from fastkernels.tasks.baseline.expert_gemm import EXAMPLE_AXES, INPUTS, OUTPUTS, ExpertGemm, grouped_gemm


class MoEGroupedGemm(ExpertGemm, Op):
    """y[slot] = weight[expert] @ x[slot // top_k] (+ bias[expert]), the expert that of the slot's block.

    Shapes:  x: [num_rows, input_size]; weight: [num_experts, output_size, input_size]; bias: [num_experts,
             output_size]; y: [num_slots = num_rows * top_k, output_size]; the rest as MoEAlign returns it, of a
             block size up to 128; each slot occurs once, those that are left out behind num_tokens_post_padded.
    Dtypes:  x, weight and bias alike, bf16, fp16 or fp32; products are summed in at least fp32; integers int32.
    Returns: y, zero for a slot that is left out. No argument is written to.
    Errors:  ValueError when the rows of x are not of input_size.
    Source:  Gale et al. 2022 (https://arxiv.org/abs/2211.15841); arguments as vLLM's invoke_fused_moe_kernel.
    """

    spec = OpSpec(
        inputs=INPUTS,
        outputs=OUTPUTS,
        examples=(
            {"num_experts": 4, "input_size": 64, "output_size": 96, "top_k": 2},
            {"num_experts": 11, "input_size": 53, "output_size": 37, "bias": True},
        ),
        example_axes=EXAMPLE_AXES,
        is_exact_on_integers=True,
    )

    def __init__(self, num_experts: int, input_size: int, output_size: int, bias: bool = False, top_k: int = 1) -> None:
        super().__init__()
        self.ep_size = ep_size()
        self.num_experts = num_experts
        self.input_size = input_size
        self.output_size = output_size
        self.top_k = top_k
        self.weight = nn.Parameter(torch.empty(num_experts, output_size, input_size).normal_(std=input_size**-0.5))
        self.bias = nn.Parameter(torch.empty(num_experts, output_size).normal_(std=0.02)) if bias else None

    def forward(
        self, x: Tensor, sorted_token_ids: Tensor, expert_ids: Tensor, num_tokens_post_padded: Tensor
    ) -> Tensor:
        self.check(x)
        alignment = (sorted_token_ids, expert_ids, num_tokens_post_padded)
        if uses_reference(x):
            return self.reference(x, *alignment)
        return moe_grouped_gemm(x, self.weight, self.bias, *alignment, self.top_k, self.ep_size)

    def reference(
        self, x: Tensor, sorted_token_ids: Tensor, expert_ids: Tensor, num_tokens_post_padded: Tensor
    ) -> Tensor:
        alignment = (sorted_token_ids, expert_ids, num_tokens_post_padded)
        return grouped_gemm(x, alignment, self.top_k, self.output_size, lambda e: self._expert(e, compute_dtype(x)))

    def _expert(self, number: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        return self.weight[number].to(dtype), None if self.bias is None else self.bias[number].to(dtype)
