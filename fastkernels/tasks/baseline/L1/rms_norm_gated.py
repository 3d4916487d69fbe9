"""RMSNorm over groups of a row, with a gate before or after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from fastkernels.context import uses_reference
from fastkernels.kernels.rms_norm_gated import rms_norm_gated
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_ROWS = TensorSpec(("...", "hidden_size"))


class RMSNormGated(Op):
    """y = norm(x * silu(gate)) * weight, or norm(x) * weight * silu(gate) when norm_before_gate, with
    norm(h) = h / sqrt(mean(h^2) + eps) over each group of a row.

    Shapes:  x, gate, y: [..., hidden_size]; weight: [hidden_size].
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Errors:  ValueError when the last axis of x or gate is not hidden_size, or group_size does not divide it.
    Source:  Dao & Gu 2024 (https://arxiv.org/abs/2405.21060); signature as vLLM's RMSNormGated.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided(), "gate": _ROWS.strided()},
        outputs={"y": _ROWS},
        examples=(
            {"hidden_size": 64, "group_size": 16},
            {"hidden_size": 257, "norm_before_gate": True},
        ),
    )

    def __init__(
        self, hidden_size: int, eps: float = 1e-5, group_size: int | None = None, norm_before_gate: bool = False
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.group_size = hidden_size if group_size is None else group_size
        self.norm_before_gate = norm_before_gate
        if hidden_size % self.group_size:
            raise ValueError(f"group_size {group_size} does not divide hidden_size {hidden_size}.")
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        if not x.shape[-1] == gate.shape[-1] == self.hidden_size:
            raise ValueError(
                f"RMSNormGated has hidden_size {self.hidden_size}, got x {tuple(x.shape)} and gate {tuple(gate.shape)}."
            )
        if uses_reference(x):
            return self.reference(x, gate)
        return rms_norm_gated(x, gate, self.weight, self.eps, self.group_size, self.norm_before_gate)

    def reference(self, x: Tensor, gate: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        opened = silu(gate.to(dtype))
        h = x.to(dtype) if self.norm_before_gate else x.to(dtype) * opened
        groups = h.unflatten(-1, (-1, self.group_size))
        scale = torch.rsqrt(groups.square().mean(-1, keepdim=True) + self.eps)
        y = (groups * scale).flatten(-2) * self.weight
        return (y * opened if self.norm_before_gate else y).to(x.dtype)
