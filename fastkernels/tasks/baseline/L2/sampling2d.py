"""Half the sides of an image, and other sides again, each with a convolution."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec, scalar
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L1.interpolate import Interpolate

_IMAGE = TensorSpec(("batch", "channels", "height", "width"))


class Downsample2D(Op):
    """y = conv(x), a kernel of 3 at every second place.

    Shapes:  hidden_states: [batch, channels, height, width]; y: [batch, out_channels, ceil(height / 2),
             ceil(width / 2)].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  signature as diffusers' Downsample2D with use_conv.
    """

    spec = OpSpec(
        inputs={"hidden_states": _IMAGE},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=({"channels": 12, "out_channels": 12}, {"channels": 5, "out_channels": 7}),
        example_axes={"batch": (2, 1), "height": (6, 5), "width": (7, 8)},
        is_exact_on_integers=True,
    )

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.conv = Conv2d(channels, self.out_channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.conv(hidden_states)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {f"out_{side}": (sizes[side] + 1) // 2 for side in ("height", "width")}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * outputs["y"].numel() * self.conv.weight[0].numel())


class Upsample2D(Op):
    """y = conv(x at out_height x out_width places, each of the nearest pixel).

    Shapes:  hidden_states: [batch, channels, height, width]; y: [batch, out_channels, out_height, out_width].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32; allow_tf32 as Conv2d has it.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  signature as diffusers' Upsample2D with use_conv; output_size is always given, as two numbers.
    """

    spec = OpSpec(
        inputs={"hidden_states": _IMAGE, "out_height": scalar(), "out_width": scalar()},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=({"channels": 12, "out_channels": 12}, {"channels": 5, "out_channels": 7}),
        example_axes={"batch": (2, 1), "height": (3, 4), "width": (4, 3), "out_height": (6, 7), "out_width": (8, 5)},
        is_exact_on_integers=True,
    )

    def __init__(self, channels: int, out_channels: int | None = None, allow_tf32: bool = False) -> None:
        super().__init__()
        self.channels, self.out_channels = channels, out_channels or channels
        self.interpolate = Interpolate("nearest")
        self.conv = Conv2d(channels, self.out_channels, 3, padding=1, allow_tf32=allow_tf32)

    def forward(self, hidden_states: Tensor, out_height: int, out_width: int) -> Tensor:
        return self.conv(self.interpolate(hidden_states, out_height, out_width))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * outputs["y"].numel() * self.conv.weight[0].numel())
