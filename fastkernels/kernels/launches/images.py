"""Norms, sums and boxes of image models."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.kernels.batch_norm2d import batch_norm2d
from fastkernels.kernels.bias_add_residual import bias_add_residual
from fastkernels.kernels.dfl_boxes import dfl_boxes
from fastkernels.kernels.group_norm import group_norm
from fastkernels.kernels.launch import Launch, meta


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

    def boxes(dtype: torch.dtype) -> None:
        for stride, side in ((8, 80), (16, 40), (32, 20)):
            dfl_boxes(meta(1, 64, side, side, dtype=dtype), 16, stride)

    yield Launch("YOLOv10-N", "dfl_boxes", boxes, is_tested=True)
