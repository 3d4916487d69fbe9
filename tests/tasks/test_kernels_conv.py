"""Convolutions with norm, activation and residual under Triton's interpreter: run by test_kernels_interpreter.py."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import batch_norm, conv2d, silu
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels.ahead import TensorsOnGpu
from fastkernels.kernels.conv_norm_act import ConvTile, Norm, by_pixel, conv_norm_act, conv_tile, packed_weight
from fastkernels.kernels.depthwise_conv_norm_act import depthwise_conv_norm_act
from fastkernels.kernels.max_pool2d import max_pool2d
from fastkernels.op import Op, prepare_weights
from fastkernels.tasks.baseline.L1.batch_norm2d import BatchNorm2d
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L2.c2f import C2f, C2fCIB
from fastkernels.tasks.baseline.L2.conv_bn_silu import ConvBNSiLU
from fastkernels.tasks.baseline.L2.psa import PSA
from fastkernels.tasks.baseline.L2.sc_down import SCDown
from fastkernels.tasks.baseline.L2.sppf import SPPF

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
LAST = torch.channels_last
RELATIVE = {torch.float32: 4e-6, torch.float16: 2.0**-11 * 1.01}
EPS = 1e-3


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel wrote is NaN."""
    torch.manual_seed(0)
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))


def drawn(shape: tuple[int, ...], dtype: torch.dtype, fan_in: int = 1) -> Tensor:
    return (torch.randn(shape) / fan_in**0.5).to(dtype)


def norm_of(channels: int, dtype: torch.dtype, has_silu: bool = True) -> Norm:
    weight, bias, mean = (drawn((channels,), dtype) for _ in range(3))
    return Norm(weight, bias, mean, (torch.rand(channels) + 0.1).to(dtype), EPS, has_silu)


