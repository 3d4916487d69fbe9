"""Colours by direction: a tile of Gaussians' coefficients in one coalesced read, their bases computed beside it."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_BLOCK = 64


@triton.jit
def _in_turn(a, b, c, d):
    """[n, 4 m] of four [n, m] or [n]: their first numbers, then their second ones."""
    both = tl.join(tl.join(a, c), tl.join(b, d))
    return tl.reshape(both, [a.shape[0], a.numel // a.shape[0] * 4])


@triton.jit
def _up_to_1(x, y, z, DEGREE: tl.constexpr):
    """[n, 4]: the real spherical harmonics up to DEGREE in the order and with the signs of 3DGS, then 0."""
    none = tl.zeros_like(x)
    b0 = none + 0.28209479177387814
    b1 = -0.4886025119029199 * y if DEGREE > 0 else none
    b2 = 0.4886025119029199 * z if DEGREE > 0 else none
    b3 = -0.4886025119029199 * x if DEGREE > 0 else none
    return _in_turn(b0, b1, b2, b3)


@triton.jit
def _up_to_3(x, y, z, DEGREE: tl.constexpr):
    """[n, 16]: the same for a DEGREE of 2 or 3."""
    none = tl.zeros_like(x)
    b0 = none + 0.28209479177387814
    b1 = -0.4886025119029199 * y
    b2 = 0.4886025119029199 * z
    b3 = -0.4886025119029199 * x
    b4 = 1.0925484305920792 * x * y
    b5 = -1.0925484305920792 * y * z
    b6 = 0.31539156525252005 * (3.0 * z * z - 1.0)
    b7 = -1.0925484305920792 * x * z
    b8 = 0.5462742152960396 * (x * x - y * y)
    b9 = -0.5900435899266435 * y * (3.0 * x * x - y * y) if DEGREE > 2 else none
    b10 = 2.890611442640554 * x * y * z if DEGREE > 2 else none
    b11 = -0.4570457994644658 * y * (5.0 * z * z - 1.0) if DEGREE > 2 else none
    b12 = 0.3731763325901154 * z * (5.0 * z * z - 3.0) if DEGREE > 2 else none
    b13 = -0.4570457994644658 * x * (5.0 * z * z - 1.0) if DEGREE > 2 else none
    b14 = 1.445305721320277 * z * (x * x - y * y) if DEGREE > 2 else none
    b15 = -0.5900435899266435 * x * (x * x - 3.0 * y * y) if DEGREE > 2 else none
    return _in_turn(
        _in_turn(b0, b4, b8, b12), _in_turn(b1, b5, b9, b13), _in_turn(b2, b6, b10, b14), _in_turn(b3, b7, b11, b15)
    )


@triton.jit
def _harmonics_kernel(
    dirs_ptr, coeffs_ptr, colors_ptr, num_rows,
    DEGREE: tl.constexpr, NUM_BASES: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    is_row = rows < num_rows
    # In one row, so that lanes lie along it: four places a base, of which three are a color's.
    column = tl.arange(0, 4 * BLOCK_K)
    base, channel = column // 4, column % 4
    is_coeff = is_row[:, None] & ((base < NUM_BASES) & (channel < 3))[None, :]
    place = rows[:, None] * (3 * NUM_BASES) + (3 * base + channel)[None, :]
    coeffs = tl.reshape(tl.load(coeffs_ptr + place, mask=is_coeff, other=0.0), [BLOCK, BLOCK_K, 4]).to(tl.float32)
    x = tl.load(dirs_ptr + 3 * rows, mask=is_row, other=1.0).to(tl.float32)
    y = tl.load(dirs_ptr + 3 * rows + 1, mask=is_row, other=1.0).to(tl.float32)
    z = tl.load(dirs_ptr + 3 * rows + 2, mask=is_row, other=1.0).to(tl.float32)
    length = tl.maximum(tl.sqrt(x * x + y * y + z * z), 1e-12)
    x, y, z = x / length, y / length, z / length
    bases = _up_to_1(x, y, z, DEGREE) if DEGREE < 2 else _up_to_3(x, y, z, DEGREE)
    colors = tl.sum(bases[:, :, None] * coeffs, axis=1) + 0.5
    colors = tl.maximum(colors, 0.0, propagate_nan=tl.PropagateNan.ALL)
    color = tl.arange(0, 4)[None, :]
    out = colors_ptr + rows[:, None] * 3 + color
    tl.store(out, colors.to(colors_ptr.dtype.element_ty), mask=is_row[:, None] & (color < 3))


def spherical_harmonics(dirs: Tensor, coeffs: Tensor, degree: int) -> Tensor:
    """max(0, 1/2 + the sum of the harmonics of dirs / |dirs| times coeffs) in float32, of a degree from 0 to 3.

    Shapes:  dirs, the result: [..., 3]; coeffs: [..., (degree + 1)^2, 3].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("spherical_harmonics", dirs=dirs, coeffs=coeffs)
    colors = torch.empty(dirs.shape, dtype=dirs.dtype, device=dirs.device)
    num_rows = dirs.numel() // 3
    if num_rows == 0:
        return colors
    _harmonics_kernel[(triton.cdiv(num_rows, _BLOCK),)](
        dirs.contiguous(), coeffs.contiguous(), colors, num_rows, DEGREE=degree, NUM_BASES=(degree + 1) ** 2,
        BLOCK_K=4 if degree < 2 else 16, BLOCK=_BLOCK, num_warps=4,
    )  # fmt: skip
    return colors
