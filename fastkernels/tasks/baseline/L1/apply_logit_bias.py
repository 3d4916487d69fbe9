"""Biases by token id."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.apply_logit_bias import apply_logit_bias
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec


class ApplyLogitBias(Op):
    """logits[i, token_ids[i, j]] += biases[i, j] for every j; the biases of one token add up.

    Shapes:  logits: [num_rows, vocab_size]; token_ids, biases: [num_rows, num_biases]; a row with fewer has biases 0.
    Dtypes:  logits bf16, fp16 or fp32, computed in fp32 and rounded once; biases fp32, -inf bars a token;
             token_ids int64.
    Returns: None; logits is written to.
    Errors:  ValueError when token_ids and biases differ in shape or have not one row for each of logits.
    Source:  OpenAI's logit_bias; vLLM's LogitBiasLogitsProcessor and MinTokensLogitsProcessor.
    """

    spec = OpSpec(
        inputs={
            "logits": TensorSpec(("num_rows", "vocab_size"), role=Role.LOGITS).strided(),
            "token_ids": TensorSpec(("num_rows", "num_biases"), dtype="int64", role=Role.INDEX, bound="vocab_size"),
            "biases": TensorSpec(("num_rows", "num_biases"), dtype="float32"),
        },
        outputs={},
        mutates=("logits",),
        example_axes={"vocab_size": (512, 1021, 4099), "num_biases": (17, 129)},
    )

    def forward(self, logits: Tensor, token_ids: Tensor, biases: Tensor) -> None:
        if token_ids.shape != biases.shape or token_ids.shape[:1] != logits.shape[:1]:
            raise ValueError(
                f"ApplyLogitBias takes [{len(logits)}, num_biases] token_ids and biases, "
                f"got {tuple(token_ids.shape)} and {tuple(biases.shape)}."
            )
        if uses_reference(logits):
            return self.reference(logits, token_ids, biases)
        return apply_logit_bias(logits, token_ids, biases)

    def reference(self, logits: Tensor, token_ids: Tensor, biases: Tensor) -> None:
        x = logits.to(compute_dtype(logits))
        logits.copy_(x.scatter_add(1, token_ids, biases.to(x.dtype)))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The biases, and the logits that they change, read and written; equal ids are counted once or more."""
        biases = inputs["biases"]
        return Cost((4 + 8) * biases.numel() + 2 * len(biases) * inputs["logits"].element_size(), biases.numel())
