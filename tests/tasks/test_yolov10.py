"""YOLOv10 from a user's side: pictures of any size, none found, boxes drawn, checkpoints that lack a statistic."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import called
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data

from fastkernels.dtypes import default_dtype
from fastkernels.engine.pipeline import Pipeline
from fastkernels.errors import CheckpointError, UsageError
from fastkernels.oracles.measure import distance
from fastkernels.oracles.oracle import oracle_of
from fastkernels.pipelines.yolov10 import COLOURS, letterbox
from fastkernels.registry import architecture
from fastkernels.tasks.baseline.L4.yolov10 import YOLOv10
from fastkernels.tasks.configs.yolov10 import YOLOv10Config
from fastkernels.weights import load_weights, published_tensors, random_tensors


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline("tiny-yolov10", device="cpu")


def test_boxes_lie_in_the_picture_they_were_asked_of(pipeline: Pipeline) -> None:
    photos = [data.chelsea(), data.astronaut()[:37, :200], data.coffee()[:, :1]]
    results = pipeline.run([{"image": photo, "confidence": 0.0} for photo in photos])
    for photo, result in zip(photos, results, strict=True):
        boxes = result.tensors["boxes"]
        height, width = photo.shape[:2]
        assert result.size == (width, height)
        assert boxes.shape == (84, 4)
        assert float(boxes.min()) >= 0
        assert bool((boxes <= torch.tensor([width, height] * 2)).all())
        assert bool((boxes[:, 0] < boxes[:, 2]).any())
        assert bool(result.tensors["scores"].diff().le(0).all())


def test_nothing_found_is_an_empty_answer(pipeline: Pipeline, tmp_path: Path) -> None:
    [result] = pipeline.run([{"image": data.chelsea(), "confidence": 1.0}])
    assert {name: tuple(t.shape) for name, t in result.tensors.items()} == {
        "boxes": (0, 4),
        "scores": (0,),
        "labels": (0,),
    }
    assert result.to_json() == {"image_size": [451, 300], "detections": []}
    result.save(tmp_path / "boxes.png")
    assert Image.open(tmp_path / "boxes.png").size == (451, 300)
    result.save(tmp_path / "boxes.safetensors")
    assert load_file(tmp_path / "boxes.safetensors")["boxes"].shape == (0, 4)


def test_a_box_is_where_it_was_before_the_picture_was_fitted(pipeline: Pipeline) -> None:
    picture, scale, left, top, width, height = letterbox(data.coffee(), 64)
    assert picture.shape == (3, 64, 64)
    assert (width, height) == (600, 400)
    inner = picture[:, top : top + round(height * scale), left : left + round(width * scale)]
    assert inner.shape == (3, 43, 64)
    assert bool((picture[:, :top] == 114).all())
    [fitted] = pipeline.run([{"image": data.coffee(), "confidence": 0.0}])
    [ready] = pipeline.run([{"pixel_values": picture / 255, "confidence": 0.0}])
    mapped = (ready.tensors["boxes"] - torch.tensor([left, top] * 2)) / scale
    mapped = torch.minimum(mapped.clamp_min(0), torch.tensor([width, height] * 2))
    torch.testing.assert_close(fitted.tensors["boxes"], mapped, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({}, "got nothing"),
        ({"image": b"no picture"}, "cannot be read"),
        ({"image": np.zeros((9, 9, 3), np.uint8), "size": 100}, "multiple of 32"),
        ({"image": np.zeros((9, 9, 3), np.uint8), "confidence": 2}, "from 0 to 1"),
        ({"image": np.zeros((9, 9, 3), np.uint8), "confidence": "high"}, "is a number"),
        ({"pixel_values": np.zeros((3, 33, 64))}, "multiples of 32"),
    ],
    ids=str,
)
def test_a_request_that_does_not_fit_says_so(pipeline: Pipeline, request_: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        pipeline.run([request_])


def test_a_checkpoint_without_a_running_statistic_is_refused() -> None:
    model = YOLOv10(YOLOv10Config.tiny())
    tensors = {n: s.narrow(0, 0, s.shape[0]) for n, s in random_tensors(model, 3, torch.device("cpu"))}
    lost = "backbone.layers.0.bn.running_var"
    with pytest.raises(CheckpointError, match=f"1 missing: {lost}"):
        load_weights(model, ((n, t) for n, t in tensors.items() if n != lost))
    counted = {"backbone.layers.0.bn.num_batches_tracked": torch.tensor(7)}
    load_weights(model, (tensors | counted).items())
    assert torch.equal(model.get_buffer(lost), tensors[lost])
    assert all(bool((t > 0).all()) for n, t in tensors.items() if n.endswith("running_var"))
    assert len(published_tensors(model)) == len(tensors)


def test_a_config_of_another_yolo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="yolov8n"):
        YOLOv10Config.from_hf({"model": "yolov8n.yaml"})
    (tmp_path / "config.json").write_text(json.dumps({"model": "yolov10n.yaml", "names": {"0": "cat"}}))
    save_file({"model.model.0.conv.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="missing"):
        Pipeline(tmp_path, device="cpu")


def test_defaults_are_those_of_the_smallest_published_model() -> None:
    assert YOLOv10Config.from_hf({"model": "yolov10n.yaml"}) == YOLOv10Config()
    assert YOLOv10Config.from_hf({"model": "yolov10m.yaml"}).large_kernel_layers == ()


def test_generate_draws_boxes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(data.astronaut()).save(tmp_path / "photo.jpg")
    out = tmp_path / "boxes.png"
    given = ("--input", f"image={tmp_path / 'photo.jpg'}", "--input", "confidence=0", "--out", str(out), "--json")
    command = ["generate", "--model", "tiny-yolov10", "--device", "cpu", *given]
    done = called(capsys, *command)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["detections"]) == 84
    drawn = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert drawn.shape == (512, 512, 3)
    colours = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS]
    assert sum(int((drawn == colour).all(-1).sum()) for colour in colours) > 500


@pytest.mark.slow
def test_the_librarys_boxes_in_float16_are_mostly_those_in_float32() -> None:
    """Else what half precision costs ours could not be told: of equal scores anything may be the best."""
    oracle: Any = oracle_of(architecture("yolov10"))
    sizes = {**oracle.published(None), "image_size": 160}
    with default_dtype(torch.float16):
        half = oracle.build(sizes, seed=1)
    wide = oracle.build(sizes, seed=1)
    wide.load_state_dict(half.state_dict())
    pictures = torch.stack([request["pixel_values"] for request in oracle.load(sizes, 2, "published")])
    with torch.inference_mode():
        wanted = oracle.forward(wide, {"pixel_values": pictures})
        given = oracle.forward(half, {"pixel_values": pictures.half()})
    assert bool((wanted["scores"] < 1).all())
    assert bool((wanted["scores"][:, 0] > 2 * wanted["scores"][:, -1]).all())
    mine, theirs = oracle.paired(given, wanted)
    assert float(mine["found"].float().mean()) >= 0.9
    assert distance(mine["scores"], theirs["scores"])["relative_rms"] < 0.1


def test_what_is_measured_is_the_librarys_model_as_its_predictor_serves_it() -> None:
    oracle: Any = oracle_of(architecture("yolov10"))
    from ultralytics.nn.autobackend import AutoBackend  # without torchvision it is there only now

    sizes = oracle.tiny()["ours"]
    model = oracle.build(sizes, seed=1)
    ways = oracle.modes(model, None)
    served = AutoBackend(copy.deepcopy(model), torch.device("cpu"), verbose=False).backend.model
    assert list(ways) == ["library"]
    measured = ways["library"]()
    assert ways["library"]() is measured
    assert list(measured.state_dict()) == list(served.state_dict())
    assert not model.is_fused()  # the one that parity is of has the weights that ours gets
    batch = {"pixel_values": torch.stack([request["pixel_values"] for request in oracle.requests(sizes)[:1]])}
    with torch.inference_mode():
        mine, theirs = oracle.paired(oracle.forward(measured, batch), oracle.forward(model, batch))
    assert bool(mine["found"].all())
    assert distance(mine["boxes"], theirs["boxes"])["relative_max"] <= 1e-4
    half = oracle.modes(copy.deepcopy(model).half(), None)["library"]()
    assert {t.dtype for t in half.parameters()} == {torch.float16}
    assert "fused" in oracle.measured_against(model)


def test_boxes_are_compared_in_any_order_and_those_without_a_partner_are_told() -> None:
    oracle = oracle_of(architecture("yolov10"))
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 40, 10], [0, 0, 10, 10]])
    wanted = {"boxes": boxes, "scores": torch.tensor([0.9, 0.8, 0.7]), "labels": torch.tensor([1, 1, 2])}
    given = {name: t[[2, 0, 1]] for name, t in wanted.items()}
    given["boxes"] = given["boxes"] + torch.tensor([0.0, 0, 0, 1])
    given["labels"] = torch.tensor([2, 1, 3])
    mine, theirs = (dict(a) for a in oracle.paired(*({n: t[None] for n, t in a.items()} for a in (given, wanted))))
    assert mine["found"].tolist() == [1, 0, 1]
    assert theirs["found"].tolist() == [1, 1, 1]
    assert mine["scores"].tolist() == theirs["scores"].tolist()
    assert (mine["boxes"] - theirs["boxes"]).tolist() == [[0, 0, 0, 1]] * 2
    nothing, _ = oracle.paired(*({n: t[None] + add for n, t in wanted.items()} for add in (100, 0)))
    assert set(nothing) == {"found"}
