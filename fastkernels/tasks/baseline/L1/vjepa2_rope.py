"""V-JEPA 2's rotary embedding: angles by the frame, the row and the column of a patch."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.vjepa2_rope import vjepa2_rope
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec, Role, TensorSpec

_HEADS = TensorSpec(("batch", "num_tokens", "num_heads", "head_size"))


class VJEPA2Rope(Op):
    """y[2i] = x[2i] cos(a[2i]) - x[2i+1] sin(a[2i]); y[2i+1] = x[2i+1] cos(a[2i+1]) + x[2i] sin(a[2i+1]).

    The first three stretches of 2 * (head_size // 6) numbers are rotated by a token's frame, row and column in turn;
    what is left of a head stays. In a stretch of n numbers a[j] = place * base^(-2 (j mod (n / 2)) / n): the two
    numbers of a pair have unlike angles, as the published weights were trained with. A token's places are the digits
    of its position to the base of grid_size: frame = position // grid_size^2, row = position // grid_size % grid_size.

    Shapes:  query, key and both results: [batch, num_tokens, num_heads, head_size]; positions: [batch, num_tokens]
             int64, without it 0, 1, 2, ...
    Dtypes:  bf16, fp16 or fp32; angles and products in fp32.
    Returns: (query, key), rotated. No argument is written to.
    Errors:  ValueError when head_size is less than 6.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); as rotate_queries_or_keys of transformers'
             modeling_vjepa2.
    """

    spec = OpSpec(
        inputs={
            "query": _HEADS.strided(),
            "key": _HEADS.strided(),
            "positions": TensorSpec(("batch", "num_tokens"), dtype="int64", role=Role.INDEX, bound="96").optional(),
        },
        outputs={"rotated_query": _HEADS, "rotated_key": _HEADS},
        examples=({"head_size": 18, "grid_size": 4}, {"head_size": 64, "grid_size": 3, "base": 1000.0}),
        example_axes={"batch": (2, 1), "num_tokens": (21, 40), "num_heads": (2, 3)},
    )

    def __init__(self, head_size: int, grid_size: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_size < 6:
            raise ValueError(f"VJEPA2Rope has three axes of at least two numbers, got head_size {head_size}.")
        self.head_size = head_size
        self.grid_size = grid_size
        self.base = base

    def forward(self, query: Tensor, key: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if uses_reference(query):
            return self.reference(query, key, positions)
        inverse = _inverse(self.head_size, self.base, torch.float32, query.device)
        return vjepa2_rope(query, key, positions, inverse, self.grid_size)

    def reference(self, query: Tensor, key: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if positions is None:
            positions = torch.arange(query.shape[1], device=query.device)[None]
        cos, sin = self._angles(positions, compute_dtype(query))
        num_rotated = cos.shape[-1]
        rotated = []
        for x in (query, key):
            y = x[..., :num_rotated].to(cos.dtype)
            turned = torch.stack([-y[..., 1::2], y[..., ::2]], dim=-1).flatten(-2)
            y = (y * cos + turned * sin).to(x.dtype)
            rotated.append(torch.cat([y, x[..., num_rotated:]], dim=-1))
        return rotated[0], rotated[1]

    def _angles(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin: [batch or 1, num_tokens, 1, rotated numbers]."""
        grid = self.grid_size
        places = torch.stack([positions // grid**2, positions // grid % grid, positions % grid], dim=-1)
        inverse = _inverse(self.head_size, self.base, dtype, positions.device)
        angles = (places.to(dtype)[..., None] * inverse.repeat(2)).flatten(-2)[:, :, None]
        return angles.cos(), angles.sin()


@cache
def _inverse(head_size: int, base: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[head_size // 6]: an angle's share of its place."""
    num = head_size // 6
    return (base ** -(torch.arange(num, dtype=torch.float64) / num)).to(dtype).to(device)
