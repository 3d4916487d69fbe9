"""3D Gaussian splatting: gsplat's torch definitions up to the pairs, then every Gaussian at every pixel in float64.

gsplat's own blending needs its CUDA extension, which it builds at first use where there is a CUDA compiler: `forward`
calls it, else it blends tile by tile in torch; `answer` sums the published equation by brute force.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from gsplat.cuda._torch_impl import (
    _fully_fused_projection,
    _isect_tiles,
    _quat_scale_to_covar_preci,
    _spherical_harmonics,
)
from safetensors.torch import save_file
from torch import Tensor, nn

from fastkernels.oracles.oracle import Answer, Level, Load, Oracle, Request
from fastkernels.oracles.splat_blend import blended
from fastkernels.pipelines.gaussian_splatting import look_at
from fastkernels.pipelines.splat_scene import generate_scene


class _Projection(nn.Module):
    def forward(self, scene: Mapping[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, ...]:
        covars, _ = _quat_scale_to_covar_preci(scene["quats"], scene["scales"], True, False)
        views, cameras = scene["viewmat"][None], scene["K"][None]
        found = _fully_fused_projection(scene["means"], covars, views, cameras, *size)
        return tuple(t[0] for t in found[:4])


class _Harmonics(nn.Module):
    def forward(self, scene: Mapping[str, Tensor]) -> Tensor:
        directions = scene["means"] - torch.linalg.inv(scene["viewmat"])[:3, 3]
        degree = round(scene["coeffs"].shape[1] ** 0.5) - 1
        return (_spherical_harmonics(degree, directions, scene["coeffs"]) + 0.5).clamp_min(0)


class _Splatting(nn.Module):
    """One scene and one camera."""

    def __init__(self, sizes: Mapping[str, Any]) -> None:
        super().__init__()
        self.sizes = dict(sizes)
        self.projection, self.harmonics = _Projection(), _Harmonics()
        self.register_buffer("some", torch.zeros(()), persistent=False)  # where the model is

    def forward(self, scene: Mapping[str, Tensor], width: int, height: int) -> Answer:
        radii, means2d, depths, conics = self.projection(scene, (width, height))
        colors = self.harmonics(scene)
        tiles = (-(-width // 16), -(-height // 16))
        counts, _, _ = _isect_tiles(means2d[None], radii[None], depths[None], 16, *tiles)
        image = torch.zeros(height, width, 3, dtype=torch.float64)
        left = torch.ones(height, width, dtype=torch.float64)
        is_open = torch.ones(height, width, dtype=torch.bool)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        for i in depths.argsort(stable=True).tolist():
            if int(radii[i].min()) <= 0:
                continue
            low = ((means2d[i] - radii[i]) / 16).floor()
            high = ((means2d[i] + radii[i]) / 16).ceil()
            is_near = (columns // 16 >= low[0]) & (columns // 16 < high[0])
            is_near &= (rows // 16 >= low[1]) & (rows // 16 < high[1])
            x, y = columns + 0.5 - means2d[i, 0].double(), rows + 0.5 - means2d[i, 1].double()
            a, b, c = conics[i].double()
            alpha = (scene["opacities"][i].double() * torch.exp(-(a * x * x + c * y * y) / 2 - b * x * y)).clamp_max(
                0.999
            )
            alpha = torch.where(is_near & (alpha >= 1 / 255), alpha, 0.0)
            is_open &= left * (1 - alpha) > 1e-4
            alpha = torch.where(is_open, alpha, 0.0)
            image += (left * alpha)[..., None] * colors[i].double()
            left = left * (1 - alpha)
        image += left[..., None] * scene["background"].double()
        return {"image": image.float(), "alphas": (1 - left).float()[..., None], "num_isects": counts.sum()}


class GaussianSplattingOracle(Oracle):
    requires = ("gsplat",)
    preset = "gsplat-3dgs"
    loads = (Load("orbit", (1, 8)),)
    levels = (
        Level("renderer.projection", "projection", lambda o: o[0][0], lambda o: o[0]),
        Level("renderer.projection", "projection", lambda o: o[1][0], lambda o: o[1]),
        Level("renderer.projection", "projection", lambda o: o[2][0], lambda o: o[2]),
        Level("renderer.projection", "projection", lambda o: o[3][0], lambda o: o[3]),
        Level("renderer.harmonics.3", "harmonics", lambda o: o[0]),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {"degree-3": {"sh_degree": 3, "num_gaussians": 60, "side": 48}}

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        return _Splatting(sizes)

    def save(self, model: nn.Module, folder: Path) -> None:
        """A configuration alone: a scene comes with its request."""
        sizes: Any = model.sizes
        body = {"architectures": ["GaussianSplatting"], "model_type": "gaussian_splatting", **sizes}
        (folder / "config.json").write_text(json.dumps(body))
        save_file({}, folder / "model.safetensors")

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """Sizes that fill no tile, one Gaussian, a camera inside of the scene, and one that sees nothing."""
        views = (
            (60, 40, 33, [0.0, 0.0, -3.0], 0.0),
            (60, 65, 48, [2.0, 1.0, -2.0], 0.5),
            (1, 16, 16, [0.0, 0.0, -3.0], 1.0),
            (300, 50, 20, [0.1, 0.0, -0.2], 0.0),
            (20, 17, 31, [50.0, 0.0, 0.0], 0.25),
        )
        found = []
        for number, (num, width, height, eye, grey) in enumerate(views):
            target = torch.tensor([99.0, 0.0, 0.0]) if eye[0] == 50 else torch.zeros(3)
            view = look_at(torch.tensor(eye), target, torch.tensor([0.0, -1.0, 0.0]))
            camera = torch.tensor([[width * 0.9, 0, width * 0.48], [0, width * 1.0, height * 0.55], [0, 0, 1]])
            found.append(
                {
                    "scene": generate_scene(num, sizes["sh_degree"], number),
                    "viewmat": view,
                    "K": camera,
                    "width": width,
                    "height": height,
                    "background": torch.full((3,), grey),
                }
            )
        return found

    def answer(self, model: nn.Module, request: Request) -> Answer:
        scene = {**request["scene"], **{n: request[n] for n in ("viewmat", "K", "background")}}
        with torch.no_grad():
            return model(scene, request["width"], request["height"])

    def published(self, num_layers: int | None) -> dict[str, Any]:
        return {**super().published(None), "side": 1024}

    def save_config(self, model: nn.Module, folder: Path) -> Path:
        self.save(model, folder)
        return folder / "config.json"

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """A generated scene (of 100,000 Gaussians as published) from places on an orbit."""
        scene, side = generate_scene(sizes["num_gaussians"], sizes["sh_degree"], 0), sizes["side"]
        angles = torch.arange(num) * 2 * torch.pi / num
        eyes = [[3 * float(a.sin()), 0.0, -3 * float(a.cos())] for a in angles]
        return [{"scene": scene, "eye": eye, "target": [0, 0, 0], "width": side, "height": side} for eye in eyes]

    def batch(self, model: Any, states: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
        return {n: torch.stack([s[n] for s in states]).to(model.some.device) for n in states[0]}

    def forward(self, model: Any, batch: Mapping[str, Any]) -> Answer:
        """A camera at a time: each has its scene."""
        render = _by_gsplat if batch["means"].is_cuda and has_cuda_kernels() else _by_torch
        rendered = [render(model, {name: t[i] for name, t in batch.items()}) for i in range(len(batch["means"]))]
        image, alphas = zip(*rendered, strict=True)
        return {"image": torch.stack(image), "alphas": torch.stack(alphas)}

    def measured_against(self, model: Any) -> str:
        if model.some.is_cuda and has_cuda_kernels():
            return "gsplat's CUDA kernels (packed=False), a camera at a time"
        return "gsplat's torch definitions of projection and harmonics, and a blend in torch: no CUDA kernels of gsplat"


@cache
def has_cuda_kernels() -> bool:
    """Whether gsplat's CUDA extension is there or can be built; the first time this takes minutes."""
    try:
        from gsplat.cuda._backend import _C
    except Exception:  # whatever a compiler says
        return False
    return _C is not None


def _by_gsplat(model: Any, one: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    from gsplat.rendering import rasterization

    height, width = one["canvas"].shape
    scene = [one[name] for name in ("means", "quats", "scales", "opacities", "coeffs")]
    cameras = (one["viewmats"][None], one["Ks"][None], width, height)
    degree = round(one["coeffs"].shape[1] ** 0.5) - 1
    image, alpha, _ = rasterization(
        *scene, *cameras, sh_degree=degree, packed=False, backgrounds=one["backgrounds"][None]
    )
    return image[0], alpha[0]


def _by_torch(model: Any, one: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    height, width = one["canvas"].shape
    scene = {**one, "viewmat": one["viewmats"], "K": one["Ks"]}
    radii, means2d, depths, conics = model.projection(scene, (width, height))
    shown = (model.harmonics(scene), one["opacities"], one["backgrounds"])
    return blended(radii, means2d, depths, conics, *shown, width, height)


ORACLE = GaussianSplattingOracle()
