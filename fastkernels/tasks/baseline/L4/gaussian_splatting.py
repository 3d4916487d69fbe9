"""3D Gaussian splatting: a scene of Gaussians and a camera in, an image out. The model has no weights of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import OpSpec
from fastkernels.tasks.baseline.L2.gaussian_renderer import (
    EXAMPLE_AXES,
    IMAGE_OUTPUTS,
    SCENE_INPUTS,
    GaussianRenderer,
    random_scenes,
)
from fastkernels.tasks.configs.gaussian_splatting import GaussianSplattingConfig


class GaussianSplatting(Op):
    """(image, alphas, num_isects) = renderer(scenes, cameras), an image for each scene.

    Shapes:  means, scales: [batch, num_gaussians, 3]; quats: [batch, num_gaussians, 4]; opacities: [batch,
             num_gaussians]; coeffs: [batch, num_gaussians, num_bases, 3]; viewmats: [batch, 4, 4]; Ks: [batch, 3, 3];
             backgrounds: [batch, 3]; image: [batch, height, width, 3]; alphas: [batch, height, width, 1]; num_isects:
             [batch].
    Dtypes:  float32; num_isects int64.
    Units:   opacities in [0, 1], scales positive: not their logits and logarithms, as .ply files have them.
    Returns: (image, alphas, num_isects), as GaussianRenderer. No argument is written to.
    Source:  Kerbl et al. 2023 (https://arxiv.org/abs/2308.04079); as rasterization of gsplat, of one camera a scene.
    """

    spec = OpSpec(
        inputs=SCENE_INPUTS,
        outputs=IMAGE_OUTPUTS,
        dtypes=("float32",),
        examples=({"config": GaussianSplattingConfig.tiny()}, {"config": GaussianSplattingConfig.tiny(sh_degree=1)}),
        example_axes=EXAMPLE_AXES,
    )

    def __init__(self, config: GaussianSplattingConfig, prefix: str = "") -> None:
        super().__init__()
        self.config, self.num_bases = config, (config.sh_degree + 1) ** 2
        self.renderer = GaussianRenderer(config)

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
        return self.renderer(means, quats, scales, opacities, coeffs, viewmats, Ks, backgrounds, width, height)

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return random_scenes(sizes, self.num_bases, generator)
