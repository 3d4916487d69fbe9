"""3D Gaussian splatting from a user's side: scenes in files, cameras, broken ones, an image written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import called
from PIL import Image

from fastkernels.engine.pipeline import Pipeline
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.pipelines.gaussian_splatting import look_at
from fastkernels.pipelines.splat_scene import generate_scene, load_scene, save_scene
from fastkernels.tasks.baseline.L1.rasterize_gaussians import RasterizeGaussians


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("tiny-gaussian_splatting", device="cpu")


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_a_scene_survives_its_file(degree: int, tmp_path: Path) -> None:
    scene = generate_scene(17, degree, seed=2)
    save_scene(scene, tmp_path / "scene.ply")
    loaded = load_scene(tmp_path / "scene.ply")
    assert list(loaded) == list(scene)
    for name, tensor in scene.items():
        torch.testing.assert_close(loaded[name], tensor, rtol=1e-5, atol=1e-6)


def test_an_ascii_file_with_normals_is_read(tmp_path: Path) -> None:
    names = [
        *[
            "x",
            "y",
            "z",
            "nx",
            "ny",
            "nz",
            "f_dc_0",
            "f_dc_1",
            "f_dc_2",
            "opacity",
            "scale_0",
            "scale_1",
            "scale_2",
            "rot_0",
            "rot_1",
            "rot_2",
            "rot_3",
        ]
    ]
    head = ["ply", "format ascii 1.0", "comment by hand", "element vertex 2", *(f"property float {n}" for n in names)]
    rows = ["1 2 3 9 9 9 .1 .2 .3 0 -1 -2 -3 1 0 0 0", "4 5 6 9 9 9 .4 .5 .6 2 0 0 0 0 1 0 0"]
    scene = load_scene("\n".join([*head, "end_header", *rows, ""]).encode())
    assert scene["means"].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert scene["coeffs"].shape == (2, 1, 3)
    assert scene["opacities"][0] == 0.5
    torch.testing.assert_close(scene["scales"][0], torch.tensor([-1.0, -2.0, -3.0]).exp())


def broken_files(path: Path) -> dict[str, bytes]:
    save_scene(generate_scene(9, 1, 0), path)
    whole = path.read_bytes()
    return {
        "no .ply file": b"not a scene",
        "truncated": whole[:-5],
        "0 Gaussians": whole.replace(b"vertex 9", b"vertex 0"),
        "lacks opacity": whole.replace(b"float opacity", b"float opaqueX"),
        "0, 9, 24 or 45": whole.replace(b"float f_rest_8", b"float g_rest_8"),
        "not finite": whole[:-4] + np.array(np.nan, "<f4").tobytes(),
        "is not read here": whole.replace(b"property float x", b"property list x"),
    }


@pytest.mark.parametrize(
    "said",
    ["no .ply file", "truncated", "0 Gaussians", "lacks opacity", "0, 9, 24 or 45", "not finite", "is not read here"],
)
def test_a_broken_scene_says_what_is_wrong(said: str, tmp_path: Path, pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline.run([{"scene": broken_files(tmp_path / "scene.ply")[said]}])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "got nothing"),
        ({"seed": 1, "width": 0}, "width is a number of pixels"),
        ({"seed": 1, "fov": 180}, "under 180"),
        ({"seed": 1, "eye": [0, 1]}, "shape \\[3\\]"),
        ({"seed": 1, "eye": [0, 5, 0], "target": [0, 0, 0]}, "no direction"),
        ({"seed": 1, "viewmat": [[float("nan")] * 4] * 4}, "finite"),
        ({"seed": 1, "num_gaussians": 0}, "from 1"),
    ],
    ids=str,
)
def test_a_request_without_sense_says_so(pipeline: Pipeline, request_: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline.run([request_])


def test_more_pairs_than_there_is_room_for_are_refused(pipeline: Pipeline) -> None:
    scene = generate_scene(2000, 0, 0)
    scene["scales"] = torch.full((2000, 3), 5.0)
    with pytest.raises(UnsupportedError, match="isects_per_gaussian"):
        pipeline.run([{"scene": scene, "eye": [0, 0, -9], "target": [0, 0, 0], "width": 512, "height": 512}])


def test_a_camera_that_sees_nothing_gives_the_background(pipeline: Pipeline) -> None:
    away = {"eye": [0, 0, -50], "target": [0, 0, -99], "width": 33, "height": 20, "background": [0.25, 0.5, 1]}
    [result] = pipeline.run([{"seed": 0, **away}])
    assert torch.equal(result.tensors["image"], torch.tensor([0.25, 0.5, 1]).expand(20, 33, 3))
    assert not result.tensors["alphas"].any()
    assert int(result.tensors["num_isects"]) == 0


def test_the_target_is_seen_in_the_middle() -> None:
    eye, target = torch.tensor([1.0, 2.0, -3.0]), torch.tensor([0.5, -0.25, 2.0])
    view = look_at(eye, target, torch.tensor([0.0, -1.0, 0.0]))
    torch.testing.assert_close(view[:3, :3] @ view[:3, :3].T, torch.eye(3), rtol=0, atol=1e-6)
    assert float(torch.linalg.det(view)) == pytest.approx(1, abs=1e-5)
    seen = view @ torch.cat([target, torch.ones(1)])
    torch.testing.assert_close(seen[:3], torch.tensor([0, 0, float((target - eye).norm())]), rtol=1e-5, atol=1e-5)


def test_blending_equals_every_gaussian_at_every_pixel_in_turn() -> None:
    sizes = {"batch": 1, "num_gaussians": 12, "width": 16, "height": 16}
    given = RasterizeGaussians().coupled_inputs(sizes, torch.Generator().manual_seed(1))
    given["offsets"] = torch.tensor([0, 12], dtype=torch.int32)
    image, alphas = RasterizeGaussians().reference(**given, width=16, height=16)
    for y, x in ((0, 0), (7, 3), (15, 15), (4, 11)):
        left, color = 1.0, np.zeros(3)
        for i in given["flatten_ids"][:12].tolist():
            dx, dy = (np.array([x, y]) + 0.5 - given["means2d"][0, i].double().numpy()).tolist()
            a, b, c = given["conics"][0, i].tolist()
            alpha = min(0.999, float(given["opacities"][0, i]) * np.exp(-(a * dx * dx + c * dy * dy) / 2 - b * dx * dy))
            if alpha < 1 / 255:
                continue
            if left * (1 - alpha) <= 1e-4:
                break
            color, left = color + left * alpha * given["colors"][0, i].double().numpy(), left * (1 - alpha)
        wanted = color + left * given["backgrounds"][0].double().numpy()
        np.testing.assert_allclose(image[0, y, x].numpy(), wanted, rtol=1e-4, atol=1e-5)
        assert float(alphas[0, y, x, 0]) == pytest.approx(1 - left, abs=1e-5)


def test_generate_renders_a_file_to_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_scene(generate_scene(300, 3, 4), tmp_path / "scene.ply")
    out = tmp_path / "view.png"
    given = [f"scene={tmp_path / 'scene.ply'}", "width=90", "height=70", "eye=[0, 0.5, -3]", "target=[0, 0, 0]"]
    command = ["generate", "--model", "gsplat-3dgs", "--device", "cpu"]
    command += [*(word for one in given for word in ("--input", one)), "--out", str(out)]
    done = called(capsys, *command)
    assert done.returncode == 0, done.stderr
    pixels = np.asarray(Image.open(out))
    assert pixels.shape == (70, 90, 3)
    assert pixels.std() > 10
