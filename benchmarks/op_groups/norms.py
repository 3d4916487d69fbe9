"""Layer norms and sums, group norms with SiLU, sums of images, and convolutions with batch norm and SiLU."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, silu

from fastkernels.tasks.baseline.L1.addcmul import Addcmul
from fastkernels.tasks.baseline.L1.bias_add_residual import BiasAddResidual
from fastkernels.tasks.baseline.L1.group_norm import GroupNorm
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU
from op_groups.bench import Bench, Row


def rows(bench: Bench) -> Iterator[Row]:
    dino, bge = bench.config("dinov3-vit7b16", "tiny-dinov3"), bench.config("bge-m3", "tiny-bge_m3")
    for model, n, width, eps in (
        ("DINOv3-7B", 64 * 201, dino.hidden_size, dino.layer_norm_eps),
        ("BGE-M3", 20480, bge.hidden_size, bge.layer_norm_eps),
        ("BGE-M3", 32, bge.hidden_size, bge.layer_norm_eps),
    ):
        n, init = bench.size(n, 6), {"normalized_shape": width, "eps": eps}
        op = bench.build(LayerNorm, init, torch.bfloat16)
        yield bench.row(model, f"{n} x {width}", op, lambda n=n, width=width: (bench.randn(n, width),), init=init)
    yield from _sums(bench)
    yield from _group_norms(bench)
    yield from _image_sums(bench)
    yield from _convolutions(bench)


def _sums(bench: Bench) -> Iterator[Row]:
    """A layer's sum: with the norm behind it, and at a layer's end alone. DINOv3 scales what is added."""
    dino, bge = bench.config("dinov3-vit7b16", "tiny-dinov3"), bench.config("bge-m3", "tiny-bge_m3")
    whisper, dlrm = bench.config("whisper-large-v3", "tiny-whisper"), bench.config("dlrm-v2", "tiny-dlrmv2")
    for model, n, width, eps, is_scaled, returns_sum in (
        ("DINOv3-7B", 64 * 201, dino.hidden_size, dino.layer_norm_eps, True, True),
        ("DINOv3-7B", 64 * 201, dino.hidden_size, dino.layer_norm_eps, False, True),
        ("BGE-M3", 20480, bge.hidden_size, bge.layer_norm_eps, False, False),
        ("BGE-M3", 32, bge.hidden_size, bge.layer_norm_eps, False, False),
        ("Whisper-large-v3", 16, whisper.d_model, 1e-5, False, True),
    ):
        n = bench.size(n, 6)
        init = {"normalized_shape": width, "eps": eps, "returns_sum": returns_sum}
        op = bench.build(LayerNorm, init, torch.bfloat16)

        def make(n: int = n, width: int = width, is_scaled: bool = is_scaled) -> tuple[Tensor, ...]:
            return (bench.randn(n, width), bench.randn(n, width), *([bench.randn(width)] if is_scaled else []))

        scaled, kept = "scaled, " if is_scaled else "", "" if returns_sum else ", not kept"
        yield bench.row(model, f"{n} x {width}, {scaled}on a residual{kept}", op, make, init=init)
    op = bench.build(Addcmul, {}, torch.bfloat16)
    for model, n, width, is_vector in (
        ("DINOv3-7B", 64 * 201, dino.hidden_size, True),
        ("DLRMv2", 2048, dlrm.interaction_size, False),
    ):
        n = bench.size(n, 6)

        def make_three(n: int = n, width: int = width, is_vector: bool = is_vector) -> tuple[Tensor, ...]:
            return (*bench.randn(2, n, width), bench.randn(*([width] if is_vector else [n, width])))

        by = "a vector" if is_vector else "rows"
        yield bench.row(model, f"{n} x {width} by {by}", op, make_three, {"torch": torch.addcmul})


def _group_norms(bench: Bench) -> Iterator[Row]:
    """Of SDXL, two images at once, channels last as it computes; of each model one size in planes, too."""
    config = bench.config("stable-diffusion-xl-base-1.0", "tiny-sdxl")
    unet, vae = config.unet, config.vae
    side, channels = unet.sample_size, unet.block_out_channels
    sizes = [("SDXL", 2, c, side >> level, unet.norm_num_groups, unet.norm_eps) for level, c in enumerate(channels)]
    sizes += [("SDXL", 2, 2 * channels[-1], side >> (len(channels) - 1), unet.norm_num_groups, unet.norm_eps)]
    channels, most = vae.block_out_channels, bench.size(1024, 16)
    sizes += [("SDXL decoder", 1, c, most >> i, vae.norm_num_groups, 1e-6) for i, c in enumerate(channels[:1])]
    sizes += [("SDXL decoder", 1, channels[-1], most >> 2, vae.norm_num_groups, 1e-6)]
    layouts = {torch.channels_last: "channels last", torch.contiguous_format: "planes"}
    for (model, batch, num_channels, side, num_groups, eps), order in [
        *((size, torch.channels_last) for size in sizes),
        *((size, torch.contiguous_format) for size in (sizes[0], sizes[-1])),
    ]:
        init = {"num_groups": num_groups, "num_channels": num_channels, "eps": eps, "activation": "silu"}

        def make(
            shape: tuple[int, ...] = (batch, num_channels, side, side), order: torch.memory_format = order
        ) -> tuple[Tensor]:
            return (bench.randn(*shape, dtype=torch.float16).to(memory_format=order),)

        op = bench.build(GroupNorm, init, torch.float16)
        shape = f"{batch} x {num_channels} x {side} x {side}, {num_groups} groups, {layouts[order]}"
        yield bench.row(model, shape, op, make, init=init, dtype=torch.float16)


def _image_sums(bench: Bench) -> Iterator[Row]:
    """Of SDXL, two images at once, channels last: what the convolutions of a residual block made, and their biases; and
    the norm in it, to which the first one's comes."""
    config = bench.config("stable-diffusion-xl-base-1.0", "tiny-sdxl").unet
    for level, channels in enumerate(config.block_out_channels):
        side = config.sample_size >> level

        def make(shape: tuple[int, ...] = (2, channels, side, side)) -> tuple[Tensor, ...]:
            images = (bench.randn(*shape, dtype=torch.float16) for _ in range(2))
            x, residual = (image.to(memory_format=torch.channels_last) for image in images)
            return x, residual, *(bench.randn(shape[1], dtype=torch.float16) for _ in range(2))

        shape = f"2 x {channels} x {side} x {side}, channels last"
        paths = {"torch": lambda x, r, a, b: x + a[:, None, None] + (r + b[:, None, None])}
        op = bench.build(BiasAddResidual, {}, torch.float16)
        yield bench.row("SDXL", shape, op, make, paths, dtype=torch.float16)

        def shifted(make: Callable[[], tuple[Tensor, ...]] = make) -> tuple[Tensor, Tensor]:
            x, _, shift, _ = make()
            return x, shift.expand(2, -1)

        init = {"num_groups": config.norm_num_groups, "num_channels": channels, "activation": "silu"}
        op = bench.build(GroupNorm, init, torch.float16)
        shape = f"{shape}, {config.norm_num_groups} groups, shifted"
        yield bench.row("SDXL", shape, op, shifted, init=init, dtype=torch.float16)


