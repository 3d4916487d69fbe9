"""What a token's experts said, weighed and added."""

from __future__ import annotations

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.moe_sum import moe_sum
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec


class MoESum(Op):
    """y[i] = sum over j of topk_weights[i, j] * x[i, j].

    Shapes:  x: [num_tokens, top_k, hidden_size]; topk_weights: [num_tokens, top_k]; y: [num_tokens, hidden_size].
    Dtypes:  x and y bf16, fp16 or fp32; topk_weights fp32; products and sums in fp32, rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError when topk_weights are not one a row of x.
    Source:  as vLLM's moe_sum, with the weights that it multiplies into the products before.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("num_tokens", "top_k", "hidden_size")),
            "topk_weights": TensorSpec(("num_tokens", "top_k"), dtype="float32"),
        },
        outputs={"y": TensorSpec(("num_tokens", "hidden_size"))},
        example_axes={"top_k": (2, 10, 1), "hidden_size": (64, 257, 4099)},
    )

    def forward(self, x: Tensor, topk_weights: Tensor) -> Tensor:
        if x.shape[:-1] != topk_weights.shape:
            raise ValueError(f"MoESum takes a weight a row of x {tuple(x.shape)}, got {tuple(topk_weights.shape)}.")
        return self.reference(x, topk_weights) if uses_reference(x) else moe_sum(x, topk_weights)

    def reference(self, x: Tensor, topk_weights: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        return (x.to(dtype) * topk_weights.to(dtype)[..., None]).sum(dim=1).to(x.dtype)
