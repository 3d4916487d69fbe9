"""Some of the tokens of each sequence, in the order asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, Role, TensorSpec


class GatherTokens(Op):
    """y[b, i] = x[b, index[b, i]].

    Shapes:  x: [batch, num_places, d]; index: [batch, num_chosen] int64; y: [batch, num_chosen, d].
    Dtypes:  any; nothing is computed.
    Returns: y. No argument is written to.
    Errors:  ValueError when x and index are not of one batch; an index past the end is undefined on a GPU.
    Source:  torch.gather along the tokens; as apply_masks of transformers' modeling_vjepa2.
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("batch", "num_places", "d")).strided(),
            "index": TensorSpec(("batch", "num_chosen"), dtype="int64", role=Role.INDEX, bound="num_places"),
        },
        outputs={"y": TensorSpec(("batch", "num_chosen", "d"), compare=Compare.EXACT)},
        example_axes={"batch": (2, 1), "num_places": (17, 50), "num_chosen": (5, 63), "d": (36, 17)},
    )

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        if x.dim() != 3 or index.shape[:-1] != x.shape[:1]:
            raise ValueError(
                f"GatherTokens takes [batch, tokens, d] and [batch, chosen], got {tuple(x.shape)} and "
                f"{tuple(index.shape)}."
            )
        return self.reference(x, index)

    def reference(self, x: Tensor, index: Tensor) -> Tensor:
        return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The tokens that are chosen, each once."""
        x, index = inputs["x"], inputs["index"]
        sequences = torch.arange(len(index), device=index.device)[:, None] * x.shape[1]
        num_rows = (sequences + index).unique().numel()
        return super().cost({"index": index}, outputs).plus_bytes(num_rows * x.shape[-1] * x.element_size())
