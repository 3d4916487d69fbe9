"""Kernels of image models under Triton's interpreter: run by test_kernels_interpreter.py."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, silu

from fastkernels.env import triton_interpreted
from fastkernels.errors import UnsupportedError

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels import tile_intersection as kernel_of_tiles
from fastkernels.kernels.batch_norm2d import batch_norm2d
from fastkernels.kernels.bias_add_residual import bias_add_residual
from fastkernels.kernels.dfl_boxes import dfl_boxes
from fastkernels.kernels.gaussian_projection import gaussian_projection
from fastkernels.kernels.rasterize_gaussians import rasterize_gaussians
from fastkernels.kernels.spherical_harmonics import spherical_harmonics
from fastkernels.kernels.tile_intersection import tile_intersection
from fastkernels.tasks.baseline.L1.bias_add_residual import BiasAddResidual
from fastkernels.tasks.baseline.L1.dfl_boxes import DFLBoxes
from fastkernels.tasks.baseline.L1.gaussian_projection import _LEAST_DETERMINANT, REACH, GaussianProjection
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians
from fastkernels.tasks.baseline.L1.spherical_harmonics import SphericalHarmonics
from fastkernels.tasks.baseline.L1.tile_intersection import TileIntersection

pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
RELATIVE = {torch.float32: 4e-6, torch.float16: 2.0**-11 * 1.01}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel wrote is NaN."""
    torch.manual_seed(0)
    empty, empty_like = torch.empty, torch.empty_like

    def fill(x: Tensor) -> Tensor:
        return x.fill_(float("nan") if x.is_floating_point() else 2**30)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: fill(empty(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(float("nan")))


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("has_silu", [False, True])
@pytest.mark.parametrize("is_channels_last", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 300, 1, 3), (2, 16, 33, 40), (0, 4, 2, 2)])
def test_batch_norm_equals_its_definition(
    shape: tuple[int, ...], is_channels_last: bool, has_silu: bool, dtype: torch.dtype
) -> None:
    x = (3 * torch.randn(shape)).to(dtype)
    if is_channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    weight, bias, mean = (torch.randn(shape[1]).to(dtype) for _ in range(3))
    var = (torch.rand(shape[1]) + 0.1).to(dtype)
    before = x.clone()
    y = batch_norm2d(x, weight, bias, mean, var, 1e-3, has_silu)
    assert y.stride() == x.stride()
    assert x.equal(before)
    wanted = batch_norm(x.double(), mean.double(), var.double(), weight.double(), bias.double(), eps=1e-3)
    wanted = silu(wanted) if has_silu else wanted
    error = (y.double() - wanted).abs()
    assert bool((error <= RELATIVE[dtype] * wanted.abs().clamp_min(0.5)).all()), float(error.max())


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize(
    "shape", [(2, 3, 5, 7), (1, 300, 1, 3), (3, 16, 33, 4), (2, 7, 1, 1), (1, 5, 2, 1100), (2, 9, 130), (0, 4, 2, 2)]
)
def test_sums_of_images_and_biases_are_rounded_once(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """In any two layouts; float16 is what float32 gives of the same values, rounded."""
    bias, residual_bias = (8 * torch.randn(2, shape[1])).to(dtype)
    planes = [(3 * torch.randn(shape)).to(dtype) for _ in range(2)]
    pixels = [t.movedim(1, -1).contiguous().movedim(-1, 1) for t in planes]
    for x in (planes[0], pixels[0]):
        for residual in (planes[1], pixels[1], planes[1].repeat(1, 2, *[1] * (len(shape) - 2))[:, : shape[1]]):
            for other in (None, residual_bias):
                given = (x, residual, bias) if other is None else (x, residual, bias, other)
                before = [t.clone() for t in given]
                y = bias_add_residual(*given)
                exact = BiasAddResidual().reference(*(t.double() for t in given))
                assert y.stride() == x.stride()
                assert all(t.equal(b) for t, b in zip(given, before, strict=True))
                wide = bias_add_residual(*(t.float() for t in given))
                assert y.equal(wide.to(dtype))
                torch.testing.assert_close(wide.double(), exact, rtol=2e-7, atol=4e-6)


def test_sums_refuse_what_they_do_not_add() -> None:
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(UnsupportedError, match="residual of dtype float64"):
        bias_add_residual(x, x.double(), x[0, :, 0, 0])
    for given in ((x, x[:, :3], x[0, :, 0, 0]), (x, x, x[0, :3, 0, 0]), (x, x, x[0, :, 0, 0], x[0, :1, 0, 0])):
        with pytest.raises(ValueError, match="x and residual alike"):
            BiasAddResidual()(*given)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("is_by_place", [False, True])
@pytest.mark.parametrize(
    ("reg_max", "stride", "shape"), [(16, 8, (2, 5, 6)), (7, 32, (1, 1, 3)), (1, 4, (3, 9, 1)), (16, 16, (1, 40, 33))]
)
def test_boxes_equal_their_definition(
    reg_max: int, stride: int, shape: tuple[int, int, int], is_by_place: bool, dtype: torch.dtype
) -> None:
    """is_by_place: as a model's head gives them, the numbers of one place together, inside those of all levels."""
    batch, height, width = shape
    x = (4 * torch.randn(batch, 4 * reg_max, height, width)).to(dtype)
    if is_by_place:
        rows = torch.full((batch, height * width + 5, 4 * reg_max), float("nan"), dtype=dtype)
        rows[:, 2 : 2 + height * width] = x.flatten(2).transpose(1, 2)
        x = rows[:, 2 : 2 + height * width].transpose(1, 2).unflatten(2, (height, width))
    boxes = dfl_boxes(x, reg_max, stride)
    assert boxes.dtype == torch.float32
    torch.testing.assert_close(boxes.double(), DFLBoxes(reg_max, stride).reference(x.double()), rtol=1e-5, atol=1e-4)


def scene(**sizes: int) -> dict[str, Tensor]:
    op = RasterizeGaussians()
    return op.coupled_inputs(sizes, torch.Generator().manual_seed(3))


@pytest.mark.parametrize(
    ("batch", "num", "width", "height"), [(2, 23, 20, 17), (1, 60, 33, 16), (1, 1, 5, 3), (1, 32, 16, 16)]
)
def test_rasterizer_equals_its_definition(batch: int, num: int, width: int, height: int) -> None:
    given = scene(batch=batch, num_gaussians=num, width=width, height=height)
    image, alphas = rasterize_gaussians(**given, width=width, height=height)
    exact = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    wanted_image, wanted_alphas = RasterizeGaussians().reference(**exact, width=width, height=height)
    torch.testing.assert_close(image.double(), wanted_image, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alphas.double(), wanted_alphas, rtol=1e-4, atol=1e-5)


def test_rasterizer_ends_a_pixel_before_the_gaussian_that_would_close_it() -> None:
    """Three at the same place: 0.98, then 0.98, then one that would leave 8e-6."""
    given = scene(batch=1, num_gaussians=3, width=16, height=16)
    given["means2d"] = torch.full((1, 3, 2), 8.5)
    given["opacities"] = torch.full((1, 3), 0.98)
    given["offsets"] = torch.tensor([0, 3], dtype=torch.int32)
    _, alphas = rasterize_gaussians(**given, width=16, height=16)
    assert float(alphas[0, 8, 8, 0]) == pytest.approx(1 - 0.02**2, abs=1e-7)


def project(op: GaussianProjection, given: dict[str, Tensor], width: int, height: int) -> tuple[Tensor, ...]:
    planes = (op.eps2d, op.near_plane, op.far_plane, REACH, _LEAST_DETERMINANT)
    return gaussian_projection(*given.values(), width, height, *planes)


@pytest.mark.parametrize(
    ("batch", "num", "width", "height"), [(2, 67, 40, 33), (1, 130, 65, 48), (3, 1, 1, 1), (1, 257, 1920, 1080)]
)
def test_projection_equals_its_definition(batch: int, num: int, width: int, height: int) -> None:
    sizes = {"batch": batch, "num_gaussians": num, "width": width, "height": height}
    op = GaussianProjection(near_plane=0.5, far_plane=4.5)
    given = op.coupled_inputs(sizes, torch.Generator().manual_seed(2))
    given["quats"] *= 1 + 9 * torch.rand(batch, num, 1)
    given["Ks"][:, 0, 1], given["Ks"][:, 1, 0] = 0.7, -0.3
    got = project(op, given, width, height)
    wanted = op.reference(*(t.double() for t in given.values()), width, height)
    assert got[0].dtype == torch.int32
    assert [t.shape for t in got] == [t.shape for t in wanted]
    off = got[0] != wanted[0]
    assert int(off.sum()) <= 1  # a radius a rounding away from a whole pixel
    assert got[0].any() or num == 1
    near = given["means"].abs().amax(-1) < 2.5
    for one, exact in zip(got[1:], wanted[1:], strict=True):
        scale = exact.abs() if exact.dim() == 2 else exact.abs().amax(-1, keepdim=True)
        error = (one.double() - exact).abs() / scale.clamp_min(1e-3)
        assert float(error[near].max()) < 3e-4
        assert float(error.median()) < 1e-6


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_projection_of_degenerate_gaussians_keeps_their_signs() -> None:
    """In the camera's plane, behind it, without extent and without direction: nothing is seen, and NaN stays NaN."""
    op = GaussianProjection()
    given = op.coupled_inputs({"batch": 1, "num_gaussians": 5, "width": 40, "height": 33}, torch.Generator())
    given["viewmats"] = torch.eye(4)[None]
    given["means"] = torch.tensor([[[0.0, 0, 0], [1, 2, -3], [0, 0, 2], [1e3, 0, 2], [0, 0, float("nan")]]])
    given["scales"][0, 2] = 0
    given["quats"][0, 2] = 0
    got = project(op, given, 40, 33)
    wanted = op.reference(*given.values(), 40, 33)
    assert torch.equal(got[0], wanted[0])
    assert got[0].any(-1).tolist() == [[False, False, True, False, False]]
    for one, other in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(1,), (2, 67), (3, 5, 13), (0, 4)])
