"""The blocks of a UNet: on the way down to coarse feature maps, at the bottom, and up again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec, scalar
from fastkernels.tasks.baseline.L2.resnet_block2d import ResnetBlock2D
from fastkernels.tasks.baseline.L2.sampling2d import Downsample2D, Upsample2D
from fastkernels.tasks.baseline.L3.transformer2d import Transformer2DModel

_TEMB = TensorSpec(("batch", "temb_channels"))
_ENCODED = TensorSpec(("batch", "num_encoder_tokens", "cross_attention_dim"))
_IN = TensorSpec(("batch", "in_channels", "height", "width"))
_OUT = TensorSpec(("batch", "out_channels", "height", "width"))
_AXES = {"batch": (2, 1), "height": (8, 7), "width": (6, 9), "num_encoder_tokens": (13, 5)}
_SIZES = {"in_channels": 16, "out_channels": 24, "temb_channels": 20, "groups": 4}
_ATTENTION = {"num_layers": 1, "num_attention_heads": 3, "cross_attention_dim": 28}
NUM_RESNETS = 2
"""On the way down; one more on the way up, which takes each of them and what came before."""


def _convolution_flops(block: Any, pixels: int) -> int:
    """Of every ResNet block's convolutions."""
    return 2 * pixels * sum(p.numel() for r in block.resnets for p in r.parameters() if p.dim() == 4)


def _attention_flops(block: Any, inputs: dict[str, Any], x: Tensor) -> int:
    """x: of the shape that every transformer of the block has for its hidden_states."""
    given = {"hidden_states": x, "encoder_hidden_states": inputs["encoder_hidden_states"]}
    return sum(attention.cost(given, {}).num_flops for attention in block.attentions)


