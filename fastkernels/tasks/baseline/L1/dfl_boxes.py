"""Boxes from distributions over the distances to their sides."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.dfl_boxes import dfl_boxes
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec


class DFLBoxes(Op):
    """[left, top, right, bottom] = stride * (centre -+ d), d[s] = sum over j of j * softmax(x[s])_j.

    The centre of pixel (row, column) is (column + 1/2, row + 1/2); left and top are taken off, right and bottom added.

    Shapes:  x: [batch, 4 * reg_max, height, width]; boxes: [batch, height * width, 4].
    Dtypes:  x bf16, fp16 or fp32; computed in fp32, boxes float32: pixels of a large image need the digits.
    Units:   boxes in pixels of the image of which x has one place every `stride`.
    Returns: boxes. No argument is written to.
    Errors:  ValueError when x has other channels.
    Source:  Li et al. 2020 (https://arxiv.org/abs/2006.04388), the distribution focal loss; as DFL and dist2bbox of
             ultralytics.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("batch", "num_channels", "height", "width"))},
        outputs={"boxes": TensorSpec(("batch", "num_places", "4"), dtype="float32")},
        examples=({"reg_max": 16, "stride": 8}, {"reg_max": 7, "stride": 32}),
        example_axes={"batch": (2, 1), "height": (5, 1), "width": (6, 3)},
    )

    def __init__(self, reg_max: int = 16, stride: int = 8) -> None:
        super().__init__()
        self.reg_max, self.stride = reg_max, stride
        self.num_channels = 4 * reg_max

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.num_channels:
            raise ValueError(f"DFLBoxes takes [batch, {self.num_channels}, height, width], got {tuple(x.shape)}.")
        return self.reference(x) if uses_reference(x) else dfl_boxes(x, self.reg_max, self.stride)

    def reference(self, x: Tensor) -> Tensor:
        dtype, (height, width) = compute_dtype(x), x.shape[2:]
        shares = x.to(dtype).unflatten(1, (4, self.reg_max)).softmax(2)
        bins = torch.arange(self.reg_max, dtype=dtype, device=x.device)
        distances = torch.einsum("bsjhw,j->bhws", shares, bins)
        rows, columns = (torch.arange(n, dtype=dtype, device=x.device) + 0.5 for n in (height, width))
        centres = torch.stack([columns.expand(height, width), rows[:, None].expand(height, width)], dim=-1)
        boxes = torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], dim=-1)
        return (boxes * self.stride).flatten(1, 2)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_places": sizes["height"] * sizes["width"]}