def _convolutions(bench: Bench) -> Iterator[Row]:
    """Of YOLOv10-N at 640 pixels: its stem, and a stage's convolution each way."""
    config = bench.config("yolov10n", "tiny-yolov10")
    side, wide = config.image_size, [config.channels(n) for n in (64, 128, 256, 512)]
    for c_in, c_out, pixels, stride in (
        (3, wide[0], side, 2),
        (wide[0], wide[1], side // 2, 2),
        (wide[2], wide[2], side // 8, 1),
        (wide[2], wide[3], side // 8, 2),
    ):
        init = {"in_channels": c_in, "out_channels": c_out, "kernel_size": 3, "stride": stride}
        op = bench.build(ConvBNSiLU, init, torch.float16)
        assert isinstance(op, ConvBNSiLU)
        op.bn.running_mean.normal_(std=0.1)
        op.bn.running_var.uniform_(0.5, 1.5)
        batch = bench.size(8, 2)
        yield bench.row(
            "YOLOv10-N",
            f"{batch} x {c_in} to {c_out}, {pixels} x {pixels} by {stride}",
            op,
            lambda c=c_in, p=pixels, batch=batch: (bench.randn(batch, c, p, p, dtype=torch.float16),),
            {"torch": _Plain(op), "torch, norm in the weights": _Folded(op)},
            dtype=torch.float16,
        )


class _Plain:
    """A kernel each for convolution, norm and activation."""

    def __init__(self, op: ConvBNSiLU) -> None:
        self.conv, self.norm = op.conv, op.bn

    def __call__(self, x: Tensor) -> Tensor:
        conv, norm = self.conv, self.norm
        y = conv2d(x, conv.weight, None, conv.stride, conv.padding)
        return silu(batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps))


class _Folded:
    """The norm multiplied into the convolution beforehand."""

    def __init__(self, op: ConvBNSiLU) -> None:
        self.conv, norm = op.conv, op.bn
        scale = norm.weight.float() / (norm.running_var.float() + norm.eps).sqrt()
        weight = op.conv.weight
        self.weight = (weight.float() * scale[:, None, None, None]).to(weight.dtype)
        self.bias = (norm.bias.float() - norm.running_mean.float() * scale).to(weight.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        return silu(conv2d(x, self.weight, self.bias, self.conv.stride, self.conv.padding))
