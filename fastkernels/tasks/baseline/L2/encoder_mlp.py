"""The feed-forward block of a text encoder, with the residual and the norm behind."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import TOKENS, Cost, OpSpec
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.vision_mlp import VisionMLP


class EncoderMLP(Op):
    """y = LayerNorm(x + mlp(x)), mlp two layers around GELU.

    Shapes:  x, y: [..., hidden_size].
    Dtypes:  bf16, fp16 or fp32; the activation and the norm in fp32.
    Returns: y. No argument is written to.
    Errors:  ValueError when intermediate_size does not split over the ranks.
    Source:  Devlin et al. 2018 (https://arxiv.org/abs/1810.04805); as XLMRobertaIntermediate and XLMRobertaOutput of
             transformers.
    """

    spec = OpSpec(
        inputs={"x": TOKENS},
        outputs={"y": TOKENS},
        examples=({"hidden_size": 64, "intermediate_size": 112}, {"hidden_size": 51, "intermediate_size": 67}),
    )

    def __init__(
        self, hidden_size: int, intermediate_size: int, layer_norm_eps: float = 1e-5, prefix: str = ""
    ) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.mlp = VisionMLP(hidden_size, intermediate_size, prefix=f"{prefix}.mlp")
        self.LayerNorm = LayerNorm(hidden_size, layer_norm_eps, returns_sum=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.LayerNorm(self.mlp(x), x)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return Cost(super().cost(inputs, outputs).num_bytes, self.mlp.cost(inputs, {}).num_flops)
