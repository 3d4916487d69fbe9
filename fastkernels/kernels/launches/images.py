"""Norms, sums and boxes of image models."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.batch_norm2d import batch_norm2d
from fastkernels.kernels.bias_add_residual import bias_add_residual
from fastkernels.kernels.conv_norm_act import Norm, conv_norm_act
from fastkernels.kernels.depthwise_conv_norm_act import depthwise_conv_norm_act
from fastkernels.kernels.dfl_boxes import dfl_boxes
from fastkernels.kernels.group_norm import group_norm
from fastkernels.kernels.launch import BF16, FP16, Launch, meta
from fastkernels.kernels.max_pool2d import max_pool2d

_CONVS = (
    # whose, batch, channels of each input, side, outputs, kernel, stride
    *(("YOLOv10-N", 32, (3,), 640, 16, 3, 2), ("YOLOv10-N", 32, (16,), 320, 32, 3, 2)),
    *(("YOLOv10-N", 32, (16,), 160, 16, 3, 1), ("YOLOv10-N", 32, (32, 16), 160, 32, 1, 1)),
    *(("YOLOv10-N", 32, (64, 32, 32), 80, 64, 1, 1), ("YOLOv10-N", 32, (80,), 80, 80, 1, 1)),
    *(("YOLOv10-N", 32, (64,), 80, 64, 3, 1), ("YOLOv10-N", 32, (256, 128), 40, 128, 1, 1)),
    *(("YOLOv10-N", 32, (128,), 20, 128, 3, 1), ("YOLOv10-N", 32, (128,) * 4, 20, 256, 1, 1)),
    *(("YOLOv10-N", 1, (3,), 640, 16, 3, 2), ("YOLOv10-N", 1, (128,), 20, 128, 3, 1)),
    *(("YOLOv10-N", 1, (128,) * 4, 20, 256, 1, 1), ("YOLOv10-N", 1, (64, 32, 32), 80, 64, 1, 1)),
    *(("YOLOv10-N", 1, (64,), 40, 64, 3, 1), ("YOLOv10-N", 1, (32,), 80, 32, 3, 1)),
    *(("YOLOv10-M", 32, (48,), 320, 96, 3, 2), ("YOLOv10-M", 32, (144,), 20, 144, 3, 1)),
    *(("YOLOv10-X", 32, (160,), 80, 160, 3, 1), ("YOLOv10-X", 32, (320, 160, 160, 160), 40, 640, 1, 1)),
)
_DEPTHWISE = (
    # whose, batch, channels, side, kernel, stride
    *(("YOLOv10-N", 32, 80, 80, 3, 1), ("YOLOv10-N", 32, 128, 80, 3, 2), ("YOLOv10-N", 32, 256, 20, 7, 1)),
    *(("YOLOv10-N", 1, 80, 20, 3, 1), ("YOLOv10-N", 1, 256, 40, 3, 2), ("YOLOv10-N", 1, 256, 20, 7, 1)),
    ("YOLOv10-X", 32, 640, 20, 3, 1),
)


def launches() -> Iterator[Launch]:
    for model, batch, channels, side, has_silu in (
        ("SDXL", 2, 320, 128, True),
        ("SDXL", 2, 1280, 32, False),
        ("SDXL", 2, 2560, 32, True),
        ("SDXL decoder", 1, 512, 128, True),
        ("SDXL decoder", 1, 128, 1024, True),
    ):
        for order in (torch.contiguous_format, torch.channels_last):

            def by_group(
                dtype: torch.dtype,
                shape: tuple[int, int, int] = (batch, channels, side),
                has_silu: bool = has_silu,
                order: torch.memory_format = order,
            ) -> None:
                x = meta(*shape, shape[2], dtype=dtype).to(memory_format=order)
                weight = meta(shape[1], dtype=dtype)
                group_norm(x, 32, weight, weight, 1e-5, has_silu)
                if has_silu and order is torch.channels_last:
                    group_norm(x, 32, weight, weight, 1e-5, has_silu, meta(*shape[:2], dtype=dtype))

            def add(
                dtype: torch.dtype,
                shape: tuple[int, int, int] = (batch, channels, side),
                order: torch.memory_format = order,
            ) -> None:
                x, bias = meta(*shape, shape[2], dtype=dtype).to(memory_format=order), meta(shape[1], dtype=dtype)
                bias_add_residual(x, x, bias)
                bias_add_residual(x, x, bias, bias)

            layout = "channels last" if order is torch.channels_last else "planes"
            name = f"group_norm of {channels} x {side} x {side}, {layout}"
            yield Launch(model, name, by_group, is_tested=channels == 320)
            name = f"bias_add_residual of {channels} x {side} x {side}, {layout}"
            yield Launch(model, name, add, is_tested=channels == 320)
    for channels, side in ((16, 320), (64, 80), (80, 20), (256, 20)):

        def by_channel(dtype: torch.dtype, channels: int = channels, side: int = side) -> None:
            each = (meta(channels, dtype=dtype),) * 4
            x = meta(8, channels, side, side, dtype=dtype)
            for has_silu in (False, True):
                batch_norm2d(x, *each, 1e-3, has_silu)
                batch_norm2d(x.to(memory_format=torch.channels_last), *each, 1e-3, has_silu)

        name = f"batch_norm2d of {channels} x {side} x {side}"
        yield Launch("YOLOv10-N", name, by_channel, is_tested=channels == 64)

    yield from _convolutions()

    def boxes(dtype: torch.dtype) -> None:
        for stride, side in ((8, 80), (16, 40), (32, 20)):
            dfl_boxes(meta(1, 64, side, side, dtype=dtype), 16, stride)

    yield Launch("YOLOv10-N", "dfl_boxes", boxes, is_tested=True)


def _convolutions() -> Iterator[Launch]:
    halves, last = (BF16, FP16), torch.channels_last
    for model, batch, widths, side, num_outputs, kernel, stride in _CONVS:

        def dense(
            dtype: torch.dtype,
            shape: tuple[int, tuple[int, ...], int] = (batch, widths, side),
            num_outputs: int = num_outputs,
            window: tuple[int, int] = (kernel, stride),
        ) -> None:
            (batch, widths, side), (kernel, stride) = shape, window
            parts = [meta(batch, c, side, side, dtype=dtype).to(memory_format=last) for c in widths]
            weight = meta(num_outputs, sum(widths), kernel, kernel, dtype=dtype).to(memory_format=last)
            norm = Norm(*(meta(num_outputs, dtype=dtype),) * 4, 1e-3, has_silu=True)
            y = conv_norm_act(parts, weight, norm, stride)
            if len(widths) == stride == 1:
                conv_norm_act(parts, weight, norm, stride, y)

        name = f"conv_norm_act of {batch} x {'+'.join(map(str, widths))} x {side} x {side} to {num_outputs}, {kernel}"
        is_tested = (batch, side) in ((32, 640), (32, 160), (1, 20)) and kernel > 1
        yield Launch(model, f"{name} by {stride}", dense, halves, is_tested)
    for model, batch, channels, side, kernel, stride in _DEPTHWISE:

        def depthwise(
            dtype: torch.dtype,
            shape: tuple[int, int, int] = (batch, channels, side),
            window: tuple[int, int] = (kernel, stride),
        ) -> None:
            (batch, channels, side), (kernel, stride) = shape, window
            x = meta(batch, channels, side, side, dtype=dtype).to(memory_format=last)
            norm = Norm(*(meta(channels, dtype=dtype),) * 4, 1e-3, has_silu=True)
            y = depthwise_conv_norm_act(x, meta(channels, 1, kernel, kernel, dtype=dtype), norm, stride)
            if stride == 1:
                depthwise_conv_norm_act(x, meta(channels, 1, kernel, kernel, dtype=dtype), norm, stride, y, True)

        name = f"depthwise_conv_norm_act of {batch} x {channels} x {side} x {side}, {kernel} by {stride}"
        yield Launch(model, name, depthwise, halves, is_tested=(batch, side) == (1, 20))
    for batch in (1, 32):

        def pool(dtype: torch.dtype, batch: int = batch) -> None:
            max_pool2d(meta(batch, 128, 20, 20, dtype=dtype).to(memory_format=last), 5, 1, 2)

        yield Launch("YOLOv10-N", f"max_pool2d of {batch} x 128 x 20 x 20, 5 by 1", pool, halves, is_tested=batch == 1)
