"""Which ellipses each tile of an image meets, from the nearest to the furthest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.tile_intersection import tile_intersection
from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec, Vary, scalar

TILE_SIZE = 16
_ROLLED = Vary(rolls="num_gaussians")


def num_tiles(width: int, height: int) -> tuple[int, int]:
    """(columns, rows)."""
    return -(-width // TILE_SIZE), -(-height // TILE_SIZE)


class TileIntersection(Op):
    """Pairs of a tile of 16 x 16 pixels and a Gaussian whose square of radii touches it, by image, tile and depth.

    The results have room for `capacity` pairs, so that no shape depends on values; pairs of one depth are ordered by
    the Gaussian's number. A tile t of image b has the pairs offsets[b * tiles + t] to offsets[b * tiles + t + 1].

    Shapes:  means2d, radii: [batch, num_gaussians, 2]; depths: [batch, num_gaussians]; capacity: pairs there is room
             for; flatten_ids: [capacity], image * num_gaussians + Gaussian, -1 behind the last pair; offsets: [batch *
             tiles + 1]; num_isects: [batch], the pairs of each image, which may be more than there is room for.
    Dtypes:  means2d and depths float32; radii, offsets int32; flatten_ids, num_isects int64.
    Returns: (flatten_ids, offsets, num_isects); with more pairs than capacity the last images lack those of their
             furthest Gaussians: ask num_isects. No argument is written to.
    Source:  Kerbl et al. 2023 (https://arxiv.org/abs/2308.04079), section 6; as isect_tiles and isect_offset_encode of
             gsplat.
    """

    spec = OpSpec(
        inputs={
            "means2d": TensorSpec(("batch", "num_gaussians", "2"), role=Role.COUPLED, vary=_ROLLED),
            "radii": TensorSpec(("batch", "num_gaussians", "2"), dtype="int32", role=Role.COUPLED, vary=_ROLLED),
            "depths": TensorSpec(("batch", "num_gaussians"), role=Role.COUPLED, vary=Vary("num_gaussians", share=0.1)),
            "width": scalar(),
            "height": scalar(),
            "capacity": scalar(),
        },
        outputs={
            "flatten_ids": TensorSpec(("capacity",), dtype="int64", compare=Compare.EXACT),
            "offsets": TensorSpec(("num_offsets",), dtype="int32", compare=Compare.EXACT),
            "num_isects": TensorSpec(("batch",), dtype="int64", compare=Compare.EXACT),
        },
        dtypes=("float32",),
        example_axes={
            "batch": (2, 1),
            "num_gaussians": (67, 130),
            "width": (40, 65),
            "height": (33, 48),
            "capacity": (1500, 3000),
        },
    )

    def forward(
        self, means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, capacity: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        given = (means2d, radii, depths, width, height, capacity)
        return self.reference(*given) if uses_reference(means2d) else tile_intersection(*given)

    def reference(
        self, means2d: Tensor, radii: Tensor, depths: Tensor, width: int, height: int, capacity: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, num_gaussians = depths.shape
        columns, rows = num_tiles(width, height)
        size = torch.tensor([columns, rows], device=depths.device)
        first = ((means2d - radii) / TILE_SIZE).floor().long().clamp_min(0).minimum(size)
        last = ((means2d + radii) / TILE_SIZE).ceil().long().clamp_min(0).minimum(size)
        images = torch.arange(batch, device=depths.device)[:, None]
        order = (depths.float().sort(dim=1, stable=True).indices + images * num_gaussians).flatten()
        first, spans = first.flatten(0, 1)[order], (last - first).flatten(0, 1)[order]
        spans = torch.where((radii.flatten(0, 1)[order] > 0).all(-1, keepdim=True), spans, 0)
        counts = spans.prod(-1)
        ends = counts.cumsum(0)
        slots = torch.arange(capacity, device=depths.device)
        place = torch.searchsorted(ends, slots, right=True)
        is_pair = place < batch * num_gaussians
        place = place.clamp_max(batch * num_gaussians - 1)
        within, span = slots - (ends - counts)[place], spans[place, 0].clamp_min(1)
        column, row = first[place, 0] + within % span, first[place, 1] + within // span
        tile = (place // num_gaussians) * (columns * rows) + row * columns + column
        keys, by_tile = torch.where(is_pair, tile, batch * columns * rows).sort(stable=True)
        bounds = torch.arange(batch * columns * rows + 1, device=depths.device)
        offsets = torch.searchsorted(keys, bounds).to(torch.int32)
        ids = torch.where(is_pair, order[place], -1)[by_tile]
        return ids, offsets, counts.unflatten(0, (batch, num_gaussians)).sum(1)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        columns, rows = num_tiles(sizes["width"], sizes["height"])
        return {"num_offsets": sizes["batch"] * columns * rows + 1}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        shape = (sizes["batch"], sizes["num_gaussians"])
        size = torch.tensor([sizes["width"], sizes["height"]])
        radii = torch.randint(0, 12, (*shape, 2), generator=generator).to(torch.int32)
        return {
            "means2d": (1.4 * torch.rand(*shape, 2, generator=generator) - 0.2) * size,
            "radii": radii,
            "depths": torch.rand(shape, generator=generator) + 0.1,
        }
