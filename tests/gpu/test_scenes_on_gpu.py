"""Kernels of scenes, images and videos on a GPU at full sizes, against their definitions in float64."""

import pytest
import torch
from torch import Tensor

from fastkernels.pipelines.splat_scene import generate_scene
from fastkernels.tasks.baseline.L1.gaussian_projection import GaussianProjection
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians
from fastkernels.tasks.baseline.L1.spherical_harmonics import SphericalHarmonics
from fastkernels.tasks.baseline.L1.tile_intersection import TileIntersection
from fastkernels.tasks.baseline.L1.vjepa2_rope import VJEPA2Rope
from fastkernels.tasks.baseline.L2.gaussian_renderer import GaussianRenderer
from fastkernels.tasks.configs.gaussian_splatting import GaussianSplattingConfig

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11, torch.float32: 2e-6}


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every torch.empty is NaN, or a number past every place: an element that no kernel wrote shows."""
    torch.manual_seed(0)
    empty = torch.empty

    def fill(*args: object, **kwargs: object) -> Tensor:
        x = empty(*args, **kwargs)  # type: ignore[call-overload]
        return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(2**30)

    monkeypatch.setattr(torch, "empty", fill)


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize(
    ("heads", "head_size", "grid", "num_tokens"), [(16, 64, 16, 8192), (22, 64, 24, 4608), (3, 80, 5, 77)]
)
@pytest.mark.parametrize("has_positions", [False, True])
def test_vjepa2_rope_equals_its_definition(
    has_positions: bool, heads: int, head_size: int, grid: int, num_tokens: int, dtype: torch.dtype
) -> None:
    op = VJEPA2Rope(head_size, grid)
    query, key, _ = torch.randn(2, num_tokens, 3, heads, head_size, device="cuda").to(dtype).unbind(2)
    positions = torch.randint(0, 16 * grid**2, (2, num_tokens), device="cuda") if has_positions else None
    for one, exact in zip(op(query, key, positions), op.reference(query.float(), key.float(), positions), strict=True):
        assert float((one.float() - exact).abs().max()) <= 2 * ROUNDING[dtype] * float(exact.abs().max())


@pytest.mark.parametrize("dtype", ROUNDING)
@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_harmonics_equal_their_definition(degree: int, dtype: torch.dtype) -> None:
    op = SphericalHarmonics(degree)
    dirs, coeffs = (torch.randn(2, 100_003, *s, device="cuda").to(dtype) for s in ((3,), (op.num_bases, 3)))
    exact = op.reference(dirs.double(), coeffs.double())
    assert bool(((op(dirs, coeffs).double() - exact).abs() <= 2 * ROUNDING[dtype] * exact.abs().clamp_min(1)).all())


@pytest.mark.parametrize(("batch", "num", "width", "height"), [(1, 1_000_003, 1920, 1080), (2, 5000, 641, 333)])
def test_a_scene_is_projected_and_its_pairs_ordered_as_defined(batch: int, num: int, width: int, height: int) -> None:
    sizes = {"batch": batch, "num_gaussians": num, "width": width, "height": height}
    projection, intersection = GaussianProjection(), TileIntersection()
    given = {n: t.cuda() for n, t in projection.coupled_inputs(sizes, torch.Generator().manual_seed(2)).items()}
    given["scales"] *= 0.05
    radii, means2d, depths, conics = projection(**given, width=width, height=height)
    exact = projection.reference(*(t.double() for t in given.values()), width, height)
    assert int((radii != exact[0]).sum()) <= 1e-4 * radii.numel()
    for one, wanted in zip((means2d, depths, conics), exact[1:], strict=True):
        error = (one.double() - wanted).abs() / wanted.abs().clamp_min(1e-3)
        assert float(error.flatten()[:: 1 + error.numel() // 10**6].quantile(0.999)) < 1e-4
    num_pairs = int(intersection(means2d, radii, depths, width, height, 1)[2].sum())
    for capacity in (num_pairs + 12_345, num_pairs // 2):
        got = intersection(means2d, radii, depths, width, height, capacity)
        for one, wanted in zip(
            got, intersection.reference(means2d, radii, depths, width, height, capacity), strict=True
        ):
            assert torch.equal(one, wanted)


def test_renderings_are_the_same_each_time_and_in_a_graph() -> None:
    """Tiles are found with atomic counts: these are sums of integers, and no order depends on who came first."""
    scene = {name: x[None].repeat(2, *[1] * x.dim()).cuda() for name, x in generate_scene(100_000, 3, 0).items()}
    views = torch.eye(4, device="cuda").repeat(2, 1, 1)
    views[:, 2, 3] = torch.tensor([3.0, 2.0])
    cameras = torch.tensor([[443.0, 0, 256], [0, 443, 256], [0, 0, 1]], device="cuda").repeat(2, 1, 1)
    renderer = GaussianRenderer(GaussianSplattingConfig())
    names = ("means", "quats", "scales", "opacities", "coeffs")
    given = (*(scene[name] for name in names), views, cameras, torch.zeros(2, 3, device="cuda"), 512, 500)
    with torch.inference_mode():
        wanted = renderer(*given)
        for _ in range(3):
            assert all(torch.equal(one, other) for one, other in zip(renderer(*given), wanted, strict=True))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            replayed = renderer(*given)
        for _ in range(3):
            graph.replay()
            assert all(torch.equal(one, other) for one, other in zip(replayed, wanted, strict=True))


@pytest.mark.parametrize("side", [512, 77])
def test_rasterizer_equals_its_definition(side: int) -> None:
    op, sizes = RasterizeGaussians(), {"batch": 2, "num_gaussians": 331, "width": side, "height": side}
    given = {n: t.cuda() for n, t in op.coupled_inputs(sizes, torch.Generator().manual_seed(3)).items()}
    exact = {n: t.double() if t.is_floating_point() else t for n, t in given.items()}
    wanted = op.reference(**exact, width=side, height=side)
    for one, other in zip(op(**given, width=side, height=side), wanted, strict=True):
        error = (one.double() - other).abs()  # a pixel on either side of a limit differs by up to 1 / 255
        assert float(error.max()) < 0.02
        assert float((error > 1e-4).float().mean()) < 1e-4
