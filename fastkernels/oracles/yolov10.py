"""YOLOv10 by ultralytics."""

from __future__ import annotations

import copy
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, randomize
from fastkernels.scoring.boxes import pairs

_TORCHVISION = "0.28.0"
_SCALES = (1, 2, 4, 8, 16, 32, 64, 128)


def _ultralytics() -> Any:
    """ultralytics.nn.tasks. It asks for torchvision when it is imported, which the detection model does not use.

    What it replaces of other libraries is put back.
    """
    stub = ModuleType("torchvision")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
    version = importlib.metadata.version
    versions = patch(
        "importlib.metadata.version", lambda name: _TORCHVISION if name == "torchvision" else version(name)
    )
    stubs = {} if importlib.util.find_spec("torchvision") is not None else {"torchvision": stub}
    sys.modules.update(stubs)
    before = (Image.open, torch.save, torch.load)  # it puts its own in their place
    try:
        with versions if stubs else nullcontext():
            return importlib.import_module("ultralytics.nn.tasks")
    finally:
        Image.open, torch.save, torch.load = before
        for name in stubs:
            del sys.modules[name]


tasks = _ultralytics()


def _of_head(name: str) -> Any:
    """What the one-to-one head says, place by place."""
    return lambda output: output[1]["one2one"][name].transpose(1, 2)


