"""What is no number, no array and no scene in a request is named; nothing is rounded to a whole number in silence."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from fastkernels.engine.pipeline import Pipeline
from fastkernels.errors import UsageError
from fastkernels.pipelines.inputs import as_floats, as_integers, as_whole_number
from fastkernels.pipelines.splat_scene import generate_scene

PICTURE = np.zeros((64, 64, 3), np.uint8)
DENSE, IDS = {"dense": [0.0] * 5}, {"ids": [[]] * 3}
ACTION = {"image": PICTURE, "prompt": "x"}
VIDEO = {"video": PICTURE[None]}
SCENE = generate_scene(3, 0, 0)
LARGE = 10**400


@cache
def pipeline(name: str) -> Pipeline:
    return Pipeline(f"tiny-{name}", device="cpu")


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("dinov3", {"image": PICTURE, "size": "abc"}, r"size is 'abc'; it is a whole number from \d+ to 4096"),
        ("dinov3", {"image": PICTURE, "size": 0}, "size is 0"),
        ("dinov3", {"image": PICTURE, "size": -5}, "size is -5"),
        ("dinov3", {"image": PICTURE, "size": 100_000}, "to 4096"),
        ("dinov3", {"image": PICTURE, "size": 32.5}, r"size is 32\.5"),
        ("dinov3", {"pixel_values": "abc"}, "pixel_values is 'abc'; it is an array of numbers"),
        ("dlrmv2", {"dense": "abc", **IDS}, "dense is 'abc'; it is .* finite numbers"),
        ("dlrmv2", {"dense": [LARGE], **IDS}, "dense is"),
        ("dlrmv2", {**DENSE, "ids": 5}, "ids is 5; it has a list for each of"),
        ("dlrmv2", {**DENSE, "ids": ["a", [], []]}, r"ids\[0\] is 'a'; it is a list of ids"),
        ("dlrmv2", {**DENSE, "ids": [[0.5], [], []]}, r"ids\[0\] is \[0\.5\]"),
        ("lightgcn", {"users": [0], "k": "abc"}, "k is 'abc'; it is a whole number from 1 to"),
        ("lightgcn", {"users": [0], "k": None}, "k is None"),
        ("lightgcn", {"users": [0], "k": True}, "k is True"),
        ("lightgcn", {"users": [1.9]}, r"users is \[1\.9\]; it is a list of ids"),
        ("lightgcn", {"users": [1 << 70]}, "users is"),
        ("gaussian_splatting", {"scene": {}}, "scene lacks means, quats, scales, opacities, coeffs"),
        ("gaussian_splatting", {"scene": SCENE | {"means": "abc"}}, "scene's means is 'abc'"),
        ("gaussian_splatting", {"scene": SCENE | {"quats": torch.ones(2, 4)}}, r"quats \[n, 4\].* got .*\[2, 4\]"),
        ("gaussian_splatting", {"scene": dict.fromkeys(SCENE, 1.0)}, "scene has means"),
        ("gaussian_splatting", {"seed": "abc"}, "seed is 'abc'; it is a whole number"),
        ("gaussian_splatting", {"seed": 1 << 70}, "seed is 1180591620717411303424"),
        ("gaussian_splatting", {"seed": 1, "fov": "wide"}, "fov is 'wide'; it is a number of degrees"),
        ("gaussian_splatting", {"seed": 1, "fov": LARGE}, "a number of degrees"),
        ("gaussian_splatting", {"seed": 1, "eye": [LARGE, 0, 0]}, "eye is numbers"),
        ("vjepa2", {**VIDEO, "num_frames": "abc"}, "num_frames is 'abc'"),
        ("vjepa2", {"pixel_values_videos": "abc"}, "pixel_values_videos is 'abc'"),
        ("vjepa2", {**VIDEO, "skip_predictor": "false"}, "skip_predictor is 'false'; it is true or false"),
        ("vjepa2", {**VIDEO, "context_mask": [0.5]}, r"context_mask is \[0\.5\]"),
        ("yolov10", {"pixel_values": "abc"}, "pixel_values is 'abc'"),
        ("yolov10", {"image": PICTURE, "confidence": LARGE}, "confidence is a number"),
        ("pi0", {**ACTION, "noise": "abc"}, "noise is 'abc'"),
        ("pi0", {"image": PICTURE, "prompt_token_ids": 5}, "prompt_token_ids are one or more whole numbers"),
        ("pi0", {"image": PICTURE, "prompt_token_ids": [1.5]}, r"prompt_token_ids is \[1\.5\]"),
        ("pi0", {"pixel_values": "a", "prompt": "x"}, "pixel_values is 'a'"),
        ("pi0", {**ACTION, "state": [float("nan")]}, "state is finite numbers"),
        ("sdxl", {"prompt": "x", "latents": "abc"}, "latents is 'abc'"),
        ("sdxl", {"prompt": "x", "original_size": [LARGE, 1]}, "original_size is .*; the most is 16777216"),
        ("bge_m3", {"input_ids": [1.7, 2.2]}, r"input_ids is \[1\.7, 2\.2\]; it is a list of token ids"),
    ],
    ids=str,
)
def test_a_users_mistake_is_named(model: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline(model).run([given])


def test_what_can_be_used_is() -> None:
    assert as_integers(range(3), "x", "").tolist() == [0, 1, 2]
    assert as_integers([], "x", "").dtype is torch.int64
    assert as_integers(np.array([7], np.int32), "x", "").dtype is torch.int64
    assert as_floats(np.array([0.5]), "x").dtype is torch.float32
    assert as_whole_number(np.int64(3), "x", 1, 3) == 3
    for wrong in ([True], [1.0], "12", [None], [1j]):
        with pytest.raises(UsageError, match=r"x is .*; it is a list of ids"):
            as_integers(wrong, "x", "a list of ids")
