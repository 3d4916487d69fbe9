"""TileIntersection by gsplat's isect_tiles and isect_offset_encode, which find every pair there is."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.tasks.alternatives.gsplat._library import gsplat_function
from fastkernels.tasks.baseline.L1.tile_intersection import TILE_SIZE, num_tiles
from fastkernels.tasks.baseline.L1.tile_intersection import TileIntersection as Baseline


class TileIntersection(Baseline):
    """Errors: UnsupportedError when there are more pairs than capacity: the library does not stop there.

    Source: https://github.com/nerfstudio-project/gsplat/blob/v1.5.3/gsplat/cuda/_wrapper.py.
    """

    def __init__(self) -> None:
        super().__init__()
        self._intersect = gsplat_function("isect_tiles")
        self._encode = gsplat_function("isect_offset_encode")

    def forward(
        self, means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, capacity: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        columns, rows = num_tiles(width, height)
        counts, keys, found = self._intersect(means2d, radii, depths, TILE_SIZE, columns, rows)
        if len(found) > capacity:
            raise UnsupportedError(
                f"gsplat found {len(found)} pairs, and there is room for {capacity}: raise capacity."
            )
        first = self._encode(keys, len(means2d), columns, rows).flatten()
        ids = torch.full((capacity,), -1, dtype=torch.int64, device=means2d.device)
        ids[: len(found)] = found
        offsets = torch.cat([first, first.new_full((1,), len(found))])
        return ids, offsets.to(torch.int32), counts.long().sum(-1)
