"""Gaussians in space as ellipses on a camera's image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastkernels.context import uses_reference
from fastkernels.kernels.gaussian_projection import gaussian_projection
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec, Vary, scalar

REACH = 3.33
"""Standard deviations beyond which a Gaussian is cut off: its alpha is below 1 / 255 there."""
_LEAST_DETERMINANT = 1e-10


_ROLLED = Vary(rolls="num_gaussians")
"""With every value another, a radius that the last bit decides would come up every few hundred calls."""


def _coupled(*axes: str, vary: Vary | None = None) -> TensorSpec:
    return TensorSpec(axes, role=Role.COUPLED, vary=vary)


class GaussianProjection(Op):
    """Centres, depths, inverse covariances and extents of Gaussians as a pinhole camera sees them.

    A covariance R(quats) diag(scales)^2 R^T goes through the camera's rotation and through the derivative of the
    projection at the centre (whose x/z and y/z are held to 1.3 times the field of view); eps2d is added to its
    diagonal. radii are the pixels to 3.33 deviations along x and y, 0 where a Gaussian is nearer than near_plane,
    further than far_plane or off the image.

    Shapes:  means: [batch, num_gaussians, 3]; quats: [batch, num_gaussians, 4] as w, x, y, z; scales: [batch,
             num_gaussians, 3]; viewmats: [batch, 4, 4], world to camera; Ks: [batch, 3, 3]; width, height: pixels;
             radii, means2d: [batch, num_gaussians, 2]; depths: [batch, num_gaussians]; conics: [batch, num_gaussians,
             3], the inverse covariance's xx, xy and yy.
    Dtypes:  float32, computed in at least float32; radii int32.
    Units:   means2d and radii in pixels.
    Returns: (radii, means2d, depths, conics). No argument is written to.
    Source:  Kerbl et al. 2023 (https://arxiv.org/abs/2308.04079), section 4; Zwicker et al. 2001; as
             _fully_fused_projection of gsplat's torch implementation, of one camera a scene.
    """

    spec = OpSpec(
        inputs={
            "means": _coupled("batch", "num_gaussians", "3", vary=Vary("num_gaussians", share=0.1, is_few=True)),
            "quats": _coupled("batch", "num_gaussians", "4", vary=_ROLLED),
            "scales": _coupled("batch", "num_gaussians", "3", vary=_ROLLED),
            "viewmats": _coupled("batch", "4", "4"),
            "Ks": _coupled("batch", "3", "3"),
            "width": scalar(),
            "height": scalar(),
        },
        outputs={
            "radii": TensorSpec(("batch", "num_gaussians", "2"), dtype="int32", compare=Compare.EXACT),
            "means2d": TensorSpec(("batch", "num_gaussians", "2")),
            "depths": TensorSpec(("batch", "num_gaussians")),
            "conics": TensorSpec(("batch", "num_gaussians", "3")),
        },
        dtypes=("float32",),
        example_axes={"batch": (2, 1), "num_gaussians": (67, 130), "width": (40, 65), "height": (33, 48)},
    )

    def __init__(self, eps2d: float = 0.3, near_plane: float = 0.01, far_plane: float = 1e10) -> None:
        super().__init__()
        self.eps2d, self.near_plane, self.far_plane = eps2d, near_plane, far_plane

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
        given = (means, quats, scales, viewmats, Ks, width, height)
        if uses_reference(means):
            return self.reference(*given)
        return gaussian_projection(*given, self.eps2d, self.near_plane, self.far_plane, REACH, _LEAST_DETERMINANT)

    def reference(
        self,
        means: Tensor,
        quats: Tensor,
        scales: Tensor,
        viewmats: Tensor,
        Ks: Tensor,  # noqa: N803
        width: int,
        height: int,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dtype = compute_dtype(means)
        view, camera = viewmats.to(dtype), Ks.to(dtype)
        rotation = view[:, None, :3, :3]
        centres = (rotation @ means.to(dtype)[..., None])[..., 0] + view[:, None, :3, 3]
        axes = rotation @ rotations(quats.to(dtype)) * scales.to(dtype)[..., None, :]
        spread = self._jacobian(centres, camera, width, height) @ axes
        covariance = spread @ spread.transpose(-1, -2)
        xx, xy, yy = covariance[..., 0, 0] + self.eps2d, covariance[..., 0, 1], covariance[..., 1, 1] + self.eps2d
        determinant = (xx * yy - xy * xy).clamp_min(_LEAST_DETERMINANT)
        conics = torch.stack([yy, -xy, xx], dim=-1) / determinant[..., None]
        depths = centres[..., 2].contiguous()
        means2d = (centres @ camera[:, :2].transpose(1, 2)) / depths[..., None]
        radii = (REACH * torch.stack([xx, yy], dim=-1).sqrt()).ceil()
        size = torch.tensor([width, height], dtype=dtype, device=means.device)
        is_seen = (depths > self.near_plane) & (depths < self.far_plane)
        is_seen &= ((means2d + radii > 0) & (means2d - radii < size)).all(-1)
        radii = torch.where(is_seen[..., None], radii, 0).to(torch.int32)
        return radii, means2d.to(means.dtype), depths.to(means.dtype), conics.to(means.dtype)

    def _jacobian(self, centres: Tensor, camera: Tensor, width: int, height: int) -> Tensor:
        """[batch, num_gaussians, 2, 3]: of the projection to pixels."""
        z = centres[..., 2]
        rows = []
        for axis, size in enumerate((width, height)):
            focal, middle = camera[:, axis, axis, None], camera[:, axis, 2, None]
            margin = 0.15 * size / focal
            slope = centres[..., axis] / z
            slope = torch.minimum(torch.maximum(slope, -middle / focal - margin), (size - middle) / focal + margin)
            row = [torch.zeros_like(z)] * 2
            row[axis] = focal / z
            rows.append(torch.stack([*row, -focal * slope / z], dim=-1))
        return torch.stack(rows, dim=-2)

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return random_views(sizes, generator)


def rotations(quats: Tensor) -> Tensor:
    """[..., 4] as w, x, y, z, of any length -> [..., 3, 3]."""
    w, x, y, z = normalize(quats, dim=-1).unbind(-1)
    rows = (
        *(1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def random_views(sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
    """Scenes before cameras that see most of them: some Gaussians are behind, near or off the image."""
    batch, num = sizes["batch"], sizes["num_gaussians"]
    focal = float(max(sizes["width"], sizes["height"]))
    cameras = torch.zeros(batch, 3, 3)
    cameras[:, 0, 0], cameras[:, 1, 1], cameras[:, 2, 2] = focal, 1.1 * focal, 1.0
    cameras[:, 0, 2], cameras[:, 1, 2] = 0.45 * sizes["width"], 0.55 * sizes["height"]
    views = torch.eye(4).repeat(batch, 1, 1)
    turns = torch.cat([torch.ones(batch, 1), 0.1 * torch.randn(batch, 3, generator=generator)], dim=1)
    views[:, :3, :3] = rotations(turns)
    views[:, 2, 3] = 3.0
    return {
        "means": torch.randn(batch, num, 3, generator=generator),
        "quats": normalize(torch.randn(batch, num, 4, generator=generator), dim=-1),
        "scales": 0.03 * 8 ** torch.rand(batch, num, 3, generator=generator),
        "viewmats": views,
        "Ks": cameras,
    }
