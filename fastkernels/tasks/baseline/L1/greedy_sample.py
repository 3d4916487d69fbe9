"""The most likely token of each row."""

from __future__ import annotations

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.greedy_sample import greedy_sample
from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec


class GreedySample(Op):
    """ids[i] = the index of the largest of logits[i]; any of them when several are equal.

    Shapes:  logits: [num_rows, vocab_size]; ids: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; ids int64.
    Returns: ids. No argument is written to.
    Errors:  ValueError when logits is not two-dimensional or has no column.
    Source:  the argmax of vLLM's Sampler.greedy_sample.
    """

    spec = OpSpec(
        inputs={"logits": TensorSpec(("num_rows", "vocab_size"), role=Role.LOGITS).strided()},
        outputs={
            "ids": TensorSpec(
                ("num_rows",),
                dtype="int64",
                role=Role.TOKEN_ID,
                bound="vocab_size",
                compare=Compare.VALUE_AT_INDEX,
                of="logits",
            )
        },
        example_axes={"vocab_size": (512, 1021, 4099)},
    )

    def forward(self, logits: Tensor) -> Tensor:
        if logits.dim() != 2 or not logits.shape[1]:
            raise ValueError(f"GreedySample takes [num_rows, vocab_size] logits, got shape {tuple(logits.shape)}.")
        return self.reference(logits) if uses_reference(logits) else greedy_sample(logits)

    def reference(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)
