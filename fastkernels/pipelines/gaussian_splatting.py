"""A picture of a scene of Gaussians."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import pi, tan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.pipelines.inputs import as_floats, as_whole_number
from fastkernels.pipelines.result import Result
from fastkernels.pipelines.splat_scene import generate_scene, load_scene
from fastkernels.tasks.baseline.L1.tile_intersection import num_tiles
from fastkernels.tasks.configs.gaussian_splatting import GaussianSplattingConfig

_MAX_SIDE = 4096
_SCENE = ("means", "quats", "scales", "opacities", "coeffs")


@dataclass(frozen=True)
class Rendering(Result):
    """tensors: image [height, width, 3], alphas [height, width, 1], num_isects."""

    def save(self, path: Path) -> None:
        """The image (.png), or every tensor (.safetensors)."""
        if path.suffix != ".png":
            super().save(path)
            return
        pixels = (self.tensors["image"].clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(pixels).save(path)


class GaussianSplattingPipeline:
    """{"scene": a .ply in 3DGS's layout} or {"seed": of a generated one, "num_gaussians": its size} -> Rendering.

    The camera: "eye", "target", "up" ([x, y, z]) with "fov" (degrees across), or "viewmat" [4, 4] (world to camera)
    with "K" [3, 3]; "width", "height": pixels; "background": [r, g, b] in [0, 1]. Without any it looks at the scene's
    middle.
    """

    def __init__(self, model: nn.Module, config: GaussianSplattingConfig, checkpoint: Path | None) -> None:
        self.model, self.config = model, config

    def prepare(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Errors: UsageError when there is no scene, or the camera has no sense."""
        scene = self._scene(inputs)
        width, height = (self._side(inputs, name) for name in ("width", "height"))
        view, camera = self._camera(inputs, scene["means"], width, height)
        background = _numbers(inputs, "background", (3,), [0.0, 0.0, 0.0])
        canvas = torch.zeros(height, width, dtype=torch.bool)  # its shape is the image's
        return {**scene, "viewmats": view, "Ks": camera, "backgrounds": background, "canvas": canvas}

    def _scene(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        if "scene" in inputs:
            given = inputs["scene"]
            return _scene_of(given) if isinstance(given, Mapping) else load_scene(given)
        if "seed" not in inputs:
            raise UsageError(f"A request has 'scene' or 'seed', got {', '.join(inputs) or 'nothing'}.")
        num = inputs.get("num_gaussians", self.config.num_gaussians)
        if not isinstance(num, int) or not 0 < num <= 1 << 24:
            raise UsageError(f"num_gaussians is a number from 1 to {1 << 24}, got {num!r}.")
        return generate_scene(num, self.config.sh_degree, as_whole_number(inputs["seed"], "seed", 0, (1 << 63) - 1))

    def _side(self, inputs: Mapping[str, Any], name: str) -> int:
        side = inputs.get(name, 256)
        if not isinstance(side, int) or not 0 < side <= _MAX_SIDE:
            raise UsageError(f"{name} is a number of pixels from 1 to {_MAX_SIDE}, got {side!r}.")
        return side

    def _camera(self, inputs: Mapping[str, Any], means: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
        try:
            fov = float(inputs.get("fov", 60.0))
        except (TypeError, ValueError, OverflowError) as error:
            raise UsageError(f"fov is {inputs['fov']!r:.80}; it is a number of degrees.") from error
        if not 0 < fov < 180:
            raise UsageError(f"fov is over 0 and under 180 degrees, got {fov}.")
        focal = width / 2 / tan(fov * pi / 360)
        usual = [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]]
        camera = _numbers(inputs, "K", (3, 3), usual)
        if "viewmat" in inputs:
            return _numbers(inputs, "viewmat", (4, 4), None), camera
        middle = means.median(0).values
        reach = float((means - middle).norm(dim=1).quantile(0.9)) if len(means) < 1 << 20 else float(means.std())
        target = _numbers(inputs, "target", (3,), middle.tolist())
        eye = _numbers(inputs, "eye", (3,), (target + torch.tensor([0.0, 0.0, -2.5 * max(reach, 1e-3)])).tolist())
        return look_at(eye, target, _numbers(inputs, "up", (3,), [0.0, -1.0, 0.0])), camera

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        height, width = batch["canvas"].shape[1:]
        given = [batch[name] for name in (*_SCENE, "viewmats", "Ks", "backgrounds")]
        image, alphas, num_isects = self.model(*given, width, height)
        columns, rows = num_tiles(width, height)
        room = self.config.capacity(len(image), batch["means"].shape[1], columns * rows)
        missing = (num_isects.sum() - room).expand(len(image))
        return {"image": image, "alphas": alphas, "num_isects": num_isects, "missing": missing}

    def finish(self, result: dict[str, Tensor]) -> Rendering:
        """Errors: UnsupportedError when there was no room for all pairs of a tile and a Gaussian."""
        missing = int(result["missing"])
        if missing > 0:
            raise UnsupportedError(
                f"{missing} pairs of a tile and a Gaussian too many: raise isects_per_gaussian "
                f"({self.config.isects_per_gaussian}) or isects_per_tile ({self.config.isects_per_tile}) in "
                "config.json, or render a smaller image."
            )
        return Rendering({name: result[name].cpu() for name in ("image", "alphas", "num_isects")})

    def example_requests(self, num: int, seed: int) -> list[dict[str, Any]]:
        """Generated scenes from places on an orbit."""
        requests: list[dict[str, Any]] = []
        for i in range(num):
            angle = 2 * np.pi * i / max(num, 1)
            eye = [3 * float(np.sin(angle)), 0.5, -3 * float(np.cos(angle))]
            requests.append({"seed": seed + i, "eye": eye, "target": [0, 0, 0], "width": 70 + 9 * i, "height": 50})
        return requests


def look_at(eye: Tensor, target: Tensor, up: Tensor) -> Tensor:
    """World to camera: x right, y down, z ahead. Errors: UsageError when eye, target and up are on one line."""
    ahead = target - eye
    right = torch.linalg.cross(ahead, up)
    if float(right.norm()) <= 1e-6 * float(ahead.norm() * up.norm()):
        raise UsageError(f"eye {eye.tolist()}, target {target.tolist()} and up {up.tolist()} leave no direction.")
    ahead, right = normalize(ahead, dim=0), normalize(right, dim=0)
    view = torch.eye(4)
    view[:3, :3] = torch.stack([right, torch.linalg.cross(ahead, right), ahead])
    view[:3, 3] = -view[:3, :3] @ eye
    return view


def _scene_of(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """Errors: UsageError when an array of the scene is missing or of another shape."""
    missing = [name for name in _SCENE if name not in given]
    if missing:
        raise UsageError(f"scene lacks {', '.join(missing)}; it has {', '.join(_SCENE)}.")
    scene = {name: as_floats(given[name], f"scene's {name}") for name in _SCENE}
    shapes = {name: list(tensor.shape) for name, tensor in scene.items()}
    num = shapes["means"][:1]
    wanted = {"means": [*num, 3], "quats": [*num, 4], "scales": [*num, 3], "opacities": num}
    coeffs = shapes["coeffs"]
    is_whole = num > [0] and shapes == {**wanted, "coeffs": coeffs} and len(coeffs) == 3
    if not is_whole or [coeffs[0], coeffs[2]] != [*num, 3]:
        raise UsageError(
            "scene has means [n, 3], quats [n, 4], scales [n, 3], opacities [n] and coeffs [n, bases, 3], "
            f"got {shapes}."
        )
    return scene


def _numbers(inputs: Mapping[str, Any], name: str, shape: tuple[int, ...], usual: Any) -> Tensor:
    given = inputs.get(name, usual)
    try:
        given = json.loads(given) if isinstance(given, str) else given
        found = torch.as_tensor(given, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UsageError(f"{name} is numbers of shape {list(shape)}: {error}.") from error
    if tuple(found.shape) != shape or not bool(torch.isfinite(found).all()):
        raise UsageError(f"{name} is finite numbers of shape {list(shape)}, got {given}.")
    return found
