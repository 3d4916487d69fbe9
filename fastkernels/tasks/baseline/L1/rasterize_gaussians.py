"""Ellipses blended into an image, tile by tile."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.rasterize_gaussians import rasterize_gaussians
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, Vary, scalar

TILE_SIZE = 16
MAX_ALPHA = 0.999
LEAST_ALPHA = 1 / 255
LEAST_TRANSMITTANCE = 1e-4
_DIMMED = Vary(share=0.1)
"""The ellipses stay where they are: which tiles they meet is an input too."""


class RasterizeGaussians(Op):
    """image = sum over i of colors[i] a[i] T[i] + background T, T[i] = product over j < i of (1 - a[j]).

    a[i] = min(0.999, opacities[i] exp(-d conic d / 2)) at d from a Gaussian's centre to the pixel's; less than
    1 / 255 is nothing, and the first Gaussian that would leave a transmittance of 1e-4 or less ends a pixel and is
    left out.

    Shapes:  means2d: [batch, num_gaussians, 2]; conics, colors: [batch, num_gaussians, 3]; opacities: [batch,
             num_gaussians]; flatten_ids: [capacity], image * num_gaussians + Gaussian, in the order of tiles of 16 x 16
             and within them from the nearest; offsets: [batch * tiles + 1]; backgrounds: [batch, 3]; image: [batch,
             height, width, 3]; alphas: [batch, height, width, 1].
    Dtypes:  float32, blended in at least float32; offsets int32, flatten_ids int64.
    Returns: (image, alphas), alphas = 1 - the transmittance that is left. No argument is written to.
    Source:  Kerbl et al. 2023 (https://arxiv.org/abs/2308.04079), equation 3; limits as rasterize_to_pixels of gsplat.
    """

    spec = OpSpec(
        inputs={
            "means2d": TensorSpec(("batch", "num_gaussians", "2"), role=Role.COUPLED),
            "conics": TensorSpec(("batch", "num_gaussians", "3"), role=Role.COUPLED),
            "colors": TensorSpec(("batch", "num_gaussians", "3"), role=Role.COUPLED, vary=_DIMMED),
            "opacities": TensorSpec(("batch", "num_gaussians"), role=Role.COUPLED, vary=_DIMMED),
            "flatten_ids": TensorSpec(("capacity",), dtype="int64", role=Role.COUPLED),
            "offsets": TensorSpec(("num_offsets",), dtype="int32", role=Role.COUPLED),
            "backgrounds": TensorSpec(("batch", "3"), role=Role.COUPLED, vary=_DIMMED),
            "width": scalar(),
            "height": scalar(),
        },
        outputs={
            "image": TensorSpec(("batch", "height", "width", "3")),
            "alphas": TensorSpec(("batch", "height", "width", "1")),
        },
        dtypes=("float32",),
        example_axes={"batch": (2, 1), "num_gaussians": (23, 60), "width": (20, 33), "height": (17, 16)},
    )

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
        given = (means2d, conics, colors, opacities, flatten_ids, offsets, backgrounds, width, height)
        return self.reference(*given) if uses_reference(means2d) else rasterize_gaussians(*given)

    def reference(
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
        dtype, batch = compute_dtype(means2d), len(means2d)
        columns, rows = -(-width // TILE_SIZE), -(-height // TILE_SIZE)
        ellipses = torch.cat([means2d, conics, opacities[..., None], colors], dim=-1).flatten(0, 1).to(dtype)
        image = torch.zeros(batch, rows * TILE_SIZE, columns * TILE_SIZE, 3, dtype=dtype, device=means2d.device)
        left = torch.ones_like(image[..., :1])
        bounds = offsets.tolist()
        for number, (start, end) in enumerate(pairwise(bounds)):
            if start == end:
                continue
            index, place = divmod(number, rows * columns)
            y, x = (n * TILE_SIZE for n in divmod(place, columns))
            tile = (index, slice(y, y + TILE_SIZE), slice(x, x + TILE_SIZE))
            image[tile], left[tile] = _blend(ellipses[flatten_ids[start:end]], x, y)
        image = image + left * backgrounds.to(dtype)[:, None, None]
        seen = (slice(None), slice(height), slice(width))
        image, alphas = (part[seen].contiguous().to(means2d.dtype) for part in (image, 1 - left))
        return image, alphas

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """The pairs that there are, and their Gaussians; what lies behind an opaque one is counted with them."""
        pairs = inputs["flatten_ids"][: int(inputs["offsets"][-1])]
        num_gaussians = pairs.unique().numel()
        names = ("means2d", "conics", "colors", "opacities")
        each = {name: inputs[name].flatten(0, 1)[:num_gaussians] for name in names}
        return super().cost({**inputs, **each, "flatten_ids": pairs}, outputs)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        tiles = -(-sizes["width"] // TILE_SIZE) * -(-sizes["height"] // TILE_SIZE)
        pairs = sizes["batch"] * tiles
        return {"num_offsets": pairs + 1, "capacity": pairs * sizes["num_gaussians"] + 5}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Every Gaussian in every tile but the last, in an order of its own."""
        batch, num = sizes["batch"], sizes["num_gaussians"]
        derived = self.derived_axes(sizes)
        tiles = derived["num_offsets"] - 1
        orders = torch.rand(tiles, num, generator=generator).argsort(1)
        ids = orders + (torch.arange(tiles) // (tiles // batch) * num)[:, None]
        offsets = (torch.arange(tiles + 1) * num).clamp_max((tiles - 1) * num).to(torch.int32)
        spread = 1 + 6 * torch.rand(batch, num, 2, generator=generator)
        tilt = 0.8 * (2 * torch.rand(batch, num, generator=generator) - 1)
        xx, yy = (1 / spread.square()).unbind(-1)
        return {
            "means2d": torch.rand(batch, num, 2, generator=generator) * torch.tensor([sizes["width"], sizes["height"]]),
            "conics": torch.stack([xx, tilt * (xx * yy).sqrt(), yy], dim=-1),
            "colors": torch.rand(batch, num, 3, generator=generator),
            "opacities": torch.rand(batch, num, generator=generator),
            "flatten_ids": torch.cat([ids.flatten(), torch.full((5,), -1)]),
            "offsets": offsets,
            "backgrounds": torch.rand(batch, 3, generator=generator),
        }


def _blend(ellipses: Tensor, x: int, y: int) -> tuple[Tensor, Tensor]:
    """(image [16, 16, 3], transmittance [16, 16, 1]) of one tile whose first pixel is (x, y)."""
    center_x, center_y, xx, xy, yy, opacity = ellipses[:, :6].unbind(-1)
    pixels = torch.arange(TILE_SIZE, dtype=ellipses.dtype, device=ellipses.device) + 0.5
    dx, dy = (x + pixels)[None, :, None] - center_x, (y + pixels)[:, None, None] - center_y
    power = (xx * dx * dx + yy * dy * dy) / 2 + xy * dx * dy
    alpha = (opacity * torch.exp(-power)).clamp_max(MAX_ALPHA)
    alpha = torch.where((power >= 0) & (alpha >= LEAST_ALPHA), alpha, 0)
    after = (1 - alpha).cumprod(-1)
    is_left = after > LEAST_TRANSMITTANCE
    alpha = torch.where(is_left, alpha, 0)
    before = torch.cat([torch.ones_like(after[..., :1]), after[..., :-1]], dim=-1)
    return (alpha * before) @ ellipses[:, 6:], (1 - alpha).prod(-1, keepdim=True)