def test_harmonics_equal_their_definition(shape: tuple[int, ...], degree: int, dtype: torch.dtype) -> None:
    op = SphericalHarmonics(degree)
    dirs, coeffs = (3 * torch.randn(*shape, 3)).to(dtype), torch.randn(*shape, op.num_bases, 3).to(dtype)
    colors = spherical_harmonics(dirs, coeffs, degree)
    wanted = op.reference(dirs.double(), coeffs.double())
    assert colors.shape == wanted.shape
    assert bool(((colors.double() - wanted).abs() <= RELATIVE[dtype] * wanted.abs().clamp_min(1)).all())
    if len(shape) == 2 and shape[0]:
        apart = dirs.transpose(0, 1), coeffs.transpose(0, 1)
        assert torch.equal(spherical_harmonics(*apart, degree), colors.transpose(0, 1))


def test_a_direction_of_no_length_has_the_bases_of_zero() -> None:
    op = SphericalHarmonics(3)
    coeffs = torch.randn(1, 16, 3)
    got = spherical_harmonics(torch.zeros(1, 3), coeffs, 3)
    torch.testing.assert_close(got, op.reference(torch.zeros(1, 3), coeffs))


@pytest.mark.parametrize(
    ("batch", "num", "width", "height", "capacity"),
    [
        (2, 67, 40, 33, 1500),
        (1, 130, 65, 48, 3000),
        (3, 1, 16, 16, 7),
        (1, 150, 320, 170, 250),  # fewer slots than pairs
        (2, 50, 17, 1, 0),
        (2, 9, 5, 3, 257),
        (1, 1100, 400, 330, 3000),  # of several blocks of Gaussians, of pairs, and digits of tiles
    ],
)
def test_intersection_equals_its_definition(batch: int, num: int, width: int, height: int, capacity: int) -> None:
    op = TileIntersection()
    sizes = {"batch": batch, "num_gaussians": num, "width": width, "height": height, "capacity": capacity}
    given = op.coupled_inputs(sizes, torch.Generator().manual_seed(5))
    given["depths"][:, ::3] = 0.5  # of one depth: in the order of their numbers
    if num > 100:
        given["radii"][0, 7] = 1_000_000
        given["means2d"][0, 3], given["means2d"][0, 4] = 1e12, -1e12
    got = tile_intersection(**given, width=width, height=height, capacity=capacity)
    wanted = op.reference(**given, width=width, height=height, capacity=capacity)
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_intersection_of_more_blocks_than_are_summed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_of_tiles, "_BLOCK", 16)
    monkeypatch.setattr(kernel_of_tiles, "_BLOCK_BITS", 4)
    op, sizes = TileIntersection(), {"batch": 2, "num_gaussians": 270, "width": 90, "height": 70}
    given = op.coupled_inputs(sizes, torch.Generator().manual_seed(6))
    for capacity in (450, 150):
        got = tile_intersection(**given, width=90, height=70, capacity=capacity)
        wanted = op.reference(**given, width=90, height=70, capacity=capacity)
        assert all(256 < num < 450 for num in wanted[2].tolist())
        assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


