"""A colour that depends on the direction from which it is seen."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastkernels.context import uses_reference
from fastkernels.kernels.spherical_harmonics import spherical_harmonics
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec

_MAX_DEGREE = 3


def _bases(direction: Tensor, degree: int) -> Tensor:
    """[..., (degree + 1)^2]: the real spherical harmonics of unit vectors, in the order and with the signs of 3DGS."""
    x, y, z = direction.unbind(-1)
    found = [torch.full_like(x, 0.28209479177387814)]
    if degree > 0:
        c = 0.4886025119029199
        found += [-c * y, c * z, -c * x]
    if degree > 1:
        c = 1.0925484305920792
        found += [c * x * y, -c * y * z, 0.31539156525252005 * (3 * z * z - 1), -c * x * z, c / 2 * (x * x - y * y)]
    if degree > 2:
        a, b, c = 0.5900435899266435, 2.890611442640554, 0.4570457994644658
        found += [
            -a * y * (3 * x * x - y * y),
            b * x * y * z,
            -c * y * (5 * z * z - 1),
            0.3731763325901154 * z * (5 * z * z - 3),
            -c * x * (5 * z * z - 1),
            b / 2 * z * (x * x - y * y),
            -a * x * (x * x - 3 * y * y),
        ]
    return torch.stack(found, dim=-1)


class SphericalHarmonics(Op):
    """colors = max(0, 1/2 + sum over k of Y_k(dirs / |dirs|) * coeffs[k]).

    Shapes:  dirs, colors: [..., 3]; coeffs: [..., num_bases, 3], num_bases = (degree + 1)^2.
    Dtypes:  bf16, fp16 or fp32; computed in fp32 and rounded once.
    Returns: colors. No argument is written to.
    Errors:  ValueError for a degree over 3, or when there are other than num_bases coefficients.
    Source:  Kerbl et al. 2023 (https://arxiv.org/abs/2308.04079); as spherical_harmonics of gsplat with the shift and
             the clamp that its rasterization applies.
    """

    spec = OpSpec(
        inputs={"dirs": TensorSpec(("...", "3")), "coeffs": TensorSpec(("...", "num_bases", "3"))},
        outputs={"colors": TensorSpec(("...", "3"))},
        examples=({"degree": 3}, {"degree": 1}, {"degree": 0}),
    )

    def __init__(self, degree: int) -> None:
        super().__init__()
        if not 0 <= degree <= _MAX_DEGREE:
            raise ValueError(f"SphericalHarmonics has degrees 0 to {_MAX_DEGREE}, got {degree}.")
        self.degree, self.num_bases = degree, (degree + 1) ** 2

    def forward(self, dirs: Tensor, coeffs: Tensor) -> Tensor:
        if coeffs.shape != (*dirs.shape[:-1], self.num_bases, 3):
            raise ValueError(f"SphericalHarmonics of degree {self.degree} got {dirs.shape} and {coeffs.shape}.")
        return self.reference(dirs, coeffs) if uses_reference(dirs) else spherical_harmonics(dirs, coeffs, self.degree)

    def reference(self, dirs: Tensor, coeffs: Tensor) -> Tensor:
        dtype = compute_dtype(dirs)
        bases = _bases(normalize(dirs.to(dtype), dim=-1), self.degree)
        return ((bases[..., None] * coeffs.to(dtype)).sum(-2) + 0.5).clamp_min(0).to(dirs.dtype)
