"""Scenes of Gaussians to images: projection, colours, the order of every tile, blending."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec, Vary, scalar
from fastkernels.tasks.baseline.L1.gaussian_projection import GaussianProjection, random_views
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians
from fastkernels.tasks.baseline.L1.spherical_harmonics import SphericalHarmonics
from fastkernels.tasks.baseline.L1.tile_intersection import TileIntersection, num_tiles
from fastkernels.tasks.configs.gaussian_splatting import GaussianSplattingConfig

_ROLLED = Vary(rolls="num_gaussians")
_DIMMED = Vary(rolls="num_gaussians", share=0.1)
SCENE_INPUTS = {
    "means": TensorSpec(("batch", "num_gaussians", "3"), role=Role.COUPLED, vary=_ROLLED),
    "quats": TensorSpec(("batch", "num_gaussians", "4"), role=Role.COUPLED, vary=_ROLLED),
    "scales": TensorSpec(("batch", "num_gaussians", "3"), role=Role.COUPLED, vary=_ROLLED),
    "opacities": TensorSpec(("batch", "num_gaussians"), role=Role.COUPLED, vary=_DIMMED),
    "coeffs": TensorSpec(("batch", "num_gaussians", "num_bases", "3"), role=Role.COUPLED, vary=_DIMMED),
    "viewmats": TensorSpec(("batch", "4", "4"), role=Role.COUPLED),
    "Ks": TensorSpec(("batch", "3", "3"), role=Role.COUPLED),
    "backgrounds": TensorSpec(("batch", "3"), role=Role.COUPLED, vary=Vary(share=0.1)),
    "width": scalar(),
    "height": scalar(),
}
IMAGE_OUTPUTS = {
    "image": TensorSpec(("batch", "height", "width", "3")),
    "alphas": TensorSpec(("batch", "height", "width", "1")),
    "num_isects": TensorSpec(("batch",), dtype="int64", compare=Compare.EXACT),
}
EXAMPLE_AXES = {"batch": (2, 1), "num_gaussians": (67, 130), "width": (40, 65), "height": (33, 48)}


def random_scenes(sizes: Mapping[str, int], num_bases: int, generator: torch.Generator) -> dict[str, Any]:
    shape = (sizes["batch"], sizes["num_gaussians"])
    return {
        **random_views(sizes, generator),
        "opacities": 0.1 + 0.85 * torch.rand(shape, generator=generator),
        "coeffs": 0.3 * torch.randn(*shape, num_bases, 3, generator=generator),
        "backgrounds": torch.rand(sizes["batch"], 3, generator=generator),
    }


class GaussianRenderer(Op):
    """(image, alphas) = blend(project(scene), harmonics(scene seen from the camera), pairs with tiles).

    Shapes:  means, scales: [batch, num_gaussians, 3]; quats: [batch, num_gaussians, 4]; opacities: [batch,
             num_gaussians]; coeffs: [batch, num_gaussians, num_bases, 3]; viewmats: [batch, 4, 4]; Ks: [batch, 3, 3];
             backgrounds: [batch, 3]; image: [batch, height, width, 3]; alphas: [batch, height, width, 1]; num_isects:
             [batch].
    Dtypes:  float32; num_isects int64.
    Returns: (image, alphas, num_isects), the pairs of a tile and a Gaussian that each image asked for: an image is
             whole when all of them together are no more than the configuration's capacity. No argument is written to.
    Source:  Kerbl et al. 2023 (https://arxiv.org/abs/2308.04079); as rasterization of gsplat, of one camera a scene.
    """

    spec = OpSpec(
        inputs=SCENE_INPUTS,
        outputs=IMAGE_OUTPUTS,
        dtypes=("float32",),
        examples=({"config": GaussianSplattingConfig.tiny()},),
        example_axes=EXAMPLE_AXES,
    )

    def __init__(self, config: GaussianSplattingConfig) -> None:
        super().__init__()
        self.config, self.num_bases = config, (config.sh_degree + 1) ** 2
        self.projection = GaussianProjection(config.eps2d, config.near_plane, config.far_plane)
        self.harmonics = torch.nn.ModuleList(SphericalHarmonics(degree) for degree in range(4))
        self.intersection = TileIntersection()
        self.rasterizer = RasterizeGaussians()

    def forward(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        opacities: Tensor,
        coeffs: Tensor,
        viewmats: Tensor,
        Ks: Tensor,  # noqa: N803 - gsplat's name
        backgrounds: Tensor,
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        radii, means2d, depths, conics = self.projection(means, quats, scales, viewmats, Ks, width, height)
        eyes = -(viewmats[:, :3, :3] * viewmats[:, :3, 3:]).sum(1)
        degree = round(coeffs.shape[2] ** 0.5) - 1
        colors = self.harmonics[degree](means - eyes[:, None], coeffs)
        columns, rows = num_tiles(width, height)
        capacity = self.config.capacity(len(means), means.shape[1], columns * rows)
        ids, offsets, num_isects = self.intersection(means2d, radii, depths, width, height, capacity)
        blended = self.rasterizer(means2d, conics, colors, opacities, ids, offsets, backgrounds, width, height)
        return *blended, num_isects

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return random_scenes(sizes, self.num_bases, generator)
