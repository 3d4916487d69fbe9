"""Dense layers with rectified linear units between them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L1.relu import ReLU


class DenseMLP(Op):
    """h = relu(layer(h)) for each layer in turn, from h = x; after the last only with ends_in_relu.

    Shapes:  x: [..., in_features]; y: [..., out_features], the last of layer_sizes.
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: y. No argument is written to.
    Source:  Naumov et al. 2019 (https://arxiv.org/abs/1906.00091); layers as torchrec's MLP.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "in_features")).strided()},
        outputs={"y": TensorSpec(("...", "out_features"))},
        examples=(
            {"in_features": 13, "layer_sizes": [64, 32]},
            {"in_features": 37, "layer_sizes": [24, 17], "ends_in_relu": False},
        ),
    )

    def __init__(self, in_features: int, layer_sizes: Sequence[int], ends_in_relu: bool = True) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = layer_sizes[-1]
        self.ends_in_relu = ends_in_relu
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise((in_features, *layer_sizes)))
        self.relu = ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers, 1):
            x = layer(x)
            if number < len(self.layers) or self.ends_in_relu:
                x = self.relu(x)
        return x

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_rows = inputs["x"].numel() // self.in_features
        matrices = sum(p.numel() for p in self.parameters() if p.dim() == 2)
        return Cost(super().cost(inputs, outputs).num_bytes, 2 * num_rows * matrices)
