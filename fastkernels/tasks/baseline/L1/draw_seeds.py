"""The seed of each row's draw, from its request's seed and the token's position."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.draw_seeds import draw_seeds
from fastkernels.noise import splitmix64
from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, Role, TensorSpec


class DrawSeeds(Op):
    """draws[i] = splitmix64(seeds[row_index[i]], positions[i]) >> 1: no batch, and no order of rows, changes a draw.

    Shapes:  seeds: [max_rows], by the engine's row; row_index, positions, draws: [num_rows].
    Dtypes:  all int64; arithmetic wraps, shifts are logical.
    Returns: draws. No argument is written to.
    Errors:  ValueError when row_index and positions differ in shape.
    Source:  Steele, Lea & Flood 2014 (https://doi.org/10.1145/2660193.2660195).
    """

    spec = OpSpec(
        inputs={
            "seeds": TensorSpec(("max_rows",), dtype="int64", role=Role.SEED),
            "row_index": TensorSpec(("num_rows",), dtype="int64", role=Role.INDEX, bound="max_rows"),
            "positions": TensorSpec(("num_rows",), dtype="int64", role=Role.POSITION),
        },
        outputs={"draws": TensorSpec(("num_rows",), dtype="int64", role=Role.SEED, compare=Compare.EXACT)},
    )

    def forward(self, seeds: Tensor, row_index: Tensor, positions: Tensor) -> Tensor:
        if row_index.shape != positions.shape:
            raise ValueError(
                f"DrawSeeds: row_index and positions must be [num_rows], "
                f"got {tuple(row_index.shape)} and {tuple(positions.shape)}."
            )
        if uses_reference(seeds):
            return self.reference(seeds, row_index, positions)
        return draw_seeds(seeds, row_index, positions)

    def reference(self, seeds: Tensor, row_index: Tensor, positions: Tensor) -> Tensor:
        return (splitmix64(seeds[row_index], positions) >> 1) & ((1 << 63) - 1)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The seeds of the rows that are drawn for, each once."""
        seeds, row_index = inputs["seeds"], inputs["row_index"]
        own = super().cost({"row_index": row_index, "positions": inputs["positions"]}, outputs)
        return own.plus_bytes(row_index.unique().numel() * seeds.element_size())
