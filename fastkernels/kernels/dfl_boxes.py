"""Boxes from distributions over the distances to their sides: a program a stretch of one image's places."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton

_ELEMENTS = 2048


@triton.jit
def _dfl_boxes_kernel(
    x_ptr, boxes_ptr, num_places, width, stride, stride_batch, stride_channel, stride_row, stride_column,
    REG_MAX: tl.constexpr, PLACES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    batch = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    is_place = place < num_places
    row, column = place // width, place % width
    side, bins = tl.arange(0, 4), tl.arange(0, BLOCK)
    pixel = batch * stride_batch + row.to(tl.int64) * stride_row + column.to(tl.int64) * stride_column
    channel = (side[:, None] * REG_MAX + bins[None, :]).to(tl.int64) * stride_channel
    is_bin = (bins < REG_MAX)[None, None, :]
    at = x_ptr + pixel[:, None, None] + channel[None, :, :]
    x = tl.load(at, mask=is_place[:, None, None] & is_bin, other=0.0).to(tl.float32)
    x = tl.where(is_bin, x, float("-inf"))
    shares = tl.exp(x - tl.max(x, axis=2)[:, :, None])
    distance = tl.sum(shares * bins.to(tl.float32)[None, None, :], axis=2) / tl.sum(shares, axis=2)
    centre = tl.where((side % 2 == 0)[None, :], column[:, None], row[:, None]).to(tl.float32) + 0.5
    boxes = (centre + tl.where((side < 2)[None, :], -distance, distance)) * stride
    out = (batch * num_places + place)[:, None] * 4 + side[None, :]
    tl.store(boxes_ptr + out, boxes, mask=is_place[:, None])


def dfl_boxes(x: Tensor, reg_max: int, stride: int) -> Tensor:
    """stride * (centre -+ the mean bin of the softmax of each side), float32.

    Shapes:  x: [batch, 4 * reg_max, height, width], any strides; the result: [batch, height * width, 4].
    Errors:  UnsupportedError for a dtype other than bf16, fp16, fp32.
    """
    check_dtypes("dfl_boxes", x=x)
    batch, _, height, width = x.shape
    boxes = torch.empty((batch, height * width, 4), dtype=torch.float32, device=x.device)
    if boxes.numel() == 0:
        return boxes
    block = triton.next_power_of_2(reg_max)
    places = max(1, min(_ELEMENTS // (4 * block), triton.next_power_of_2(height * width)))
    _dfl_boxes_kernel[(triton.cdiv(height * width, places), batch)](
        x, boxes, height * width, width, stride, *x.stride(),
        REG_MAX=reg_max, PLACES=places, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return boxes
