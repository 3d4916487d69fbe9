"""Discrepancies of pictures: generated ones by structure, rendered ones by colour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastkernels.scoring.answers import Answer, Compared, Floats, both, mean
from fastkernels.scoring.vectors import cosine_distance

_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
_MOST_DB = 100.0
"""Of equal pictures, whose ratio has no bound."""


def compare_images(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: 1 - SSIM of the picture, the first of `names`: [.., channels, height, width], floats in [0, 1] or uint8.

    Figures: psnr_db, and of each other name (latents) the cosine of the whole; means over requests.
    """
    values, ratios = [], []
    distances: dict[str, list[float]] = {name: [] for name in names[1:]}
    for number, (expected, given) in enumerate(zip(reference, candidate, strict=True)):
        first, second = _unit_range(*both(names[0], number, expected, given))
        values.append(max(0.0, 1 - ssim(first, second)))
        ratios.append(_psnr_db(first, second))
        for name in names[1:]:
            latents = (array.reshape(1, -1) for array in both(name, number, expected, given))
            distances[name].append(mean(cosine_distance(*latents)))
    cosines = {f"{name}_cosine": 1 - mean(of_name) for name, of_name in distances.items()}
    return Compared(tuple(values), {"psnr_db": mean(ratios), **cosines})


def compare_renderings(names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """D: the mean absolute difference of values as they are shown, cut off at 0 and 1 (uint8: over 255), the largest
    over `names` (colours, alphas). Figures: psnr_db of the first name, the mean over requests."""
    values, ratios = [], []
    for number, (expected, given) in enumerate(zip(reference, candidate, strict=True)):
        pairs = [[np.clip(x, 0, 1) for x in _unit_range(*both(name, number, expected, given))] for name in names]
        values.append(max(mean(np.abs(first - second).ravel()) for first, second in pairs))
        ratios.append(_psnr_db(*pairs[0]))
    return Compared(tuple(values), {"psnr_db": mean(ratios)})


def ssim(reference: Floats, candidate: Floats) -> float:
    """Structural similarity of [.., height, width] in [0, 1]: the mean over channels of that over whole windows.

    The window is a Gaussian of 11 x 11, sigma 1.5; a smaller picture has the largest odd window that fits.
    Source: Wang, Bovik, Sheikh & Simoncelli 2004, eq. 13-16, https://doi.org/10.1109/TIP.2003.819861
    """
    if not reference.size:
        return 1.0
    if reference.ndim < 2:
        raise ValueError(f"A picture is [.., height, width], got {list(reference.shape)}.")
    mean_x, mean_y = _blurred(reference), _blurred(candidate)
    variance_x = _blurred(reference**2) - mean_x**2
    variance_y = _blurred(candidate**2) - mean_y**2
    covariance = _blurred(reference * candidate) - mean_x * mean_y
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean())


def _blurred(planes: Floats) -> Floats:
    """Weighted means over whole windows of the last two axes."""
    size = min(_WINDOW, *planes.shape[-2:])
    radius = (size - 1) // 2
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / _SIGMA) ** 2)
    weights /= weights.sum()
    for axis in (-2, -1):
        length = planes.shape[axis] - 2 * radius
        parts = (weight * planes.take(range(place, place + length), axis=axis) for place, weight in enumerate(weights))
        planes = sum(parts, start=np.zeros(()))
    return planes


def _unit_range(reference: np.ndarray, candidate: np.ndarray) -> tuple[Floats, Floats]:
    scale = 1.0 if reference.dtype.kind == "f" else 255.0
    return reference / scale, candidate / scale


def _psnr_db(reference: Floats, candidate: Floats) -> float:
    error = mean(((reference - candidate) ** 2).ravel())
    return _MOST_DB if error == 0 else min(_MOST_DB, -10 * math.log10(error))
