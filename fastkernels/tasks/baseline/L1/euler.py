"""Euler's method on the noise level of a diffusion model: what goes into the model, and what its answer comes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, Role, TensorSpec

_LATENTS = TensorSpec(("batch", "channels", "height", "width"))
_LEVEL = TensorSpec(("batch",), dtype="float32", role=Role.COUPLED)
_AXES = {"batch": (2, 1), "channels": (4, 3), "height": (6, 9), "width": (8, 11)}


def _levels(sizes: Mapping[str, int], generator: torch.Generator) -> Tensor:
    """Noise levels from 0.1 to 15."""
    return 0.1 * 150 ** torch.rand(sizes["batch"], generator=generator)


def _over_pixels(level: Tensor, dtype: torch.dtype) -> Tensor:
    return level.to(dtype)[:, None, None, None]


class EulerScaleModelInput(Op):
    """y = sample / sqrt(sigma^2 + 1).

    Shapes:  sample, y: [batch, channels, height, width]; sigma: [batch].
    Dtypes:  sample bf16, fp16 or fp32, sigma fp32; computed in fp32 and rounded once.
    Returns: y. No argument is written to.
    Source:  Karras et al. 2022 (https://arxiv.org/abs/2206.00364); as scale_model_input of
             diffusers' EulerDiscreteScheduler.
    """

    spec = OpSpec(inputs={"sample": _LATENTS, "sigma": _LEVEL}, outputs={"y": _LATENTS}, example_axes=_AXES)

    def forward(self, sample: Tensor, sigma: Tensor) -> Tensor:
        return self.reference(sample, sigma)

    def reference(self, sample: Tensor, sigma: Tensor) -> Tensor:
        dtype = compute_dtype(sample)
        return (sample.to(dtype) / (_over_pixels(sigma, dtype) ** 2 + 1).sqrt()).to(sample.dtype)

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return {"sigma": _levels(sizes, generator)}


class EulerStep(Op):
    """prev = sample + (next_sigma - sigma) * derivative, from the model's output under guidance.

    output = model_output of the one condition, or without + guidance_scale * (with - without) of two. The derivative is
    the output when it is the noise; of a velocity v it is v / sqrt(sigma^2 + 1) + sample * sigma / (sigma^2 + 1).

    Shapes:  sample, prev: [batch, channels, height, width]; model_output: [batch, num_conditions, channels, height,
             width], without the condition and with it, or with it alone; sigma, next_sigma, guidance_scale: [batch].
    Dtypes:  sample and model_output bf16, fp16 or fp32, the others fp32; computed in fp32 and rounded once.
    Returns: prev. No argument is written to.
    Errors:  ValueError for another prediction_type, or for more than two conditions.
    Source:  Karras et al. 2022 (https://arxiv.org/abs/2206.00364), Ho & Salimans 2022 (https://arxiv.org/abs/2207.12598);
             as EulerDiscreteScheduler.step of diffusers.
    """

    spec = OpSpec(
        inputs={
            "sample": _LATENTS,
            "model_output": TensorSpec(("batch", "num_conditions", "channels", "height", "width")),
            "sigma": _LEVEL,
            "next_sigma": _LEVEL,
            "guidance_scale": _LEVEL,
        },
        outputs={"prev": _LATENTS},
        examples=({}, {"prediction_type": "v_prediction"}),
        example_axes={**_AXES, "num_conditions": (2, 1)},
    )

    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__()
        if prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type is 'epsilon' or 'v_prediction', got {prediction_type!r}.")
        self.prediction_type = prediction_type

    def forward(
        self, sample: Tensor, model_output: Tensor, sigma: Tensor, next_sigma: Tensor, guidance_scale: Tensor
    ) -> Tensor:
        if model_output.shape[1] not in (1, 2):
            raise ValueError(f"EulerStep takes one condition or two, got model_output of {tuple(model_output.shape)}.")
        return self.reference(sample, model_output, sigma, next_sigma, guidance_scale)

    def reference(
        self, sample: Tensor, model_output: Tensor, sigma: Tensor, next_sigma: Tensor, guidance_scale: Tensor
    ) -> Tensor:
        dtype = compute_dtype(sample)
        x, level, after = sample.to(dtype), _over_pixels(sigma, dtype), _over_pixels(next_sigma, dtype)
        output = model_output[:, -1].to(dtype)
        if model_output.shape[1] == 2:
            without = model_output[:, 0].to(dtype)
            output = without + _over_pixels(guidance_scale, dtype) * (output - without)
        if self.prediction_type == "v_prediction":
            power = level**2 + 1
            output = output / power.sqrt() + x * level / power
        return (x + (after - level) * output).to(sample.dtype)

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        sigma = _levels(sizes, generator)
        share = torch.rand(sizes["batch"], generator=generator)
        scale = 1 + 9 * torch.rand(sizes["batch"], generator=generator)
        return {"sigma": sigma, "next_sigma": 0.8 * share * sigma, "guidance_scale": scale}
