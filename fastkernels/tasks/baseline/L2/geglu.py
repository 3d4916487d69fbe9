"""The gated feed-forward block of diffusion transformers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.baseline.L1.linear import Linear

_TOKENS = TensorSpec(("...", "dim_in")).strided()


class GEGLU(Op):
    """y = value * gelu(gate) with value, gate = proj(x).

    Shapes:  hidden_states: [..., dim_in]; y: [..., dim_out].
    Dtypes:  bf16, fp16 or fp32; the activation in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Shazeer 2020 (https://arxiv.org/abs/2002.05202); signature as diffusers' GEGLU.
    """

    spec = OpSpec(
        inputs={"hidden_states": _TOKENS},
        outputs={"y": TensorSpec(("...", "dim_out"))},
        examples=({"dim_in": 24, "dim_out": 64}, {"dim_in": 13, "dim_out": 29, "bias": False}),
    )

    def __init__(self, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.dim_in, self.dim_out = dim_in, dim_out
        self.proj = Linear(dim_in, 2 * dim_out, bias)
        self.act_fn = GeluAndMul(gate_is_last=True)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.act_fn(self.proj(hidden_states))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.dim_in
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * num_rows * self.proj.weight.numel())


class FeedForward(Op):
    """y = out(GEGLU(x)), dim * mult wide inside.

    Shapes:  hidden_states, y: [..., dim].
    Dtypes:  bf16, fp16 or fp32; the activation in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  signature as diffusers' FeedForward with activation_fn "geglu": its layers are net.0 and net.2.
    """

    spec = OpSpec(
        inputs={"hidden_states": TensorSpec(("...", "dim")).strided()},
        outputs={"y": TensorSpec(("...", "dim"))},
        examples=({"dim": 24}, {"dim": 13, "mult": 3}),
    )

    def __init__(self, dim: int, mult: int = 4) -> None:
        super().__init__()
        self.dim = dim
        self.net = nn.ModuleList([GEGLU(dim, dim * mult), nn.Identity(), Linear(dim * mult, dim)])

    def forward(self, hidden_states: Tensor) -> Tensor:
        for layer in self.net:
            hidden_states = layer(hidden_states)
        return hidden_states

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["hidden_states"].numel() // self.dim
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2)
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * num_rows * matrices)
