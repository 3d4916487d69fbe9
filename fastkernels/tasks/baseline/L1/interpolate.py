"""Another size of an image."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate

from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec, scalar

_MODES = ("nearest", "bilinear", "bicubic")


class Interpolate(Op):
    """y = x at out_height x out_width places: of the nearest pixel, or linear or cubic between pixels' centres.

    Shapes:  x: [batch, channels, height, width]; y: [batch, channels, out_height, out_width].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once, the nearest pixel bit for bit.
    Returns: y, laid out as x. No argument is written to.
    Errors:  ValueError for another mode.
    Source:  as torch.nn.functional.interpolate; nearest is floor(i * height / out_height).
    """

    spec = OpSpec(
        inputs={
            "x": TensorSpec(("batch", "channels", "height", "width")),
            "out_height": scalar(),
            "out_width": scalar(),
        },
        outputs={"y": TensorSpec(("batch", "channels", "out_height", "out_width"))},
        examples=({}, {"mode": "bilinear"}, {"mode": "bicubic", "antialias": True}),
        example_axes={
            "batch": (2, 1),
            "channels": (3, 5),
            "height": (5, 8),
            "width": (7, 6),
            "out_height": (10, 13, 4),
            "out_width": (14, 5, 9),
        },
    )

    def __init__(self, mode: str = "nearest", antialias: bool = False) -> None:
        super().__init__()
        if mode not in _MODES:
            raise ValueError(f"mode is one of {', '.join(_MODES)}, got {mode!r}.")
        self.mode, self.antialias = mode, antialias

    def forward(self, x: Tensor, out_height: int, out_width: int) -> Tensor:
        return self.reference(x, out_height, out_width)

    def reference(self, x: Tensor, out_height: int, out_width: int) -> Tensor:
        size = (out_height, out_width)
        if self.mode == "nearest":
            return interpolate(x, size, mode="nearest")
        wide = x.to(compute_dtype(x))
        return interpolate(wide, size, mode=self.mode, align_corners=False, antialias=self.antialias).to(x.dtype)
