"""Never answers, and leaves a process beside itself."""

from __future__ import annotations

import subprocess
import time

from torch import Tensor, nn


class ReLU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        subprocess.Popen(["sleep", "3141592"], start_new_session=True)
        time.sleep(3600)
        return x
