"""The residual block of UNets and image decoders."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.bias_add_residual import BiasAddResidual
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L1.group_norm import GroupNorm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.silu import SiLU


class ResnetBlock2D(Op):
    """y = shortcut(x) + conv2(silu(norm2(h))) with h = conv1(silu(norm1(x))) + time_emb_proj(silu(temb)).

    No bias of a convolution has a pass of its own: conv1's rides with temb in norm2, the others in the last sum.

    Shapes:  input_tensor: [batch, in_channels, height, width]; temb: [batch, temb_channels]; y: [batch, out_channels,
             height, width].
    Dtypes:  bf16, fp16 or fp32; norms, activations and sums in fp32; allow_tf32 as Conv2d has it.
    Returns: y. No argument is written to.
    Errors:  ValueError when temb is there and temb_channels is 0, or the other way round; those of its parts.
    Source:  He et al. 2015 (https://arxiv.org/abs/1512.03385); signature as diffusers' ResnetBlock2D.
    """

    spec = OpSpec(
        inputs={
            "input_tensor": TensorSpec(("batch", "in_channels", "height", "width")),
            "temb": TensorSpec(("batch", "temb_channels")),
        },
        outputs={"y": TensorSpec(("batch", "out_channels", "height", "width"))},
        examples=(
            {"in_channels": 16, "out_channels": 24, "temb_channels": 20, "groups": 8},
            {"in_channels": 9, "out_channels": 9, "temb_channels": 7, "groups": 3, "eps": 1e-6},
        ),
        example_axes={"batch": (2, 1), "height": (6, 5), "width": (7, 8)},
    )

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        temb_channels: int,
        groups: int = 32,
        eps: float = 1e-6,
        allow_tf32: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.temb_channels = in_channels, out_channels, temb_channels
        convolves: dict[str, Any] = {"skip_bias_add": True, "allow_tf32": allow_tf32}
        self.norm1 = GroupNorm(groups, in_channels, eps, activation="silu")
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1, **convolves)
        self.nonlinearity = SiLU()
        self.time_emb_proj = Linear(temb_channels, out_channels) if temb_channels else None
        self.norm2 = GroupNorm(groups, out_channels, eps, activation="silu")
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, **convolves)
        has_shortcut = in_channels != out_channels
        self.conv_shortcut = Conv2d(in_channels, out_channels, 1, **convolves) if has_shortcut else None
        self.add = BiasAddResidual()

    def forward(self, input_tensor: Tensor, temb: Tensor | None) -> Tensor:
        if (temb is None) != (self.time_emb_proj is None):
            raise ValueError(f"temb_channels is {self.temb_channels}, and temb is {'not ' * (temb is None)}given.")
        bias: Any = self.conv1.bias
        shift = bias.expand(len(input_tensor), -1)
        if temb is not None and self.time_emb_proj is not None:
            shift = shift + self.time_emb_proj(self.nonlinearity(temb))
        hidden_states = self.conv2(self.norm2(self.conv1(self.norm1(input_tensor)), shift))
        if self.conv_shortcut is None:
            return self.add(hidden_states, input_tensor, self.conv2.bias)
        return self.add(hidden_states, self.conv_shortcut(input_tensor), self.conv2.bias, self.conv_shortcut.bias)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        x = inputs["input_tensor"]
        convolutions = sum(p.numel() for p in self.parameters() if p.dim() == 4)
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * convolutions * (x.numel() // x.shape[1]))