def test_intersection_of_no_gaussians_has_no_pairs() -> None:
    ids, offsets, num = tile_intersection(
        torch.zeros(2, 0, 2), torch.zeros(2, 0, 2, dtype=torch.int32), torch.zeros(2, 0), 33, 16, 5
    )
    assert ids.tolist() == [-1] * 5
    assert offsets.tolist() == [0] * 7
    assert num.tolist() == [0, 0]


@pytest.mark.parametrize("num", [15, 16, 17, 40])
def test_rasterizer_of_opaque_gaussians_leaves_out_what_is_behind(num: int) -> None:
    """Pixels that are closed stay so, wherever between two looks that happens."""
    given = scene(batch=1, num_gaussians=num, width=16, height=16)
    given["opacities"] = torch.full((1, num), 0.6)
    given["conics"] = torch.tensor([1e-4, 0, 1e-4]).expand(1, num, 3)
    given["offsets"] = torch.tensor([0, num], dtype=torch.int32)
    image, alphas = rasterize_gaussians(**given, width=16, height=16)
    exact = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    wanted = RasterizeGaussians().reference(**exact, width=16, height=16)
    torch.testing.assert_close(image.double(), wanted[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(alphas.double(), wanted[1], rtol=1e-4, atol=1e-5)


def test_kernels_of_images_refuse_what_they_lack() -> None:
    with pytest.raises(UnsupportedError, match="float64"):
        batch_norm2d(torch.zeros(1, 2, 3, 3).double(), *torch.ones(4, 2), 1e-3, True)
    with pytest.raises(UnsupportedError, match="float64"):
        spherical_harmonics(torch.zeros(1, 3).double(), torch.zeros(1, 1, 3).double(), 0)
    with pytest.raises(UnsupportedError, match="float64"):
        tile_intersection(torch.zeros(1, 1, 2).double(), torch.zeros(1, 1, 2).int(), torch.zeros(1, 1), 9, 9, 3)
