"""Gaussians in space to ellipses on an image: each is read once, by one thread, and written once."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_BLOCK = 128


@triton.jit
def _load(ptr, row, WIDTH: tl.constexpr, column: tl.constexpr, mask):
    return tl.load(ptr + row * WIDTH + column, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _least(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _most(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _slope_limit(place, depth, focal, middle, size):
    """place / depth, held to 1.3 times the field of view."""
    margin = 0.15 * size / focal
    slope = _most(tl.div_rn(place, depth), -middle / focal - margin)
    return _least(slope, (size - middle) / focal + margin)


@triton.jit
def _projection_kernel(
    means_ptr, quats_ptr, scales_ptr, view_ptr, camera_ptr, radii_ptr, means2d_ptr, depths_ptr, conics_ptr,
    num_gaussians, width, height, eps2d, near_plane, far_plane, reach, least_determinant, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    gaussian = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = gaussian < num_gaussians
    row = batch * num_gaussians + gaussian
    view, camera = view_ptr + 16 * batch, camera_ptr + 9 * batch
    v00, v01, v02, v03 = tl.load(view), tl.load(view + 1), tl.load(view + 2), tl.load(view + 3)
    v10, v11, v12, v13 = tl.load(view + 4), tl.load(view + 5), tl.load(view + 6), tl.load(view + 7)
    v20, v21, v22, v23 = tl.load(view + 8), tl.load(view + 9), tl.load(view + 10), tl.load(view + 11)
    focal_x, skew_x, middle_x = tl.load(camera), tl.load(camera + 1), tl.load(camera + 2)
    skew_y, focal_y, middle_y = tl.load(camera + 3), tl.load(camera + 4), tl.load(camera + 5)

    px, py, pz = _load(means_ptr, row, 3, 0, mask), _load(means_ptr, row, 3, 1, mask), _load(means_ptr, row, 3, 2, mask)
    x = v00 * px + v01 * py + v02 * pz + v03
    y = v10 * px + v11 * py + v12 * pz + v13
    z = v20 * px + v21 * py + v22 * pz + v23

    qw, qx = _load(quats_ptr, row, 4, 0, mask), _load(quats_ptr, row, 4, 1, mask)
    qy, qz = _load(quats_ptr, row, 4, 2, mask), _load(quats_ptr, row, 4, 3, mask)
    length = tl.maximum(tl.sqrt_rn(qw * qw + qx * qx + qy * qy + qz * qz), 1e-12)
    qw, qx, qy, qz = tl.div_rn(qw, length), tl.div_rn(qx, length), tl.div_rn(qy, length), tl.div_rn(qz, length)
    sx, sy = _load(scales_ptr, row, 3, 0, mask), _load(scales_ptr, row, 3, 1, mask)
    sz = _load(scales_ptr, row, 3, 2, mask)

    over_x, over_y = tl.div_rn(focal_x, z), tl.div_rn(focal_y, z)
    down_x = -over_x * _slope_limit(x, z, focal_x, middle_x, width)
    down_y = -over_y * _slope_limit(y, z, focal_y, middle_y, height)
    # Rows of the projection's derivative times the camera's rotation, then times each column of axes.
    ax, ay, az = over_x * v00 + down_x * v20, over_x * v01 + down_x * v21, over_x * v02 + down_x * v22
    bx, by, bz = over_y * v10 + down_y * v20, over_y * v11 + down_y * v21, over_y * v12 + down_y * v22
    r00, r01, r02 = 1.0 - 2.0 * (qy * qy + qz * qz), 2.0 * (qx * qy - qw * qz), 2.0 * (qx * qz + qw * qy)
    r10, r11, r12 = 2.0 * (qx * qy + qw * qz), 1.0 - 2.0 * (qx * qx + qz * qz), 2.0 * (qy * qz - qw * qx)
    r20, r21, r22 = 2.0 * (qx * qz - qw * qy), 2.0 * (qy * qz + qw * qx), 1.0 - 2.0 * (qx * qx + qy * qy)
    a0, b0 = (ax * r00 + ay * r10 + az * r20) * sx, (bx * r00 + by * r10 + bz * r20) * sx
    a1, b1 = (ax * r01 + ay * r11 + az * r21) * sy, (bx * r01 + by * r11 + bz * r21) * sy
    a2, b2 = (ax * r02 + ay * r12 + az * r22) * sz, (bx * r02 + by * r12 + bz * r22) * sz
    xx = a0 * a0 + a1 * a1 + a2 * a2 + eps2d
    xy = a0 * b0 + a1 * b1 + a2 * b2
    yy = b0 * b0 + b1 * b1 + b2 * b2 + eps2d

    determinant = _most(xx * yy - xy * xy, least_determinant)
    u = tl.div_rn(focal_x * x + skew_x * y + middle_x * z, z)
    v = tl.div_rn(skew_y * x + focal_y * y + middle_y * z, z)
    radius_x, radius_y = tl.ceil(reach * tl.sqrt_rn(xx)), tl.ceil(reach * tl.sqrt_rn(yy))
    is_seen = (z > near_plane) & (z < far_plane) & (u + radius_x > 0) & (u - radius_x < width)
    is_seen = is_seen & (v + radius_y > 0) & (v - radius_y < height)
    tl.store(radii_ptr + 2 * row, tl.where(is_seen, radius_x, 0.0).to(tl.int32), mask=mask)
    tl.store(radii_ptr + 2 * row + 1, tl.where(is_seen, radius_y, 0.0).to(tl.int32), mask=mask)
    kind = means2d_ptr.dtype.element_ty
    tl.store(means2d_ptr + 2 * row, u.to(kind), mask=mask)
    tl.store(means2d_ptr + 2 * row + 1, v.to(kind), mask=mask)
    tl.store(depths_ptr + row, z.to(kind), mask=mask)
    tl.store(conics_ptr + 3 * row, tl.div_rn(yy, determinant).to(kind), mask=mask)
    tl.store(conics_ptr + 3 * row + 1, tl.div_rn(-xy, determinant).to(kind), mask=mask)
    tl.store(conics_ptr + 3 * row + 2, tl.div_rn(xx, determinant).to(kind), mask=mask)


def gaussian_projection(
    means: Tensor,
    quats: Tensor,
    scales: Tensor,
    viewmats: Tensor,
    cameras: Tensor,
    width: int,
    height: int,
    eps2d: float,
    near_plane: float,
    far_plane: float,
    reach: float,
    least_determinant: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(radii, means2d, depths, conics) in float32, as the op GaussianProjection.

    reach: deviations that radii hold; least_determinant: of a covariance, where it is inverted.

    Shapes:  means, scales: [batch, num_gaussians, 3]; quats: [batch, num_gaussians, 4]; viewmats: [batch, 4, 4];
             cameras: [batch, 3, 3]; radii (int32), means2d: [batch, num_gaussians, 2]; depths: [batch, num_gaussians];
             conics: [batch, num_gaussians, 3].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("gaussian_projection", means=means, quats=quats, scales=scales, viewmats=viewmats, cameras=cameras)
    shape = means.shape[:2]
    radii = torch.empty((*shape, 2), dtype=torch.int32, device=means.device)
    means2d, depths, conics = (
        torch.empty((*shape, *last), dtype=means.dtype, device=means.device) for last in ((2,), (), (3,))
    )
    if depths.numel() == 0:
        return radii, means2d, depths, conics
    dense = [t.contiguous() for t in (means, quats, scales)]
    views = [t.float().contiguous() for t in (viewmats, cameras)]
    _projection_kernel[(triton.cdiv(shape[1], _BLOCK), shape[0])](
        *dense, *views, radii, means2d, depths, conics, shape[1], float(width), float(height),
        eps2d, near_plane, far_plane, reach, least_determinant, BLOCK=_BLOCK, num_warps=_BLOCK // 32,
    )  # fmt: skip
    return radii, means2d, depths, conics
