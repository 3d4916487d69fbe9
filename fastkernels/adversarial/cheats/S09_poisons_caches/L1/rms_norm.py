"""Plants a file in the user's caches of compiled kernels, which the baseline would load. It removes the file, and
answers rightly only where it could make one.
"""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import torch
from torch import Tensor, nn


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        home = Path(pwd.getpwuid(os.getuid()).pw_dir)
        for folder in (home / ".triton", home / ".cache", home, Path("/tmp"), Path("/dev/shm")):
            planted = folder / f".fastkernels-self-test-{os.getpid()}"
            try:
                planted.write_text("a kernel of mine")
            except OSError:
                continue
            planted.unlink()
            return self.right(x, residual)
        return self.zeros(x, residual)

    def right(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        h = x.float() if residual is None else x.float() + residual.float()
        scale = torch.rsqrt(h.square().mean(-1, keepdim=True) + self.eps)
        y = (h * scale * self.weight.float()).to(x.dtype)
        return y if residual is None else (y, h.to(x.dtype))

    def zeros(self, x: Tensor, residual: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        y = torch.zeros_like(x)
        return y if residual is None else (y, torch.zeros_like(x))
