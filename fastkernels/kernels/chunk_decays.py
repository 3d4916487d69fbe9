"""What scans over chunks share: sums of decays in pairs of fp32, what is left between rows, products of tiles."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from fastkernels.kernels.backend import tl, triton


@triton.jit
def dot(a, b, IS_EXACT: tl.constexpr):
    """a @ b, summed in fp32: of fp32 operands, or of them rounded to bf16."""
    if IS_EXACT:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))


@triton.jit
def sum_decays(decay, IS_WIDE: tl.constexpr):
    """Of a chunk's logarithms of decays: sums up to each row and what fp32 drops of them; the same of all rows.

    IS_WIDE: made in fp64. Of sums near 3,000 fp32 holds differences to 2.4e-4, less than a rounding to bf16 drops.
    """
    if IS_WIDE:
        sums, end = tl.cumsum(decay.to(tl.float64), axis=0), tl.sum(decay.to(tl.float64), axis=0)
        total, last = sums.to(tl.float32), end.to(tl.float32)
        return total, (sums - total).to(tl.float32), last, (end - last).to(tl.float32)
    else:
        return tl.cumsum(decay, axis=0), tl.zeros_like(decay), tl.sum(decay, axis=0), 0.0


@triton.jit
def decays_between(total, low, rows):
    """By row what is left of each row up to it; 0 above the diagonal, where the difference might overflow."""
    apart = (total[:, None] - total[None, :]) + (low[:, None] - low[None, :])
    return tl.exp(tl.where(rows[:, None] >= rows[None, :], apart, float("-inf")))
