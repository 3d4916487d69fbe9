"""A sum of two images and of a number for each channel; a program a tile of positions by channels, or of planes."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import (
    check_dtypes,
    dependent_launch,
    let_dependents_start,
    tl,
    triton,
    wait_for_dependencies,
)

_TILE = 4096
"""Elements of 4 warps: 32 a thread, 64 bytes of each image in 16-bit dtypes."""

_MOST_CHANNELS, _MOST_POSITIONS = 64, 1024
"""Of a tile: 128 bytes a position of 16-bit dtypes; in planes what a warp's threads read side by side and more."""


@triton.jit(do_not_specialize=["num_rows", "num_channels", "num_blocks"])
def _bias_add_residual_kernel(
    x_ptr, residual_ptr, bias_ptr, residual_bias_ptr, y_ptr, num_rows, num_columns, num_channels, num_blocks,
    IS_CHANNELS_LAST: tl.constexpr, HAS_RESIDUAL_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Rows are positions of channels where those are last, else planes of positions."""
    let_dependents_start(PDL)
    wait_for_dependencies(PDL)
    pid = tl.program_id(0)
    row = (pid // num_blocks) * ROWS + tl.arange(0, ROWS)
    column = (pid % num_blocks) * COLUMNS + tl.arange(0, COLUMNS)
    is_row, is_column = row < num_rows, column < num_columns
    place = row.to(tl.int64)[:, None] * num_columns + column[None, :]
    mask = is_row[:, None] & is_column[None, :]
    x = tl.load(x_ptr + place, mask=mask, other=0.0).to(tl.float32)
    residual = tl.load(residual_ptr + place, mask=mask, other=0.0).to(tl.float32)
    if IS_CHANNELS_LAST:
        channel, is_channel = column, is_column
    else:
        channel, is_channel = row % num_channels, is_row
    bias = tl.load(bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    if HAS_RESIDUAL_BIAS:
        bias += tl.load(residual_bias_ptr + channel, mask=is_channel, other=0.0).to(tl.float32)
    y = x + residual + (bias[None, :] if IS_CHANNELS_LAST else bias[:, None])
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=mask)


def bias_add_residual(x: Tensor, residual: Tensor, bias: Tensor, residual_bias: Tensor | None = None) -> Tensor:
    """x + residual + bias (+ residual_bias), the biases channel by channel, in float32, rounded once.

    Shapes:  x, residual, returned y: [batch, num_channels, ...]; bias, residual_bias: [num_channels].
    Returns: y, channels last when x is, else contiguous.
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("bias_add_residual", x=x, residual=residual, bias=bias, residual_bias=residual_bias)
    is_channels_last = x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()
    if is_channels_last:
        residual = residual.movedim(1, -1).contiguous()
    else:
        x, residual = x.contiguous(), residual.contiguous()
    y = torch.empty_like(x)
    if x.numel() == 0:
        return y
    num_channels, num_positions = x.shape[1], x[0, 0].numel()
    num_columns, most = (num_channels, _MOST_CHANNELS) if is_channels_last else (num_positions, _MOST_POSITIONS)
    num_rows = x.numel() // num_columns
    columns = max(16, min(most, triton.next_power_of_2(num_columns)))
    rows, num_blocks = _TILE // columns, triton.cdiv(num_columns, columns)
    _bias_add_residual_kernel[(triton.cdiv(num_rows, rows) * num_blocks,)](
        x, residual, bias, bias if residual_bias is None else residual_bias, y,
        num_rows, num_columns, num_channels, num_blocks,
        IS_CHANNELS_LAST=is_channels_last, HAS_RESIDUAL_BIAS=residual_bias is not None, ROWS=rows, COLUMNS=columns,
        num_warps=4, **dependent_launch(x.device),
    )  # fmt: skip
    return y
