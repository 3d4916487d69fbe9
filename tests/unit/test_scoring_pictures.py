"""Generated and rendered pictures: SSIM as scikit-image has it, PSNR and differences by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fastkernels.scoring.discrepancy import compare
from fastkernels.scoring.pictures import ssim

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14))
SAMPLES = st.floats(0, 1, width=32)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(*[hnp.arrays(np.float64, shape, elements=SAMPLES)] * 2))
MANY = settings(max_examples=100, deadline=None)


def pictures(*shape: int, noise: float = 0.1, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    smooth = np.linspace(0, 1, int(np.prod(shape))).reshape(shape)
    return smooth, np.clip(smooth + noise * random.standard_normal(shape), 0, 1)


@pytest.mark.parametrize("shape", [(3, 11, 11), (3, 24, 17), (1, 40, 12), (2, 3, 16, 15)])
@pytest.mark.parametrize("noise", [0.001, 0.1, 1.0])
def test_ssim_is_scikit_images_with_wangs_window(shape: tuple[int, ...], noise: float) -> None:
    first, second = pictures(*shape, noise=noise)
    planes = [x.reshape(-1, *shape[-2:]) for x in (first, second)]
    expected = structural_similarity(
        *planes, channel_axis=0, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(first, second) == pytest.approx(float(expected), abs=1e-9)


def test_ssim_of_a_small_picture_has_the_largest_odd_window_that_fits() -> None:
    """5 rows: weights of a Gaussian at -2 .. 2 alone; one pixel: the formula of Wang's luminance."""
    first, second = pictures(1, 5, 6)
    weights = np.exp(-0.5 * (np.arange(-2, 3) / 1.5) ** 2)
    window = np.outer(weights, weights) / weights.sum() ** 2
    found = []
    for left in range(2):
        x, y = first[0, :, left : left + 5], second[0, :, left : left + 5]
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        covariance = (window * (x - mx) * (y - my)).sum()
        found.append((2 * mx * my + 1e-4) * (2 * covariance + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4)))
    assert ssim(first, second) == pytest.approx(np.mean(found), abs=1e-12)
    even = pictures(1, 4, 9)
    assert ssim(*even) == pytest.approx(ssim(even[0][:, :, ::-1], even[1][:, :, ::-1]))  # 3 of 4 rows
    assert ssim(np.array([[0.2]]), np.array([[0.7]])) == pytest.approx((0.28 + 1e-4) / (0.53 + 1e-4))


def test_image_reports_ssim_psnr_and_the_cosine_of_latents() -> None:
    first, second = pictures(3, 16, 16)
    latents = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    answers = ([{"image": x, "latents": z}] for x, z in zip((first, second), latents, strict=True))
    found = compare("image", ["image", "latents"], *answers)
    assert found.values == (pytest.approx(1 - ssim(first, second)),)
    assert found.figures["psnr_db"] == pytest.approx(peak_signal_noise_ratio(first, second, data_range=1.0))
    assert found.figures["latents_cosine"] == pytest.approx(1 / math.sqrt(2))


def test_image_of_bytes_is_as_one_of_floats() -> None:
    first, second = ((255 * x).astype(np.uint8) for x in pictures(3, 16, 16))
    in_bytes = compare("image", ["image"], [{"image": first}], [{"image": second}])
    in_floats = compare("image", ["image"], [{"image": first / 255}], [{"image": second / 255}])
    assert in_bytes.values == pytest.approx(in_floats.values)


def test_psnr_of_equal_pictures_is_bounded() -> None:
    first, _ = pictures(3, 16, 16)
    assert compare("image", ["image"], [{"image": first}], [{"image": first}]).figures["psnr_db"] == 100.0


def test_rendering_counts_the_worse_of_colours_and_alphas_as_shown() -> None:
    reference = [{"image": np.zeros((4, 4, 3)), "alphas": np.ones((4, 4, 1))}]
    candidate = [{"image": np.full((4, 4, 3), 0.1), "alphas": np.full((4, 4, 1), 0.7)}]
    found = compare("rendering", ["image", "alphas"], reference, candidate)
    assert found.values == (pytest.approx(0.3),)
    assert found.figures["psnr_db"] == pytest.approx(20.0)
    brighter = [{"image": np.full((4, 4, 3), -5.0), "alphas": np.full((4, 4, 1), 7.0)}]
    assert compare("rendering", ["image", "alphas"], reference, brighter).values == (0.0,)


def psnr_db(first: np.ndarray, second: np.ndarray) -> float:
    return compare("image", ["image"], [{"image": first}], [{"image": second}]).figures["psnr_db"]


@MANY
@given(PAIRS)
def test_ssim_is_symmetric_bounded_and_one_of_a_picture_with_itself(pair: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = pair
    assert ssim(first, first) == pytest.approx(1.0)
    assert ssim(first, second) == pytest.approx(ssim(second, first))
    assert -1.0 - 1e-9 <= ssim(first, second) <= 1.0 + 1e-9
    for axis in (-1, -2):
        mirrored = ssim(np.flip(first, axis), np.flip(second, axis))
        if first.shape[axis] % 2 or first.shape[axis] >= 11:  # an even picture under the window's size is cut
            assert mirrored == pytest.approx(ssim(first, second))


@MANY
@given(PAIRS)
def test_psnr_is_symmetric_not_negative_and_largest_of_a_picture_with_itself(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    first, second = pair
    found = psnr_db(first, second)
    assert found == pytest.approx(psnr_db(second, first))
    assert 0.0 <= found <= psnr_db(first, first) == 100.0
    halfway = first + (second - first) / 2
    assert psnr_db(first, halfway) >= found - 1e-9
    assert psnr_db(first, halfway) == pytest.approx(min(100.0, found + 20 * math.log10(2))) or found == 100.0


@MANY
@given(PAIRS)
def test_discrepancies_of_pictures_lie_in_their_ranges(pair: tuple[np.ndarray, np.ndarray]) -> None:
    """0 for the same picture; of an image 2 at most, since SSIM is at least -1, of a rendering 1."""
    for family, most in (("image", 2.0), ("rendering", 1.0)):
        names = ["image"] if family == "image" else ["image", "alphas"]
        first, second = (dict.fromkeys(names, picture) for picture in pair)
        (same,), (other,) = (compare(family, names, [first], [x]).values for x in (first, second))
        assert same == pytest.approx(0.0, abs=1e-9)
        assert 0.0 <= other <= most + 1e-9
