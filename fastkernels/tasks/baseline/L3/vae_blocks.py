"""The blocks of an autoencoder's decoder: at its coarsest, and one for each doubling of the sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L2.resnet_block2d import ResnetBlock2D
from fastkernels.tasks.baseline.L2.sampling2d import Upsample2D
from fastkernels.tasks.baseline.L2.unet_attention import UNetSelfAttention

_IN = TensorSpec(("batch", "in_channels", "height", "width"))
_AXES = {"batch": (2, 1), "height": (6, 5), "width": (16, 13)}
_EPS = 1e-6


class UNetMidBlock2D(Op):
    """y = resnet(attention(resnet(x))), the attention of one head over the pixels.

    Shapes:  hidden_states, y: [batch, in_channels, height, width].
    Dtypes:  bf16, fp16 or fp32; norms, activations and softmax in fp32; allow_tf32 as Conv2d has it.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Esser et al. 2020 (https://arxiv.org/abs/2012.09841); as diffusers' UNetMidBlock2D of AutoencoderKL.
    """

    spec = OpSpec(
        inputs={"hidden_states": _IN},
        outputs={"y": _IN},
        examples=({"in_channels": 16, "groups": 4}, {"in_channels": 9, "groups": 3}),
        example_axes=_AXES,
    )

    def __init__(self, in_channels: int, groups: int = 32, allow_tf32: bool = False, prefix: str = "") -> None:
        super().__init__()
        self.in_channels = in_channels
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels, in_channels, 0, groups, _EPS, allow_tf32) for _ in range(2)
        )
        attention = UNetSelfAttention(in_channels, 1, in_channels, True, groups, _EPS, prefix=f"{prefix}.attentions.0")
        self.attentions = nn.ModuleList([attention])

    def forward(self, hidden_states: Tensor) -> Tensor:
        hidden_states = self.resnets[0](hidden_states, None)
        height, width = hidden_states.shape[2:]
        tokens = self.attentions[0](hidden_states.flatten(2).transpose(1, 2))
        return self.resnets[1](tokens.transpose(1, 2).unflatten(2, (height, width)), None)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        tokens = x.flatten(2).transpose(1, 2)
        convolutions = sum(p.numel() for p in self.resnets.parameters() if p.dim() == 4)
        attention = self.attentions[0].cost({"hidden_states": tokens}, {})  # type: ignore[operator]
        flops = 2 * convolutions * (x.numel() // x.shape[1]) + attention.num_flops
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class UpDecoderBlock2D(Op):
    """y = upsampler(resnets(x)), twice the sides; without the upsampler the same ones.

    Shapes:  hidden_states: [batch, in_channels, height, width]; y: [batch, out_channels, out_height, out_width].
    Dtypes:  bf16, fp16 or fp32; norms and activations in fp32; allow_tf32 as Conv2d has it.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Esser et al. 2020 (https://arxiv.org/abs/2012.09841); as diffusers' UpDecoderBlock2D.
    """

    spec = OpSpec(
        inputs={"hidden_states": _IN},
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=(
            {"in_channels": 16, "out_channels": 8, "num_layers": 2, "groups": 4},
            {"in_channels": 15, "out_channels": 15, "num_layers": 1, "groups": 3, "add_upsample": False},
        ),
        example_axes=_AXES,
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_layers: int,
        groups: int = 32,
        add_upsample: bool = True,
        allow_tf32: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        channels = [in_channels] + [out_channels] * num_layers
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels[i], out_channels, 0, groups, _EPS, allow_tf32) for i in range(num_layers)
        )
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels, allow_tf32=allow_tf32)] if add_upsample else [])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for resnet in self.resnets:
            hidden_states = resnet(hidden_states, None)
        for upsampler in self.upsamplers:
            height, width = hidden_states.shape[2:]
            hidden_states = upsampler(hidden_states, 2 * height, 2 * width)
        return hidden_states

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        factor = 2 if self.upsamplers else 1
        return {f"out_{side}": factor * sizes[side] for side in ("height", "width")}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x, y = inputs["hidden_states"], outputs["y"]
        convolutions = sum(p.numel() for p in self.resnets.parameters() if p.dim() == 4)
        flops = 2 * convolutions * (x.numel() // x.shape[1])
        flops += sum(2 * y.numel() * p[0].numel() for p in self.upsamplers.parameters() if p.dim() == 4)
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
