"""The noise levels that a diffusion model is stepped through."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastkernels.tasks.configs.sdxl import EulerConfig


def euler_schedule(config: EulerConfig, num_steps: int) -> tuple[Tensor, Tensor, float]:
    """Timesteps [num_steps], noise levels [num_steps + 1] that end at 0, and the deviation of the first latents.

    Source: as EulerDiscreteScheduler.set_timesteps of diffusers: https://huggingface.co/papers/2305.08891, table 2.
    """
    start, end, num = config.beta_start, config.beta_end, config.num_train_timesteps
    if config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, num, dtype=torch.float32) ** 2
    else:
        betas = torch.linspace(start, end, num, dtype=torch.float32)
    kept = torch.cumprod(1 - betas, dim=0)
    levels = ((1 - kept) / kept).sqrt().numpy()
    timesteps: np.ndarray
    if config.timestep_spacing == "leading":
        timesteps = np.arange(num_steps)[::-1] * (num // num_steps) + config.steps_offset
    elif config.timestep_spacing == "trailing":
        timesteps = np.arange(num, 0, -num / num_steps).round() - 1
    else:
        timesteps = np.linspace(0, num - 1, num_steps, dtype=np.float32)[::-1]
    sigmas = np.append(np.interp(timesteps, np.arange(num), levels), 0.0).astype(np.float32)
    first = float(sigmas.max())
    deviation = (first**2 + 1) ** 0.5 if config.timestep_spacing == "leading" else first
    return torch.from_numpy(timesteps.astype(np.float32)), torch.from_numpy(sigmas), deviation
