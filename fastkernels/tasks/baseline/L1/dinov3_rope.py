"""DINOv3's rotary embedding: angles by the place of a patch in the image."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import tau

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.dinov3_rope import dinov3_rope
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, TensorSpec, scalar

_HEADS = TensorSpec(("batch", "num_tokens", "num_heads", "head_size"))


class DINOv3Rope(Op):
    """Rotates the pairs (i, i + head_size / 2) of each patch's query and key by 2 pi * place * base^(-4 i / head_size).

    The place of a patch is its centre in [-1, 1], its row for the first quarter of i and its column for the second.
    Tokens ahead of the patches have no place and stay as they are.

    Shapes:  query, key and both results: [batch, num_tokens, num_heads, head_size], the last height * width tokens are
             the patches, row by row; height, width: patches a side.
    Dtypes:  bf16, fp16 or fp32; angles and products in fp32.
    Returns: (query, key), rotated. No argument is written to.
    Errors:  ValueError when there are fewer tokens than patches.
    Source:  Simeoni et al. 2025 (https://arxiv.org/abs/2508.10104); as DINOv3ViTRopePositionEmbedding of transformers.
    """

    spec = OpSpec(
        inputs={"query": _HEADS.strided(), "key": _HEADS.strided(), "height": scalar(), "width": scalar()},
        outputs={"rotated_query": _HEADS, "rotated_key": _HEADS},
        examples=({"head_size": 24}, {"head_size": 128, "base": 10000.0, "num_prefix_tokens": 1}),
        example_axes={"batch": (2, 1), "height": (4, 1, 7), "width": (3, 5, 1), "num_heads": (2, 3)},
    )

    def __init__(self, head_size: int, base: float = 100.0, num_prefix_tokens: int = 5) -> None:
        super().__init__()
        if head_size % 4:
            raise ValueError(f"DINOv3Rope splits head_size in four, got {head_size}.")
        self.head_size = head_size
        self.base = base
        self.num_prefix_tokens = num_prefix_tokens

    def forward(self, query: Tensor, key: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        if query.shape[1] < height * width:
            raise ValueError(f"{height} x {width} patches do not fit {query.shape[1]} tokens.")
        if uses_reference(query):
            return self.reference(query, key, height, width)
        cos, sin = _angles(height, width, self.head_size, self.base, torch.float32, query.device)
        return dinov3_rope(query, key, cos[:, 0], sin[:, 0])

    def reference(self, query: Tensor, key: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        num_prefix = query.shape[1] - height * width
        cos, sin = _angles(height, width, self.head_size, self.base, compute_dtype(query), query.device)
        rotated = []
        for x in (query, key):
            first, second = x[:, num_prefix:].to(cos.dtype).chunk(2, dim=-1)
            patches = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
            rotated.append(torch.cat([x[:, :num_prefix], patches.to(x.dtype)], dim=1))
        return rotated[0], rotated[1]

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_tokens": self.num_prefix_tokens + sizes["height"] * sizes["width"]}


@cache
def _angles(
    height: int, width: int, head_size: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin: [height * width, 1, head_size / 2]; 0.1 MB for 224 x 224 pixels.

    Kept for good: a captured graph reads them by address, and nothing else owns them.
    """
    inverse = base ** -torch.arange(0, 1, 4 / head_size, dtype=torch.float64)
    places = [2 * (torch.arange(n, dtype=torch.float64) + 0.5) / n - 1 for n in (height, width)]
    place = torch.stack(torch.meshgrid(*places, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (tau * place[:, :, None] * inverse).flatten(1)[:, None]
    return angles.cos().to(dtype).to(device), angles.sin().to(dtype).to(device)
