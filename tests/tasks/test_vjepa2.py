"""V-JEPA 2 from a user's side: videos of one frame, photographs, masks, files that are no videos."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import called
from PIL import Image
from skimage import data

from fastkernels.engine.pipeline import Pipeline
from fastkernels.errors import UsageError
from fastkernels.pipelines.vjepa2 import VideoProcessor
from fastkernels.tasks.baseline.L1.conv3d import Conv3d


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("tiny-vjepa2", device="cpu")


def test_a_photograph_is_a_video_of_one_frame(pipeline: Pipeline) -> None:
    photo = data.chelsea()
    one, video, still = pipeline.run([{"image": photo}, {"video": photo[None]}, {"video": np.stack([photo] * 2)}])
    assert one.tensors["last_hidden_state"].shape == (16, 36)
    assert one.tensors["predicted"].shape == (16, 36)
    for name, tensor in one.tensors.items():
        assert torch.equal(video.tensors[name], tensor)
        torch.testing.assert_close(still.tensors[name], tensor)


def test_frames_are_spread_over_a_longer_video(pipeline: Pipeline) -> None:
    photo = Image.fromarray(data.astronaut()).resize((64, 48))
    frames = [photo.rotate(5 * i) for i in range(9)]
    whole, chosen = pipeline.run([{"video": frames}, {"video": [frames[i] for i in (0, 3, 5, 8)]}])
    assert whole.tensors["last_hidden_state"].shape == (32, 36)
    assert torch.equal(whole.tensors["last_hidden_state"], chosen.tensors["last_hidden_state"])


def test_skipping_the_predictor_leaves_the_encoder_alone(pipeline: Pipeline) -> None:
    [result] = pipeline.run([{"image": data.coffee(), "skip_predictor": True}])
    assert list(result.tensors) == ["last_hidden_state"]


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "got nothing"),
        ({"video": b"no video"}, "cannot be read"),
        ({"video": []}, "no frame"),
        ({"video": np.zeros((2, 8, 8, 3), np.uint8), "num_frames": 0}, "from 1 to 4096"),
        ({"pixel_values_videos": np.zeros((2, 3, 4, 4))}, "sides of at least 8"),
        ({"pixel_values_videos": np.zeros((2, 3, 8, 8)), "context_mask": [1], "target_mask": [0]}, "got 1 to 1"),
        ({"pixel_values_videos": np.zeros((2, 3, 8, 8)), "target_mask": []}, "got none"),
        ({"pixel_values_videos": np.zeros((2, 3, 8, 8)), "target_mask": "all"}, "list of numbers"),
    ],
    ids=str,
)
def test_a_request_that_does_not_fit_says_so(pipeline: Pipeline, request_: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline.run([request_])


def test_frames_are_resized_cropped_and_normed_as_pillow_would() -> None:
    photo = data.astronaut()
    given = VideoProcessor(32, 36)(photo[None, :, :400])[0]
    resized = Image.fromarray(photo[:, :400]).resize((36, 46), Image.Resampling.BILINEAR)
    cropped = np.asarray(resized)[7:39, 2:34].astype(np.float32) / 255
    wanted = (cropped - np.array([0.485, 0.456, 0.406])) / np.array([0.229, 0.224, 0.225])
    assert given.shape == (3, 32, 32)
    assert float((given.permute(1, 2, 0) - torch.from_numpy(wanted)).abs().max()) < 2.1 / 255 / 0.224


def test_patches_that_do_not_overlap_are_one_matrix_multiplication() -> None:
    op = Conv3d(3, 10, [2, 5, 4], stride=[2, 5, 4])
    x = torch.randn(2, 3, 5, 11, 8)
    with torch.no_grad():
        torch.testing.assert_close(op._patches(x), op.reference(x), rtol=1e-5, atol=1e-5)


def test_generate_labels_a_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    frames = [Image.fromarray(data.coffee()).resize((60, 40)).rotate(3 * i) for i in range(3)]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "clip.gif").write_bytes(buffer.getvalue())
    out = tmp_path / "labels.json"
    model = ("--model", "tiny-vjepa2_classification", "--device", "cpu", "--out", str(out))
    command = ["generate", *model, "--input", f"video={tmp_path / 'clip.gif'}"]
    done = called(capsys, *command)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(out.read_text())["labels"]) == 5
