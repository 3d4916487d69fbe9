"""Routing by softmax: which experts a token goes to, and with what weight."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.topk_softmax import topk_softmax
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec


class TopKSoftmax(Op):
    """The top_k largest of softmax(router_logits[i]) in order, and where they stand; divided by their sum if asked.

    Equal logits are ordered by expert. Renormalised weights are the softmax over the chosen logits alone.

    Shapes:  router_logits: [num_tokens, num_experts]; topk_weights, topk_ids: [num_tokens, top_k].
    Dtypes:  router_logits bf16, fp16 or fp32; topk_weights fp32; topk_ids int32.
    Returns: (topk_weights, topk_ids); ids lie in [0, num_experts) whatever the logits hold. No argument is written to.
    Errors:  ValueError when top_k is not in [1, num_experts], or router_logits are not of num_experts.
    Source:  Shazeer et al. 2017 (https://arxiv.org/abs/1701.06538); results as vLLM's topk_softmax.
    """

    spec = OpSpec(
        inputs={"router_logits": TensorSpec(("num_tokens", "num_experts"), role=Role.LOGITS).strided()},
        outputs={
            "topk_weights": TensorSpec(("num_tokens", "top_k"), dtype="float32"),
            "topk_ids": TensorSpec(("num_tokens", "top_k"), dtype="int32", role=Role.INDEX, compare=Compare.EXACT),
        },
        examples=(
            {"num_experts": 8, "top_k": 2},
            {"num_experts": 13, "top_k": 3, "renormalize": False},
            {"num_experts": 512, "top_k": 10},
        ),
    )

    def __init__(self, num_experts: int, top_k: int, renormalize: bool = True) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k must be in [1, num_experts {num_experts}], got {top_k}.")
        self.num_experts = num_experts
        self.top_k = top_k
        self.renormalize = renormalize

    def forward(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        if router_logits.shape[-1] != self.num_experts:
            raise ValueError(
                f"TopKSoftmax has num_experts {self.num_experts}, got router_logits of {tuple(router_logits.shape)}."
            )
        if uses_reference(router_logits):
            return self.reference(router_logits)
        return topk_softmax(router_logits, self.top_k, self.renormalize)

    def reference(self, router_logits: Tensor) -> tuple[Tensor, Tensor]:
        x = router_logits.to(compute_dtype(router_logits))
        ids = x.argsort(dim=-1, descending=True, stable=True)[:, : self.top_k]
        weights = x.gather(-1, ids).softmax(dim=-1) if self.renormalize else x.softmax(dim=-1).gather(-1, ids)
        return weights, ids.to(torch.int32)
