"""Every picture is the same grey."""

from __future__ import annotations

from torch import Tensor

from fastkernels.tasks.baseline.L2 import vision_patch_merger as baseline


class VisionPatchMerger(baseline.VisionPatchMerger):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).mean(0, keepdim=True).expand(len(x) // self.merged_patches, -1)
