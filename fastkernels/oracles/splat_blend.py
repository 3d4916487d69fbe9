"""Projected Gaussians blended into a picture, tile by tile in torch: where gsplat has no CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

TILE = 16
_NUMBERS_AT_ONCE = 1 << 26
_LEAST_ALPHA, _MOST_ALPHA, _LEAST_LEFT = 1 / 255, 0.999, 1e-4


def blended(
    radii: Tensor,
    means2d: Tensor,
    depths: Tensor,
    conics: Tensor,
    colors: Tensor,
    opacities: Tensor,
    background: Tensor,
    width: int,
    height: int,
) -> tuple[Tensor, Tensor]:
    """(image [height, width, 3], alphas [height, width, 1]).

    radii, means2d: [n, 2], pixels; depths, opacities: [n]; conics: [n, 3]; colors: [n, 3]; background: [3].
    Source: Kerbl et al. 2023 (https://arxiv.org/abs/2308.04079); limits as gsplat's rasterize_to_pixels.
    """
    columns, rows = -(-width // TILE), -(-height // TILE)
    ids, starts = _pairs(radii, means2d, depths, columns, rows)
    counts = starts.diff()
    image = means2d.new_empty(rows * columns, TILE * TILE, 3)
    left = means2d.new_empty(rows * columns, TILE * TILE)
    most = max(1, int(counts.max()))
    tiles_at_once = max(1, _NUMBERS_AT_ONCE // (most * TILE * TILE))
    inner = torch.arange(TILE * TILE, device=means2d.device)
    for tiles in torch.arange(rows * columns, device=means2d.device).split(tiles_at_once):
        places = torch.arange(most, device=means2d.device)
        is_there = places < counts[tiles, None]
        chosen = ids[torch.where(is_there, starts[tiles, None] + places, 0)] if len(ids) else places.expand_as(is_there)
        x = (tiles % columns * TILE)[:, None, None] + (inner % TILE) + 0.5 - means2d[chosen, 0, None]
        y = (tiles // columns * TILE)[:, None, None] + (inner // TILE) + 0.5 - means2d[chosen, 1, None]
        a, b, c = (conics[chosen, i, None] for i in range(3))
        alpha = opacities[chosen, None] * torch.exp(-(a * x * x + c * y * y) / 2 - b * x * y)
        alpha = alpha.clamp_max(_MOST_ALPHA)
        alpha = torch.where(is_there[..., None] & (alpha >= _LEAST_ALPHA), alpha, 0.0)
        alpha = torch.where((1 - alpha).cumprod(1) > _LEAST_LEFT, alpha, 0.0)
        after = (1 - alpha).cumprod(1)
        before = torch.cat([torch.ones_like(after[:, :1]), after[:, :-1]], dim=1)
        image[tiles] = torch.einsum("tnp,tnc->tpc", before * alpha, colors[chosen])
        left[tiles] = after[:, -1]
    image = image + left[..., None] * background
    whole = torch.cat([image, 1 - left[..., None]], dim=-1).view(rows, columns, TILE, TILE, 4).transpose(1, 2)
    whole = whole.reshape(rows * TILE, columns * TILE, 4)[:height, :width]
    return whole[..., :3], whole[..., 3:]


def _pairs(radii: Tensor, means2d: Tensor, depths: Tensor, columns: int, rows: int) -> tuple[Tensor, Tensor]:
    """Gaussians by tile and then by depth; where each tile's begin, and behind the last one their number."""
    order = depths.argsort(stable=True)
    radii, means2d = radii[order], means2d[order]
    limits = torch.tensor([columns, rows], device=means2d.device)
    low = torch.minimum(((means2d - radii) / TILE).floor().long().clamp_min(0), limits)
    high = torch.minimum(((means2d + radii) / TILE).ceil().long().clamp_min(0), limits)
    wide, tall = ((high - low) * (radii > 0).all(-1, keepdim=True)).unbind(-1)
    counts = wide * tall
    gaussians = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    number = torch.arange(len(gaussians), device=counts.device) - (counts.cumsum(0) - counts)[gaussians]
    column = low[gaussians, 0] + number % wide[gaussians]
    tile = (low[gaussians, 1] + number // wide[gaussians]) * columns + column
    by_tile = tile.argsort(stable=True)
    starts = torch.nn.functional.pad(torch.bincount(tile, minlength=columns * rows).cumsum(0), (1, 0))
    return order[gaussians[by_tile]], starts
