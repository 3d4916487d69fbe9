"""Products of features with each other, to a degree that grows by one a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.addcmul import Addcmul
from fastkernels.tasks.baseline.L1.linear import Linear

_ROWS = TensorSpec(("num_rows", "in_features"))


class LowRankCrossNet(Op):
    """h = h + x * w(v(h)) for each layer in turn, from h = x; v projects to low_rank, w back.

    Shapes:  x, y: [num_rows, in_features].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: y. No argument is written to.
    Source:  Wang et al. 2020 (https://arxiv.org/abs/2008.13535), DCN-V2; signature as torchrec's LowRankCrossNet.
    """

    spec = OpSpec(
        inputs={"x": _ROWS.strided()},
        outputs={"y": _ROWS},
        examples=(
            {"in_features": 64, "num_layers": 3, "low_rank": 16},
            {"in_features": 37, "num_layers": 1, "low_rank": 5},
        ),
    )

    def __init__(self, in_features: int, num_layers: int, low_rank: int = 1) -> None:
        super().__init__()
        self.in_features = in_features
        self.v = nn.ModuleList(Linear(in_features, low_rank, bias=False) for _ in range(num_layers))
        self.w = nn.ModuleList(Linear(low_rank, in_features) for _ in range(num_layers))
        self.addcmul = Addcmul()

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for v, w in zip(self.v, self.w, strict=True):
            h = self.addcmul(h, x, w(v(h)))
        return h

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2)
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * len(inputs["x"]) * matrices)
