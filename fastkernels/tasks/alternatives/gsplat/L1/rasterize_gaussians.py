"""RasterizeGaussians by gsplat's rasterize_to_pixels, which takes the pairs without the room behind them."""

from __future__ import annotations

from torch import Tensor

from fastkernels.tasks.alternatives.gsplat._library import gsplat_function
from fastkernels.tasks.baseline.L1.rasterize_gaussians import TILE_SIZE
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians as Baseline


class RasterizeGaussians(Baseline):
    """Source: https://github.com/nerfstudio-project/gsplat/blob/v1.5.3/gsplat/cuda/_wrapper.py."""

    def __init__(self) -> None:
        super().__init__()
        self._rasterize = gsplat_function("rasterize_to_pixels")

    def forward(
        self,
        means2d: Tensor,
        conics: Tensor,
        colors: Tensor,
        opacities: Tensor,
        flatten_ids: Tensor,
        offsets: Tensor,
        backgrounds: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor]:
        tiles = (len(means2d), -(-height // TILE_SIZE), -(-width // TILE_SIZE))
        pairs = flatten_ids[: int(offsets[-1])].int()
        ellipses = (means2d, conics, colors, opacities)
        return self._rasterize(
            *ellipses, width, height, TILE_SIZE, offsets[:-1].view(tiles), pairs, backgrounds=backgrounds
        )
