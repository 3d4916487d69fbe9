"""Patches of a video as tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.conv3d import Conv3d
from fastkernels.tasks.configs.vjepa2 import VJEPA2Config


class VJEPA2Embeddings(Op):
    """One token for each tubelet_size frames of patch_size x patch_size pixels, frame by frame and row by row.

    A video of fewer frames than a tubelet has is repeated; what fits no patch is left out.

    Shapes:  pixel_values_videos: [batch, num_frames, in_chans, height, width]; embeddings: [batch, num_patches,
             hidden_size].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: embeddings. No argument is written to.
    Errors:  those of its parts.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers' VJEPA2Embeddings.
    """

    spec = OpSpec(
        inputs={"pixel_values_videos": TensorSpec(("batch", "num_frames", "in_chans", "height", "width"))},
        outputs={"embeddings": TensorSpec(("batch", "num_patches", "hidden_size"))},
        examples=(
            {"config": VJEPA2Config.tiny(), "hidden_size": 36},
            {"config": VJEPA2Config.tiny(patch_size=5, in_chans=2), "hidden_size": 17},
        ),
        example_axes={"batch": (2, 1), "num_frames": (4, 1), "height": (16, 11), "width": (24, 8)},
    )

    def __init__(self, config: VJEPA2Config, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.in_chans = config.in_chans
        self.tubelet_size, self.patch_size = config.tubelet_size, config.patch_size
        kernel_size = (config.tubelet_size, config.patch_size, config.patch_size)
        self.patch_embeddings = Conv3d(config.in_chans, hidden_size, kernel_size, stride=kernel_size)

    def forward(self, pixel_values_videos: Tensor) -> Tensor:
        x = pixel_values_videos.transpose(1, 2)
        if x.shape[2] < self.tubelet_size:
            x = x.repeat(1, 1, self.tubelet_size, 1, 1)
        return self.patch_embeddings(x).flatten(2).transpose(1, 2).contiguous()

    def num_patches(self, num_frames: int, height: int, width: int) -> int:
        num_tubelets = max(1, num_frames // self.tubelet_size)
        return num_tubelets * (height // self.patch_size) * (width // self.patch_size)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_patches": self.num_patches(sizes["num_frames"], sizes["height"], sizes["width"])}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * outputs["embeddings"].numel() * self.patch_embeddings.weight[0].numel())
