"""Ellipses blended into an image: a program a tile of 16 x 16 pixels, Gaussian after Gaussian."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_TILE_SIZE = 16
_STEP = 16
"""Gaussians between two looks at whether any pixel is still open, for which all warps of a tile wait."""
_AT_ONCE = 4
"""Gaussians whose numbers are asked for before the first of them is blended: each waits for its place in the list."""


@triton.jit
def _rasterize_kernel(
    means_ptr, conics_ptr, colors_ptr, opacities_ptr, ids_ptr, offsets_ptr, backgrounds_ptr, image_ptr, alphas_ptr,
    width, height, columns, tiles, TILE: tl.constexpr, STEP: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    batch, place = number // tiles, number % tiles
    pixel = tl.arange(0, TILE * TILE)
    column, row = place % columns * TILE + pixel % TILE, place // columns * TILE + pixel // TILE
    x, y = column.to(tl.float32) + 0.5, row.to(tl.float32) + 0.5
    left = tl.full((TILE * TILE,), 1.0, tl.float32)
    red, green, blue = left * 0.0, left * 0.0, left * 0.0
    is_open = left > 0.0
    slot, end = tl.load(offsets_ptr + number), tl.load(offsets_ptr + number + 1)
    while slot < end:
        stop = tl.minimum(slot + STEP, end)
        for i in range(slot, stop, AT_ONCE):
            for j in tl.static_range(AT_ONCE):
                is_there = i + j < end
                gaussian = tl.load(ids_ptr + i + j, mask=is_there, other=0)
                center, conic, color = means_ptr + 2 * gaussian, conics_ptr + 3 * gaussian, colors_ptr + 3 * gaussian
                opacity = tl.load(opacities_ptr + gaussian, mask=is_there, other=0.0)
                dx, dy = x - tl.load(center), y - tl.load(center + 1)
                power = (tl.load(conic) * dx * dx + tl.load(conic + 2) * dy * dy) * 0.5 + tl.load(conic + 1) * dx * dy
                alpha = tl.minimum(opacity * tl.exp(-power), 0.999)
                alpha = tl.where((power >= 0.0) & (alpha >= 1.0 / 255.0), alpha, 0.0)
                after = left * (1.0 - alpha)
                is_open = is_open & (after > 1e-4)
                weight = tl.where(is_open, alpha * left, 0.0)
                left = tl.where(is_open, after, left)
                red += weight * tl.load(color)
                green += weight * tl.load(color + 1)
                blue += weight * tl.load(color + 2)
        slot = stop
        if tl.max(is_open.to(tl.int32), axis=0) == 0:
            slot = end
    background = backgrounds_ptr + 3 * batch
    target = (batch.to(tl.int64) * height + row) * width + column
    mask = (row < height) & (column < width)
    tl.store(image_ptr + 3 * target, red + left * tl.load(background), mask=mask)
    tl.store(image_ptr + 3 * target + 1, green + left * tl.load(background + 1), mask=mask)
    tl.store(image_ptr + 3 * target + 2, blue + left * tl.load(background + 2), mask=mask)
    tl.store(alphas_ptr + target, 1.0 - left, mask=mask)


def rasterize_gaussians(
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
    """(image [batch, height, width, 3], alphas [batch, height, width, 1]) in float32, as the op RasterizeGaussians.

    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    given = {"means2d": means2d, "conics": conics, "colors": colors, "opacities": opacities, "backgrounds": backgrounds}
    check_dtypes("rasterize_gaussians", **given)
    columns, rows = -(-width // _TILE_SIZE), -(-height // _TILE_SIZE)
    batch = len(means2d)
    image = torch.empty(batch, height, width, 3, dtype=means2d.dtype, device=means2d.device)
    alphas = torch.empty(batch, height, width, 1, dtype=means2d.dtype, device=means2d.device)
    dense = [t.float().contiguous() for t in (means2d, conics, colors, opacities)]
    _rasterize_kernel[(batch * rows * columns,)](
        *dense, flatten_ids, offsets, backgrounds.float().contiguous(), image, alphas,
        width, height, columns, rows * columns, TILE=_TILE_SIZE, STEP=_STEP, AT_ONCE=_AT_ONCE, num_warps=4,
    )  # fmt: skip
    return image, alphas
