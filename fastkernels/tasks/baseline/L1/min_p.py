"""Tokens much less likely than the likeliest, left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.min_p import min_p as min_p_kernel
from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, Role, TensorSpec


class MinP(Op):
    """logits[i, t] = -inf where softmax(logits[i] / temperature[i])[t] < min_p[i] * its maximum; min_p 0 is off.

    That is where logits[i, t] < max(logits[i]) + temperature[i] * log(min_p[i]), which is decided in fp64.

    Shapes:  logits: [num_rows, vocab_size]; temperature, min_p: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; temperature, min_p fp32, min_p in [0, 1].
    Returns: None; logits is written to.
    Errors:  ValueError when temperature or min_p has not one value a row.
    Source:  Nguyen et al. 2024 (https://arxiv.org/abs/2407.01082); vLLM's MinPLogitsProcessor.
    """

    spec = OpSpec(
        inputs={
            "logits": TensorSpec(("num_rows", "vocab_size"), role=Role.LOGITS, compare=Compare.EXACT).strided(),
            "temperature": TensorSpec(("num_rows",), dtype="float32", role=Role.TEMPERATURE),
            "min_p": TensorSpec(("num_rows",), dtype="float32", role=Role.MIN_P),
        },
        outputs={},
        mutates=("logits",),
        example_axes={"vocab_size": (512, 1021, 4099)},
    )

    def forward(self, logits: Tensor, temperature: Tensor, min_p: Tensor) -> None:
        for name, x in (("temperature", temperature), ("min_p", min_p)):
            if x.shape != logits.shape[:1]:
                raise ValueError(f"MinP: {name} must be [{logits.shape[0]}], got {tuple(x.shape)}.")
        if uses_reference(logits):
            return self.reference(logits, temperature, min_p)
        return min_p_kernel(logits, temperature, min_p)

    def reference(self, logits: Tensor, temperature: Tensor, min_p: Tensor) -> None:
        is_on = min_p > 0
        least = logits.amax(-1).double() + temperature.double() * torch.where(is_on, min_p, 1.0).double().log()
        logits.masked_fill_((logits.double() < least[:, None]) & is_on[:, None], float("-inf"))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The rows whose min_p is on, read once."""
        logits = inputs["logits"]
        elements = int((inputs["min_p"] > 0).sum()) * logits.shape[1]
        return Cost(8 * len(logits) + elements * logits.element_size(), 2 * elements)
