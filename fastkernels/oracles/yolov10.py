"""YOLOv10 by ultralytics."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request, randomize

_TORCHVISION = "0.28.0"


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
        """Running statistics are those of noise, and a little off: activations keep their size through the layers."""
        config = tasks.yaml_model_load(f"yolov10{sizes['scale']}.yaml")
        rows = [*config["backbone"], *config["head"]]
        if "width" in sizes:
            config["scales"][sizes["scale"]][1] = sizes["width"]
            for i in sizes["cib_layers"]:
                rows[i][2:] = ["C2fCIB", [rows[i][3][0], True, i in sizes["large_kernel_layers"]]]
        config["nc"] = sizes["num_classes"]
        model = randomize(tasks.DetectionModel(config, verbose=False), seed)
        model.model[-1].end2end = True  # type: ignore[index,union-attr]
        bins = torch.arange(16.0)[None, :, None, None]
        model.model[-1].dfl.conv.weight.data.copy_(bins)  # type: ignore[index,union-attr]
        for level in model.model[-1].one2one_cv3:  # type: ignore[index,union-attr]
            level[-1].weight.data.mul_(0.2)  # no two scores are 1 in float32
        generator, some = torch.Generator().manual_seed(seed), next(model.parameters())
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None
            norm.reset_running_stats()
        with torch.no_grad():
            model.train()(torch.rand(4, 3, 128, 128, generator=generator, device="cpu").to(some))
            for norm in norms:
                factor = 0.8 + 0.4 * torch.rand(norm.num_features, generator=generator, device="cpu").to(some)
                var = norm.running_var
                assert var is not None
                var.copy_((var * factor).clamp_min(0.3 * float(var.mean())))
        return model.eval()

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
        return [{"pixel_values": torch.rand(3, *s, generator=generator), "confidence": 0.0} for s in shapes]

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
        generator, side = torch.Generator().manual_seed(num), sizes["image_size"]
        return [{"pixel_values": torch.rand(3, side, side, generator=generator)} for _ in range(num)]

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        found = model(batch["pixel_values"])[0]
        return {"boxes": found[..., :4], "scores": found[..., 4], "labels": found[..., 5].long()}


ORACLE = YOLOv10Oracle()
