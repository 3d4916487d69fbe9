"""SphericalHarmonics by gsplat's function of that name, shifted and clamped as its rasterization does."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.errors import UnsupportedError
from fastkernels.tasks.alternatives.gsplat._library import gsplat_function
from fastkernels.tasks.baseline.L1.spherical_harmonics import SphericalHarmonics as Baseline


class SphericalHarmonics(Baseline):
    """Errors: UnsupportedError for a dtype other than float32.

    Source: https://github.com/nerfstudio-project/gsplat/blob/v1.5.3/gsplat/cuda/_wrapper.py.
    """

    def __init__(self, degree: int) -> None:
        super().__init__(degree)
        self._harmonics = gsplat_function("spherical_harmonics")

    def forward(self, dirs: Tensor, coeffs: Tensor) -> Tensor:
        if dirs.dtype != torch.float32 or coeffs.dtype != torch.float32:
            raise UnsupportedError(f"gsplat computes in float32 alone, got {dirs.dtype} and {coeffs.dtype}.")
        return (self._harmonics(self.degree, dirs, coeffs) + 0.5).clamp_min(0)