def definition(
    x: Tensor, weight: Tensor, norm: Norm, stride: int, groups: int, residual: Tensor | None, is_first: bool
) -> Tensor:
    y = conv2d(x.double(), weight.double(), None, stride, weight.shape[-1] // 2, 1, groups)
    y = batch_norm(y, norm.mean.double(), norm.var.double(), norm.weight.double(), norm.bias.double(), eps=EPS)
    added = 0.0 if residual is None else residual.double()
    y = y + added if is_first else y
    y = silu(y) if norm.has_silu else y
    return y if is_first else y + added


def assert_right(y: Tensor, wanted: Tensor, scale: float = 0.5) -> None:
    """Rounded once, and sums in float32: what cancels is no smaller than `scale`."""
    assert y.is_contiguous(memory_format=LAST)
    error = (y.double() - wanted).abs()
    assert bool((error <= RELATIVE[y.dtype] * wanted.abs().clamp_min(scale)).all()), float(error.max())


DENSE = [  # batch, channels, height, width, outputs, kernel, stride
    (2, 3, 10, 7, 16, 3, 2),
    (1, 3, 5, 3, 70, 3, 1),
    (2, 16, 5, 9, 16, 3, 1),
    (1, 13, 4, 6, 21, 3, 1),
    (2, 32, 6, 5, 40, 3, 2),
    (1, 64, 3, 4, 80, 3, 1),
    (1, 80, 3, 2, 24, 3, 2),
    (3, 40, 5, 3, 19, 1, 1),
    (1, 128, 5, 7, 33, 1, 1),
    (1, 24, 5, 4, 16, 1, 2),
    (0, 16, 5, 4, 16, 3, 1),
]


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize(("batch", "channels", "height", "width", "outputs", "kernel", "stride"), DENSE)
def test_a_dense_convolution_equals_its_definition(
    batch: int, channels: int, height: int, width: int, outputs: int, kernel: int, stride: int, is_last: bool,
    dtype: torch.dtype,
) -> None:  # fmt: skip
    x = drawn((batch, channels, height, width), dtype)
    x = x.contiguous(memory_format=LAST) if is_last else x
    weight = drawn((outputs, channels, kernel, kernel), dtype, channels * kernel**2)
    norm = norm_of(outputs, dtype, has_silu=is_last)
    y = conv_norm_act([x], weight, norm, stride)
    assert_right(y, definition(x, weight, norm, stride, 1, None, False))


DEPTHWISE = [(2, 5, 9, 7, 3, 1), (1, 70, 6, 5, 3, 2), (1, 19, 9, 8, 7, 1), (2, 12, 8, 5, 5, 2), (0, 8, 3, 3, 3, 1)]


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("is_last", [False, True])
@pytest.mark.parametrize(("batch", "channels", "height", "width", "kernel", "stride"), DEPTHWISE)
def test_a_depthwise_convolution_equals_its_definition(
    batch: int, channels: int, height: int, width: int, kernel: int, stride: int, is_last: bool, dtype: torch.dtype
) -> None:
    x = drawn((batch, channels, height, width), dtype)
    x = x.contiguous(memory_format=LAST) if is_last else x
    weight, norm = drawn((channels, 1, kernel, kernel), dtype, kernel**2), norm_of(channels, dtype, not is_last)
    for tile in (None, (32, 4)):
        y = depthwise_conv_norm_act(x, weight, norm, stride, tile=tile)
        assert_right(y, definition(x, weight, norm, stride, channels, None, False))


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("is_first", [False, True])
@pytest.mark.parametrize("kind", ["few", "dense", "depthwise"])
def test_a_residual_is_added_where_it_is_said(kind: str, is_first: bool, dtype: torch.dtype) -> None:
    """Of a slice of wider pixels, as a chunk of channels is."""
    channels = 3 if kind == "few" else 16
    x = drawn((2, channels, 5, 6), dtype).contiguous(memory_format=LAST)
    residual = drawn((2, 40, 5, 6), dtype).contiguous(memory_format=LAST)[:, 8:24]
    norm = norm_of(16, dtype)
    depth = 1 if kind == "depthwise" else channels
    weight = drawn((16, depth, 3, 3), dtype, 9 * depth)
    if kind == "depthwise":
        y = depthwise_conv_norm_act(x, weight, norm, 1, residual, is_first)
    else:
        y = conv_norm_act([x], weight, norm, 1, residual, is_first)
    groups = channels if kind == "depthwise" else 1
    assert_right(y, definition(x, weight, norm, 1, groups, residual, is_first))


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("widths", [(32, 16), (16, 16, 16, 16), (40, 7, 19), (64, 3)])
def test_inputs_side_by_side_are_one_input(widths: tuple[int, ...], dtype: torch.dtype) -> None:
    """Every other one a slice of wider pixels; columns of the weight behind the last are not read."""
    parts = []
    for i, width in enumerate(widths):
        wide = drawn((2, width + 8, 4, 5), dtype).contiguous(memory_format=LAST)
        parts.append(wide[:, 8:] if i % 2 else wide[:, 8:].contiguous())
    weight = drawn((24, sum(widths) + 8, 1, 1), dtype, sum(widths))
    weight[:, sum(widths) :] = float("nan")
    norm, kept = norm_of(24, dtype), [part.clone() for part in parts]
    y = conv_norm_act(parts, weight, norm)
    assert_right(y, definition(torch.cat(parts, 1), weight[:, : sum(widths)], norm, 1, 1, None, False))
    assert all(torch.equal(part, before) for part, before in zip(parts, kept, strict=True))


@pytest.mark.parametrize("tile", [(32, 16, 16, 1, 4, 1), (64, 32, 32, 2, 4, 2), (128, 16, 16, 4, 8, 3)])
def test_any_tile_gives_the_definition(tile: tuple[int, ...]) -> None:
    x = drawn((2, 16, 6, 7), torch.float16).contiguous(memory_format=LAST)
    weight, norm = drawn((40, 16, 3, 3), torch.float16, 144), norm_of(40, torch.float16)
    y = conv_norm_act([x], weight, norm, tile=ConvTile(*tile))
    assert_right(y, definition(x, weight, norm, 1, 1, None, False))


def test_what_lies_in_memory_by_pixel_is_not_copied() -> None:
    wide = torch.randn(2, 24, 5, 6).contiguous(memory_format=LAST)
    for x, step in ((wide, 24), (wide[:, 3:9], 24), (wide[:1, :, :1], 24), (wide[:, :, :1, :1], 720)):
        same, found = by_pixel(x)
        assert (same.data_ptr(), found) == (x.data_ptr(), step)
    for x in (wide.contiguous(), wide[:, :, ::2], wide[:, :, :, 1:], wide.transpose(2, 3)):
        same, found = by_pixel(x)
        assert torch.equal(same, x)
        assert same.data_ptr() != x.data_ptr()
        assert (found, same.stride(1)) == (24, 1)
    for is_depthwise, shape in ((False, (6, 4, 3, 3)), (True, (6, 1, 7, 7))):
        weight = torch.randn(shape)
        packed = packed_weight(weight, is_depthwise)
        assert torch.equal(packed, weight)
        assert packed.data_ptr() != weight.data_ptr()
        assert packed_weight(packed, is_depthwise).data_ptr() == packed.data_ptr()


def test_small_images_have_small_tiles_and_no_step_is_mostly_zeros() -> None:
    assert conv_tile(32 * 160**2, 16, [16], 3, 132)[:4] == (128, 16, 16, 4)
    assert conv_tile(400, 256, [128], 3, 132)[:4] == (32, 32, 64, 1)
    assert conv_tile(32 * 400, 256, [256, 128], 1, 132)[:4] == (128, 64, 64, 1)
    assert conv_tile(32 * 6400, 80, [80], 1, 132).block_c == 32
    assert conv_tile(6400, 32, [32, 16], 1, 132).block_c == 16


def test_what_the_kernels_do_not_take_is_refused() -> None:
    norm: Any = norm_of(4, torch.float32)
    x, weight = torch.zeros(1, 2, 3, 3), torch.zeros(4, 2, 1, 1)
    with pytest.raises(UnsupportedError, match="bfloat16"):
        conv_norm_act([x.double()], weight, norm)
    with pytest.raises(UnsupportedError, match="got 5"):
        conv_norm_act([x] * 5, weight, norm)
    with pytest.raises(UnsupportedError, match="bfloat16"):
        depthwise_conv_norm_act(x.double(), weight[:2, :1], norm)


class _Passes(TorchDispatchMode):
    """What torch did to whole images beside the kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dim() == 4 and not _is_view(result, args):
            self.names.add(str(func).split(".")[1])
        return result


def _is_view(result: Tensor, args: Any) -> bool:
    return any(isinstance(a, Tensor) and a.data_ptr() == result.data_ptr() for a in args)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("window", [(5, 1, 2), (3, 2, 0), (2, 2, 1), (1, 1, 0)])
@pytest.mark.parametrize("shape", [(2, 5, 9, 7), (1, 70, 3, 4), (0, 8, 5, 5)])
def test_the_largest_of_a_window_is_torchs(
    shape: tuple[int, ...], window: tuple[int, int, int], dtype: torch.dtype
) -> None:
    x = drawn(shape, dtype).contiguous(memory_format=LAST)
    if x.numel():
        x[0, 0, 1, 2], x[0, 1], x[0, 2, 0] = float("nan"), float("-inf"), float("inf")
    y = max_pool2d(x, *window)
    assert y.is_contiguous(memory_format=LAST)
    wanted = functional.max_pool2d(x, *window) if x.numel() else y
    torch.testing.assert_close(y, wanted, rtol=0, atol=0, equal_nan=True)


_BLOCKS = [
    (ConvBNSiLU, {"in_channels": 3, "out_channels": 16, "kernel_size": 3, "stride": 2}, set()),
    (SCDown, {"in_channels": 12, "out_channels": 20}, set()),
    (SPPF, {"in_channels": 16, "out_channels": 24}, set()),
    (C2f, {"in_channels": 12, "out_channels": 16, "n": 2, "shortcut": True}, set()),
    (C2f, {"in_channels": 12, "out_channels": 16, "n": 4}, {"cat"}),
    (C2fCIB, {"in_channels": 12, "out_channels": 16, "shortcut": True, "large_kernel": True}, set()),
    (PSA, {"channels": 40}, set()),
]


@pytest.mark.parametrize(("block", "init", "passes"), _BLOCKS)
def test_a_block_in_half_precision_is_kernels_alone(block: type[Op], init: dict[str, Any], passes: set[str]) -> None:
    """No image is copied, concatenated, added or activated beside them, and the answer is the definition's."""
    op = block(**init).eval()
    for name, value in op.state_dict().items():
        if "norm" in name or "bn" in name:
            value.copy_(0.3 * torch.rand(value.shape) + 0.5 * ("bias" not in name))
    op.half()
    x = torch.randn(2, init.get("in_channels", init.get("channels")), 6, 5).half().contiguous(memory_format=LAST)
    with torch.inference_mode():
        wanted = copy.deepcopy(op).double().reference(x.double())
        with TensorsOnGpu():
            prepare_weights(op)
            kept = copy.deepcopy(op.state_dict())
            assert all(torch.equal(kept[name], value) for name, value in op.state_dict().items())
            with _Passes() as seen:
                y = op(x)
    assert seen.names - {"empty", "scaled_dot_product_attention"} == passes
    assert y.is_contiguous(memory_format=LAST)
    assert float((y.double() - wanted).norm() / wanted.norm()) < 6e-4


@pytest.mark.parametrize("kind", ["hook", "stands in"])
def test_who_looks_at_a_block_or_stands_in_for_one_sees_its_calls(kind: str) -> None:
    op = C2f(8, 16, shortcut=True).half().eval()
    seen: list[int] = []

    class Candidate(BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.shape[1])
            return super().forward(x)

    if kind == "hook":
        op.cv2.register_forward_hook(lambda module, given, result: seen.append(given[0].shape[1]))
    else:
        op.cv2.bn = Candidate(16, EPS, "silu").half().eval()
    x = torch.randn(1, 8, 4, 4).half()
    y = op(x)
    assert seen == [24 if kind == "hook" else 16]
    torch.testing.assert_close(y, C2f.forward(op, x))


def test_a_dense_layer_takes_a_convolution_of_single_pixels() -> None:
    op = Conv2d(16, 24, 1).half().eval()
    x = torch.randn(2, 16, 3, 5).half().contiguous(memory_format=LAST)
    with torch.inference_mode(), TensorsOnGpu(), _Passes() as seen:
        y = op(x)
    assert "convolution" not in seen.names
    assert y.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(y, op.reference(x), rtol=2e-3, atol=2e-3)
