"""The decay and the step size of the gated delta rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from fastkernels.context import uses_reference
from fastkernels.kernels.fused_gdn_gating import fused_gdn_gating
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec
from fastkernels.tasks.baseline.state_slots import coupled, decay_parameters

_HEADS = TensorSpec(("num_tokens", "num_heads"))
_GATE = TensorSpec(("num_tokens", "num_heads"), dtype="float32")


class FusedGDNGating(Op):
    """g = -exp(A_log) * softplus(a + dt_bias), the logarithm of a decay; beta = sigmoid(b).

    Shapes:  A_log, dt_bias: [num_heads]; a, b, g, beta: [num_tokens, num_heads].
    Dtypes:  bf16, fp16 or fp32; g and beta fp32, computed in fp32.
    Returns: (g, beta). No argument is written to.
    Source:  Yang et al. 2024 (https://arxiv.org/abs/2412.06464); signature as vLLM's fused_gdn_gating.
    """

    spec = OpSpec(
        inputs={
            "A_log": coupled("num_heads"),
            "a": _HEADS.strided(),
            "b": _HEADS.strided(),
            "dt_bias": coupled("num_heads"),
        },
        outputs={"g": _GATE, "beta": _GATE},
        example_axes={"num_heads": (32, 19)},
    )

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return decay_parameters(sizes["num_heads"], generator)

    def forward(self, A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        if uses_reference(a):
            return self.reference(A_log, a, b, dt_bias)
        return fused_gdn_gating(A_log, a, b, dt_bias)

    def reference(self, A_log: Tensor, a: Tensor, b: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:  # noqa: N803
        dtype = compute_dtype(a)
        g = -A_log.to(dtype).exp() * softplus(a.to(dtype) + dt_bias.to(dtype))
        return g, b.to(dtype).sigmoid()