def _pictures(num: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """[num, 3, height, width] in [0, 1]: noise of several scales, so that places and pictures differ as photographs'
    do."""
    noise = [torch.randn(num, 3, -(-height // n), -(-width // n), generator=generator, device="cpu") for n in _SCALES]
    layers = [interpolate(some.float(), (height, width), mode="bilinear") for some in noise]
    return torch.stack(layers).sum(0).mul(1.5 * len(layers) ** -0.5).sigmoid()


def _set_norm(generator: torch.Generator, norm: Any, given: tuple[Tensor]) -> None:
    """Statistics of what comes, the variance a little off."""
    var, mean = torch.var_mean(given[0].float(), (0, 2, 3), correction=0)
    factor = 0.8 + 0.4 * torch.rand(len(var), generator=generator, device="cpu").to(var)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_((var * factor).clamp_min(0.3 * float(var.mean())))


def _set_logits(least: float, most: float, generator: torch.Generator, conv: Any, given: tuple[Tensor]) -> None:
    """The layer's weights and biases such that each channel has about the mean `least`, and one in 2000 of all is over
    `most`: of the largest alone it would be a picture's outlier that decides."""
    y = conv.forward(given[0]).float()
    var, mean = torch.var_mean(y, (0, 2, 3), correction=0)
    factor = var.clamp_min(1e-6).rsqrt()
    unit = (y - mean[:, None, None]) * factor[:, None, None]
    factor *= (most - least) / float(unit.quantile(1 - 1 / 2000))
    conv.weight.mul_(factor[:, None, None, None])
    wanted = least + 0.1 * torch.randn(len(var), generator=generator, device="cpu").to(var)
    conv.bias.copy_((conv.bias - mean) * factor + wanted)


def _served(model: Any) -> nn.Module:
    """A copy as ultralytics' AutoBackend makes it of a model that is to answer: fused in float32, then in its dtype."""
    dtype = next(model.parameters()).dtype
    return copy.deepcopy(model).float().fuse(verbose=False).to(dtype)


class YOLOv10Oracle(Oracle):
    library = "ultralytics"
    preset = "yolov10n"
    loads = (Load("published", (1, 32)),)
    requires = ("cv2", "matplotlib")
    levels = (
        Level("backbone.layers.{i}", "model.{i}"),
        Level("backbone.layers.10.attn", "model.10.attn"),
        Level("neck.layers.{i}", "model.{i}"),
        Level("head", "model.23", their_output=_of_head("boxes")),
        Level("head", "model.23", lambda output: output[1], _of_head("scores")),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "hub": {"scale": "n", "num_classes": 80, "image_size": 64},  # the published size, names and config.json
            "ours": {
                "scale": "s",
                "num_classes": 5,
                "width": 0.25,
                "cib_layers": [8, 19, 22],
                "large_kernel_layers": [8, 22],
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        """Weights by seed, of which statistics and heads are set by pictures, each layer by what comes to it: values
        keep their size through the layers, and scores lie well apart, as a trained model's."""
        config = tasks.yaml_model_load(f"yolov10{sizes['scale']}.yaml")
        rows = [*config["backbone"], *config["head"]]
        if "width" in sizes:
            config["scales"][sizes["scale"]][1] = sizes["width"]
            for i in sizes["cib_layers"]:
                rows[i][2:] = ["C2fCIB", [rows[i][3][0], True, i in sizes["large_kernel_layers"]]]
        config["nc"] = sizes["num_classes"]
        model = randomize(tasks.DetectionModel(config, verbose=False), seed)
        head: Any = model.model[-1]  # type: ignore[index,union-attr]
        head.end2end = True
        head.dfl.conv.weight.data.copy_(torch.arange(16.0)[None, :, None, None])
        some, generator = next(model.parameters()), torch.Generator().manual_seed(seed)
        layers: list[Any] = [(module, _set_norm) for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        layers += [(level[-1], partial(_set_logits, 0.0, 4.0)) for level in head.one2one_cv2]
        layers += [(level[-1], partial(_set_logits, -6.0, -2.0)) for level in head.one2one_cv3]
        hooks = [layer.register_forward_pre_hook(partial(setter, generator)) for layer, setter in layers]
        side = sizes.get("image_size", 64)
        with torch.no_grad():
            model(_pictures(min(64, 8 * (640 // side) ** 2), side, side, generator).to(some))
        for hook in hooks:
            hook.remove()
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        """As the hub's safetensors, or by the names of ultralytics' own state_dict."""
        self.save_config(model, folder)
        prefix = "model." if model.yaml["nc"] == 80 else ""  # type: ignore[index]
        tensors = {f"{prefix}{name}": t.contiguous().clone() for name, t in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")

    def save_config(self, model: nn.Module, folder: Path) -> Path:
        classes, config = model.yaml["nc"], model.yaml  # type: ignore[index]
        names = {str(i): f"class {i}" for i in range(int(classes))}
        body: dict[str, Any] = {"model": "yolov10n.yaml", "names": names, "task": "detect"}
        if classes != 80:
            depth, width, most = config["scales"]["s"]  # type: ignore[index]
            rows = [*config["backbone"], *config["head"]]  # type: ignore[index]
            cib = [i for i, row in enumerate(rows) if row[2] == "C2fCIB"]
            body = {
                "architectures": ["YOLOv10"],
                "depth": depth,
                "width": width,
                "max_channels": most,
                "num_classes": classes,
                "cib_layers": cib,
                "large_kernel_layers": [i for i in cib if rows[i][3][-1]],
            }
        path = folder / "config.json"
        path.write_text(json.dumps(body))
        return path

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """A square, a wide and a tall picture, and the least one."""
        generator = torch.Generator().manual_seed(3)
        shapes = ((64, 64), (64, 96), (96, 32), (32, 32))
        return [{"pixel_values": _pictures(1, *shape, generator)[0], "confidence": 0.0} for shape in shapes]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        pixels = torch.as_tensor(request["pixel_values"])
        with torch.no_grad():
            found = model(pixels[None])[0][0]
        size = torch.tensor([*pixels.shape[:0:-1]] * 2)
        return {
            "boxes": torch.minimum(found[:, :4].clamp_min(0), size),
            "scores": found[:, 4],
            "labels": found[:, 5].long(),
        }

    def published(self, num_layers: int | None) -> dict[str, Any]:
        return {"scale": "n", "num_classes": 80, "image_size": 640}

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        side = sizes["image_size"]
        pictures = _pictures(num, side, side, torch.Generator().manual_seed(num))
        return [{"pixel_values": picture} for picture in pictures]

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        found = model(batch["pixel_values"])[0]
        return {"boxes": found[..., :4], "scores": found[..., 4], "labels": found[..., 5].long()}

    def modes(self, model: nn.Module, compile_mode: str | None) -> dict[str, Callable[[], Any]]:
        return super().modes(_served(model), compile_mode)

    def measured_against(self, model: nn.Module) -> str:
        return "DetectionModel of ultralytics, fused as its predictor serves it: no norms, no one-to-many head"

    def paired(self, given: Answer, wanted: Answer) -> tuple[Answer, Answer]:
        """Boxes of one label that overlap by half, one to one: near scores change places in half precision. found:
        which of those wanted have a partner."""
        rows: list[tuple[int, int]] = []
        num = wanted["scores"].shape[1]
        for i in range(len(wanted["scores"])):
            sides = [[answer[n][i].float().cpu().numpy() for n in ("boxes", "labels")] for answer in (wanted, given)]
            rows += [(i * num + a, i * num + b) for a, b, overlap in pairs(*sides[0], *sides[1]) if overlap >= 0.5]
        found = torch.zeros(wanted["scores"].numel(), dtype=torch.int64)
        found[[a for a, _ in rows]] = 1
        names = ("boxes", "scores") if rows else ()
        mine, theirs = (
            {n: answer[n].flatten(0, 1)[[row[side] for row in rows]] for n in names}
            for side, answer in ((1, given), (0, wanted))
        )
        return {**mine, "found": found}, {**theirs, "found": torch.ones_like(found)}


ORACLE = YOLOv10Oracle()
