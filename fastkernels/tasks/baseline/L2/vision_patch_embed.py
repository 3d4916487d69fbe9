"""Patches of pictures and videos as vectors."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.conv3d import Conv3d


class VisionPatchEmbed(Op):
    """embeddings[i] = proj of patch i: some frames of a square of pixels, laid out channel by channel, frame by frame.

    Shapes:  pixel_values: [num_patches, patch_dim], patch_dim = in_channels * temporal_patch_size * patch_size^2;
             embeddings: [num_patches, embed_dim].
    Dtypes:  bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: embeddings. No argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; as vLLM's Qwen2VisionPatchEmbed.
    """

    spec = OpSpec(
        inputs={"pixel_values": TensorSpec(("num_patches", "patch_dim"))},
        outputs={"embeddings": TensorSpec(("num_patches", "embed_dim"))},
        examples=(
            {"patch_size": 4, "embed_dim": 32},
            {"patch_size": 5, "temporal_patch_size": 1, "in_channels": 2, "embed_dim": 37, "bias": True},
        ),
    )

    def __init__(
        self,
        patch_size: int = 14,
        temporal_patch_size: int = 2,
        in_channels: int = 3,
        embed_dim: int = 1280,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.embed_dim = in_channels, embed_dim
        self.kernel_size = (temporal_patch_size, patch_size, patch_size)
        self.patch_dim = in_channels * temporal_patch_size * patch_size**2
        self.proj = Conv3d(in_channels, embed_dim, self.kernel_size, stride=self.kernel_size, bias=bias)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = pixel_values.unflatten(-1, (self.in_channels, *self.kernel_size))
        return self.proj(patches).flatten(1)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        num_bytes = super().cost(inputs, outputs).num_bytes
        return Cost(num_bytes, 2 * len(inputs["pixel_values"]) * self.proj.weight.numel())
