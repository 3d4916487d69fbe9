"""CLIP's feed-forward block: two layers around an activation."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.op import Op
from fastkernels.spec import TOKENS, Cost, OpSpec
from fastkernels.tasks.baseline.L1.gelu import GELU
from fastkernels.tasks.baseline.L1.quickgelu import QuickGELU
from fastkernels.tasks.baseline.L2.parallel_linear import ColumnParallelLinear, RowParallelLinear

_ACTIVATIONS = {"quick_gelu": "", "gelu": "none", "gelu_pytorch_tanh": "tanh"}


class CLIPMLP(Op):
    """fc2(act(fc1(x))).

    Shapes:  x, y: [..., hidden_size].
    Dtypes:  bf16, fp16 or fp32; the activation in fp32.
    Returns: y. No argument is written to.
    Errors:  UnsupportedError for another activation; ValueError when intermediate_size does not split.
    Source:  Radford et al. 2021 (https://arxiv.org/abs/2103.00020); as CLIPMLP of transformers.
    """

    spec = OpSpec(
        inputs={"x": TOKENS.strided()},
        outputs={"y": TOKENS},
        examples=(
            {"hidden_size": 32, "intermediate_size": 88},
            {"hidden_size": 23, "intermediate_size": 37, "hidden_act": "gelu"},
        ),
    )

    def __init__(
        self, hidden_size: int, intermediate_size: int, hidden_act: str = "quick_gelu", prefix: str = ""
    ) -> None:
        super().__init__()
        if hidden_act not in _ACTIVATIONS:
            raise UnsupportedError(f"CLIPMLP computes {', '.join(_ACTIVATIONS)}, not hidden_act {hidden_act!r}.")
        self.hidden_size = hidden_size
        self.fc1 = ColumnParallelLinear(hidden_size, intermediate_size, prefix=f"{prefix}.fc1")
        self.activation_fn = QuickGELU() if hidden_act == "quick_gelu" else GELU(_ACTIVATIONS[hidden_act])
        self.fc2 = RowParallelLinear(intermediate_size, hidden_size, prefix=f"{prefix}.fc2")

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.fc1(x)
        y, _ = self.fc2(self.activation_fn(hidden))
        return y

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["x"].numel() // self.hidden_size
        matrices = self.fc1.weight.numel() + self.fc2.weight.numel()
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * num_rows * matrices)
