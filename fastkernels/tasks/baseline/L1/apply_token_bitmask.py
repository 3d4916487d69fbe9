"""Tokens that may not come next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.apply_token_bitmask import apply_token_bitmask
from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, Role, TensorSpec


class ApplyTokenBitmask(Op):
    """logits[i, t] = -inf unless bit t % 32 of bitmask[mask_index[i], t // 32] is set; -1 leaves the row as it is.

    Shapes:  logits: [num_rows, vocab_size]; bitmask: [num_masks, num_words], num_words at least vocab_size / 32;
             mask_index: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; bitmask int32, mask_index int32.
    Returns: None; logits is written to.
    Errors:  ValueError when bitmask holds too few words or mask_index has not one value a row.
    Source:  xgrammar's apply_token_bitmask_inplace, whose masks these are; vLLM's allowed_token_ids.
    """

    spec = OpSpec(
        inputs={
            "logits": TensorSpec(("num_rows", "vocab_size"), role=Role.LOGITS, compare=Compare.EXACT).strided(),
            "bitmask": TensorSpec(("num_masks", "num_words"), dtype="int32", role=Role.BITMASK),
            "mask_index": TensorSpec(("num_rows",), dtype="int32", role=Role.OPTIONAL_INDEX, bound="num_masks"),
        },
        outputs={},
        mutates=("logits",),
        example_axes={"vocab_size": (512, 1021), "num_words": (32, 33)},
    )

    def forward(self, logits: Tensor, bitmask: Tensor, mask_index: Tensor) -> None:
        if mask_index.shape != logits.shape[:1] or 32 * bitmask.shape[1] < logits.shape[1]:
            raise ValueError(
                f"ApplyTokenBitmask: mask_index {tuple(mask_index.shape)} and bitmask {tuple(bitmask.shape)} "
                f"do not fit logits {tuple(logits.shape)}: one value a row, one bit a token."
            )
        if uses_reference(logits):
            return self.reference(logits, bitmask, mask_index)
        return apply_token_bitmask(logits, bitmask, mask_index)

    def reference(self, logits: Tensor, bitmask: Tensor, mask_index: Tensor) -> None:
        bits = torch.arange(32, dtype=torch.int32, device=logits.device)
        words = bitmask[mask_index.long().clamp_min(0)]
        is_allowed = ((words[:, :, None] >> bits) & 1).flatten(1)[:, : logits.shape[1]].bool()
        logits.masked_fill_(~is_allowed & (mask_index >= 0)[:, None], float("-inf"))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The masks of the rows that have one, and what they bar, written."""
        logits, index = inputs["logits"], inputs["mask_index"]
        masks, given = index[index >= 0].unique(return_counts=True)
        words = inputs["bitmask"][masks.long(), : -(-logits.shape[1] // 32)]
        bits = torch.arange(32, dtype=torch.int32, device=words.device)
        barred = (((words[:, :, None] >> bits) & 1) == 0).flatten(1)[:, : logits.shape[1]].sum(1)
        return Cost(4 * len(logits) + 4 * words.numel() + int((barred * given).sum()) * logits.element_size())