class DownBlock2D(Op):
    """state_0 = resnet(x); state_1 = resnet(state_0); downsampled = downsampler(state_1).

    Shapes:  hidden_states: [batch, in_channels, height, width]; temb: [batch, temb_channels]; state_0, state_1: [batch,
             out_channels, height, width]; downsampled: of half the sides, rounded up.
    Dtypes:  bf16, fp16 or fp32; norms and activations in fp32.
    Returns: (state_0, state_1, downsampled), the last one None in a block without a downsampler.
    Errors:  those of its parts.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); as diffusers' DownBlock2D of two layers.
    """

    spec = OpSpec(
        inputs={"hidden_states": _IN, "temb": _TEMB},
        outputs={
            "state_0": _OUT,
            "state_1": _OUT,
            "downsampled": TensorSpec(("batch", "out_channels", "out_height", "out_width")).optional(),
        },
        examples=(_SIZES, {**_SIZES, "in_channels": 24, "add_downsample": False}),
        example_axes={name: _AXES[name] for name in ("batch", "height", "width")},
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        groups: int = 32,
        eps: float = 1e-5,
        add_downsample: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.temb_channels = in_channels, out_channels, temb_channels
        channels = [in_channels] + [out_channels] * NUM_RESNETS
        self.resnets = nn.ModuleList(
            ResnetBlock2D(channels[i], out_channels, temb_channels, groups, eps) for i in range(NUM_RESNETS)
        )
        self.downsamplers = nn.ModuleList([Downsample2D(out_channels)] if add_downsample else [])

    def forward(self, hidden_states: Tensor, temb: Tensor) -> tuple[Tensor | None, ...]:
        states = []
        for resnet in self.resnets:
            hidden_states = resnet(hidden_states, temb)
            states.append(hidden_states)
        return self._with_downsampled(states)

    def _with_downsampled(self, states: list[Tensor]) -> tuple[Tensor | None, ...]:
        return (*states, self.downsamplers[0](states[-1]) if self.downsamplers else None)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {f"out_{side}": (sizes[side] + 1) // 2 for side in ("height", "width")}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        flops = _convolution_flops(self, x.numel() // x.shape[1])
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class CrossAttnDownBlock2D(DownBlock2D):
    """As DownBlock2D, each ResNet block followed by a transformer over the pixels and a text.

    Shapes:  as DownBlock2D; encoder_hidden_states: [batch, num_encoder_tokens, cross_attention_dim].
    Dtypes:  bf16, fp16 or fp32; norms, activations and softmax in fp32.
    Returns: (state_0, state_1, downsampled), the last one None in a block without a downsampler.
    Errors:  those of its parts.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); as diffusers' CrossAttnDownBlock2D of two layers.
    """

    spec = OpSpec(
        inputs={"hidden_states": _IN, "temb": _TEMB, "encoder_hidden_states": _ENCODED},
        outputs=DownBlock2D.spec.outputs,
        examples=({**_SIZES, **_ATTENTION}, {**_SIZES, **_ATTENTION, "num_layers": 2, "add_downsample": False}),
        example_axes=_AXES,
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        num_layers: int,
        num_attention_heads: int,
        cross_attention_dim: int,
        groups: int = 32,
        eps: float = 1e-5,
        add_downsample: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__(in_channels, out_channels, temb_channels, groups, eps, add_downsample)
        self.cross_attention_dim = cross_attention_dim
        self.attentions = nn.ModuleList(
            Transformer2DModel(
                out_channels, num_attention_heads, num_layers, cross_attention_dim, groups, f"{prefix}.attentions.{i}"
            )
            for i in range(NUM_RESNETS)
        )

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor
    ) -> tuple[Tensor | None, ...]:
        states = []
        for resnet, attention in zip(self.resnets, self.attentions, strict=True):
            hidden_states = attention(resnet(hidden_states, temb), encoder_hidden_states)
            states.append(hidden_states)
        return self._with_downsampled(states)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        before = super().cost(inputs, outputs)
        flops = _attention_flops(self, inputs, outputs["state_0"])
        return Cost(before.num_bytes, before.num_flops + flops)


class UNetMidBlock2DCrossAttn(Op):
    """y = resnet(attention(resnet(x), encoder_hidden_states)).

    Shapes:  hidden_states, y: [batch, in_channels, height, width]; temb: [batch, temb_channels]; encoder_hidden_states:
             [batch, num_encoder_tokens, cross_attention_dim].
    Dtypes:  bf16, fp16 or fp32; norms, activations and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); as diffusers' UNetMidBlock2DCrossAttn.
    """

    spec = OpSpec(
        inputs={"hidden_states": _IN, "temb": _TEMB, "encoder_hidden_states": _ENCODED},
        outputs={"y": _IN},
        examples=(
            {"in_channels": 24, "temb_channels": 20, "groups": 4, **_ATTENTION},
            {"in_channels": 15, "temb_channels": 9, "groups": 5, **_ATTENTION, "num_layers": 2},
        ),
        example_axes=_AXES,
    )

    def __init__(
        self,
        in_channels: int,
        temb_channels: int,
        num_layers: int,
        num_attention_heads: int,
        cross_attention_dim: int,
        groups: int = 32,
        eps: float = 1e-5,
        prefix: str = "",
    ) -> None:
        super().__init__()
        self.in_channels, self.temb_channels = in_channels, temb_channels
        self.cross_attention_dim = cross_attention_dim
        self.resnets = nn.ModuleList(
            ResnetBlock2D(in_channels, in_channels, temb_channels, groups, eps) for _ in range(2)
        )
        attention = Transformer2DModel(
            in_channels, num_attention_heads, num_layers, cross_attention_dim, groups, f"{prefix}.attentions.0"
        )
        self.attentions = nn.ModuleList([attention])

    def forward(self, hidden_states: Tensor, temb: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        hidden_states = self.attentions[0](self.resnets[0](hidden_states, temb), encoder_hidden_states)
        return self.resnets[1](hidden_states, temb)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        flops = _convolution_flops(self, x.numel() // x.shape[1]) + _attention_flops(self, inputs, x)
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class UpBlock2D(Op):
    """h = resnet([h, skip]) for each skip in turn, then upsampler(h).

    Shapes:  hidden_states: [batch, prev_output_channel, height, width]; skip_0, skip_1: [batch, out_channels, height,
             width]; skip_2: [batch, in_channels, height, width]; temb: [batch, temb_channels]; y: [batch, out_channels,
             out_height, out_width], which are height and width in a block without an upsampler.
    Dtypes:  bf16, fp16 or fp32; norms and activations in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); as diffusers' UpBlock2D of three layers, its
             res_hidden_states_tuple from the last to the first.
    """

    spec = OpSpec(
        inputs={
            "hidden_states": TensorSpec(("batch", "prev_output_channel", "height", "width")),
            "skip_0": _OUT,
            "skip_1": _OUT,
            "skip_2": _IN,
            "temb": _TEMB,
            "out_height": scalar(),
            "out_width": scalar(),
        },
        outputs={"y": TensorSpec(("batch", "out_channels", "out_height", "out_width"))},
        examples=(
            {**_SIZES, "prev_output_channel": 32},
            {**_SIZES, "prev_output_channel": 8, "in_channels": 24},
        ),
        example_axes={
            **{name: _AXES[name] for name in ("batch", "height", "width")},
            "out_height": (16, 9),
            "out_width": (7, 14),
        },
    )

    def __init__(
        self,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        groups: int = 32,
        eps: float = 1e-5,
        add_upsample: bool = True,
    ) -> None:
        super().__init__()
        self.in_channels, self.prev_output_channel = in_channels, prev_output_channel
        self.out_channels, self.temb_channels = out_channels, temb_channels
        skips = [out_channels] * NUM_RESNETS + [in_channels]
        given = [prev_output_channel] + [out_channels] * NUM_RESNETS
        self.resnets = nn.ModuleList(
            ResnetBlock2D(a + b, out_channels, temb_channels, groups, eps) for a, b in zip(given, skips, strict=True)
        )
        self.upsamplers = nn.ModuleList([Upsample2D(out_channels)] if add_upsample else [])

    def forward(
        self,
        hidden_states: Tensor,
        skip_0: Tensor,
        skip_1: Tensor,
        skip_2: Tensor,
        temb: Tensor,
        out_height: int,
        out_width: int,
    ) -> Tensor:
        for resnet, skip in zip(self.resnets, (skip_0, skip_1, skip_2), strict=True):
            hidden_states = resnet(torch.cat([hidden_states, skip], dim=1), temb)
        return self._upsampled(hidden_states, out_height, out_width)

    def _upsampled(self, hidden_states: Tensor, out_height: int, out_width: int) -> Tensor:
        return self.upsamplers[0](hidden_states, out_height, out_width) if self.upsamplers else hidden_states

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["hidden_states"]
        flops = _convolution_flops(self, x.numel() // x.shape[1])
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class CrossAttnUpBlock2D(UpBlock2D):
    """As UpBlock2D, each ResNet block followed by a transformer over the pixels and a text.

    Shapes:  as UpBlock2D; encoder_hidden_states: [batch, num_encoder_tokens, cross_attention_dim].
    Dtypes:  bf16, fp16 or fp32; norms, activations and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Rombach et al. 2021 (https://arxiv.org/abs/2112.10752); as diffusers' CrossAttnUpBlock2D of three layers.
    """

    spec = OpSpec(
        inputs={**UpBlock2D.spec.inputs, "encoder_hidden_states": _ENCODED},
        outputs=UpBlock2D.spec.outputs,
        examples=(
            {**_SIZES, **_ATTENTION, "prev_output_channel": 32},
            {**_SIZES, **_ATTENTION, "prev_output_channel": 8, "in_channels": 24},
        ),
        example_axes={**UpBlock2D.spec.example_axes, "num_encoder_tokens": (13, 5)},
    )

    def __init__(
        self,
        in_channels: int,
        prev_output_channel: int,
        out_channels: int,
        temb_channels: int,
        num_layers: int,
        num_attention_heads: int,
        cross_attention_dim: int,
        groups: int = 32,
        eps: float = 1e-5,
        add_upsample: bool = True,
        prefix: str = "",
    ) -> None:
        super().__init__(in_channels, prev_output_channel, out_channels, temb_channels, groups, eps, add_upsample)
        self.cross_attention_dim = cross_attention_dim
        self.attentions = nn.ModuleList(
            Transformer2DModel(
                out_channels, num_attention_heads, num_layers, cross_attention_dim, groups, f"{prefix}.attentions.{i}"
            )
            for i in range(NUM_RESNETS + 1)
        )

    def forward(  # type: ignore[override]
        self,
        hidden_states: Tensor,
        skip_0: Tensor,
        skip_1: Tensor,
        skip_2: Tensor,
        temb: Tensor,
        out_height: int,
        out_width: int,
        encoder_hidden_states: Tensor,
    ) -> Tensor:
        layers = zip(self.resnets, self.attentions, (skip_0, skip_1, skip_2), strict=True)
        for resnet, attention, skip in layers:
            hidden_states = resnet(torch.cat([hidden_states, skip], dim=1), temb)
            hidden_states = attention(hidden_states, encoder_hidden_states)
        return self._upsampled(hidden_states, out_height, out_width)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        before = super().cost(inputs, outputs)
        return Cost(before.num_bytes, before.num_flops + _attention_flops(self, inputs, inputs["skip_0"]))
