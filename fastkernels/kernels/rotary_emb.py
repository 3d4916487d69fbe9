"""Rotary position embedding of query and key."""

import torch
from torch import Tensor


def rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    cos_sin_cache: Tensor,
    head_size: int,
    rotary_dim: int,
    is_neox_style: bool,
) -> tuple[Tensor, Tensor | None]:
    def rotate(x: Tensor) -> Tensor:
        heads = x.reshape(positions.numel(), -1, head_size)
        rot, rest = heads[..., :rotary_dim].float(), heads[..., rotary_dim:]
        cos, sin = cos_sin_cache[positions.flatten()].unsqueeze(1).chunk(2, -1)
        a, b = rot.chunk(2, -1) if is_neox_style else (rot[..., ::2], rot[..., 1::2])
        first, second = a * cos - b * sin, b * cos + a * sin
        if is_neox_style:
            out = torch.cat((first, second), -1)
        else:
            out = torch.stack((first, second), -1).flatten(-2)
        return torch.cat((out.to(x.dtype), rest), -1).reshape(x.shape)

    return rotate(query), None if key is None else rotate(key)
