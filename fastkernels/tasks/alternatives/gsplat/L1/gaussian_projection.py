"""GaussianProjection by gsplat's fully_fused_projection, of one camera a scene.

What it says of Gaussians of radius 0, which nothing reads, it leaves unwritten.
"""

from __future__ import annotations

from torch import Tensor

from fastkernels.tasks.alternatives.gsplat._library import gsplat_function
from fastkernels.tasks.baseline.L1.gaussian_projection import GaussianProjection as Baseline


class GaussianProjection(Baseline):
    """Source: https://github.com/nerfstudio-project/gsplat/blob/v1.5.3/gsplat/cuda/_wrapper.py."""

    def __init__(self, eps2d: float = 0.3, near_plane: float = 0.01, far_plane: float = 1e10) -> None:
        super().__init__(eps2d, near_plane, far_plane)
        self._project = gsplat_function("fully_fused_projection")

    def forward(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        viewmats: Tensor,
        Ks: Tensor,  # noqa: N803 - gsplat's name
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        cameras = (viewmats[:, None], Ks[:, None], width, height)
        limits = {"eps2d": self.eps2d, "near_plane": self.near_plane, "far_plane": self.far_plane}
        radii, means2d, depths, conics, _ = self._project(means, None, quats, scales, *cameras, **limits)
        return radii[:, 0], means2d[:, 0], depths[:, 0], conics[:, 0]
