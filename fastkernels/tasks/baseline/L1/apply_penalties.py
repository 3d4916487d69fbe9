"""Penalties for tokens that occurred."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.apply_penalties import apply_penalties
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec

_PER_ROW = TensorSpec(("num_rows",), dtype="float32", role=Role.PENALTY)


class ApplyPenalties(Op):
    """x / r where x > 0, else x * r, for each token of prompt or answer; then - f * n - p for one made n > 0 times.

    Shapes:  logits: [num_rows, vocab_size]; token_counts: [max_rows, vocab_size], row row_index[i] belongs to
             logits[i]; row_index, repetition r, frequency f, presence p: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32, computed in fp32 and rounded once; r, f, p fp32; row_index int64;
             token_counts int32: twice the times n that the answer holds the token, plus 1 when the prompt holds it.
    Returns: None; logits is written to. A row with r = 1, f = 0 and p = 0 keeps its values.
    Errors:  ValueError when another argument has not one value a row, or token_counts another vocabulary.
    Source:  Keskar et al. 2019 (https://arxiv.org/abs/1909.05858), sec. 4.1; OpenAI's frequency and presence
             penalties; vLLM's apply_penalties.
    """

    spec = OpSpec(
        inputs={
            "logits": TensorSpec(("num_rows", "vocab_size"), role=Role.LOGITS).strided(),
            "row_index": TensorSpec(("num_rows",), dtype="int64", role=Role.INDEX, bound="max_rows"),
            "token_counts": TensorSpec(("max_rows", "vocab_size"), dtype="int32", role=Role.TOKEN_COUNT),
            "repetition": TensorSpec(("num_rows",), dtype="float32", role=Role.REPETITION_PENALTY),
            "frequency": _PER_ROW,
            "presence": _PER_ROW,
        },
        outputs={},
        mutates=("logits",),
        example_axes={"vocab_size": (512, 1021, 4099)},
    )

    def forward(
        self,
        logits: Tensor,
        row_index: Tensor,
        token_counts: Tensor,
        repetition: Tensor,
        frequency: Tensor,
        presence: Tensor,
    ) -> None:
        for x in (row_index, repetition, frequency, presence):
            if x.shape != logits.shape[:1]:
                raise ValueError(f"ApplyPenalties takes [{len(logits)}] values, got {tuple(x.shape)}.")
        if token_counts.shape[1:] != logits.shape[1:]:
            raise ValueError(
                f"ApplyPenalties: token_counts {tuple(token_counts.shape)} do not fit logits {tuple(logits.shape)}."
            )
        if uses_reference(logits):
            return self.reference(logits, row_index, token_counts, repetition, frequency, presence)
        return apply_penalties(logits, row_index, token_counts, repetition, frequency, presence)

    def reference(
        self,
        logits: Tensor,
        row_index: Tensor,
        token_counts: Tensor,
        repetition: Tensor,
        frequency: Tensor,
        presence: Tensor,
    ) -> None:
        x, counts = logits.to(compute_dtype(logits)), token_counts[row_index]
        r, f, p = (values.to(x.dtype)[:, None] for values in (repetition, frequency, presence))
        number = (counts >> 1).to(x.dtype)
        penalised = torch.where(x > 0, x / r, x * r) - f * number - p * (number > 0)
        logits.copy_(torch.where(counts > 0, penalised, x))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The counts of the rows that have a penalty; the logits of their tokens that occurred, read and written."""
        logits = inputs["logits"]
        is_on = (inputs["repetition"] != 1) | (inputs["frequency"] != 0) | (inputs["presence"] != 0)
        rows, given = inputs["row_index"][is_on].unique(return_counts=True)
        counts = inputs["token_counts"][rows]
        touched = int(((counts > 0).sum(1) * given).sum())
        return Cost(12 * len(logits) + 4 * counts.numel() + 2 * touched * logits.element_size(), 4 * touched)
