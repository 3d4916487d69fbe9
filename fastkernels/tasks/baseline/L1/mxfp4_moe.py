"""A dense layer with a matrix for each expert, its weights in MXFP4: four bits each, 32 of them under one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastkernels.context import uses_reference
from fastkernels.distributed.tensor_parallel import ep_size
from fastkernels.kernels.mxfp4_moe import mxfp4_moe
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import OpSpec
from fastkernels.tasks.baseline.expert_gemm import EXAMPLE_AXES, INPUTS, OUTPUTS, ExpertGemm, grouped_gemm

BLOCK = 32
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_RMS = (sum(v * v for v in _VALUES) / len(_VALUES)) ** 0.5
_SCALE_BIAS = 127


def dequantize_mxfp4(blocks: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Each value times 2^(scale - 127); of a byte the low four bits come first, and of those the highest is the sign.

    Shapes:  blocks: [..., num_blocks, 16] uint8; scales: [..., num_blocks] uint8; result: [..., 32 * num_blocks].
    """
    table = torch.tensor([*_VALUES, *(-v for v in _VALUES)], dtype=dtype, device=blocks.device)
    codes = torch.stack((blocks & 0xF, blocks >> 4), dim=-1).flatten(-2)
    exponents = scales.to(torch.int32) - _SCALE_BIAS
    return torch.ldexp(table[codes.int()], exponents[..., None]).flatten(-2)


class MXFP4MoE(ExpertGemm, Op):
    """y[slot] = weight[expert] @ x[slot // top_k] (+ bias[expert]), the weights 4-bit floats (e2m1) times powers of 2.

    Shapes:  x: [num_rows, input_size]; weight_blocks: [num_experts, output_size, input_size / 32, 16], two weights a
             byte; weight_scales: [num_experts, output_size, input_size / 32]; bias: [num_experts, output_size]; y:
             [num_slots = num_rows * top_k, output_size]; the rest as MoEAlign returns it, of a block size up to 128.
    Dtypes:  x and bias alike, bf16, fp16 or fp32; blocks and scales uint8; products are summed in at least fp32.
    Returns: y, zero for a slot that is left out. No argument is written to.
    Errors:  ValueError when input_size is no multiple of 32, or the rows of x are not of input_size.
    Source:  OCP Microscaling Formats 1.0 (https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf);
             layout as gpt-oss checkpoints have it (https://arxiv.org/abs/2508.10925).
    """

    spec = OpSpec(
        inputs=INPUTS,
        outputs=OUTPUTS,
        examples=(
            {"num_experts": 4, "input_size": 64, "output_size": 96, "top_k": 2, "bias": True},
            {"num_experts": 7, "input_size": 96, "output_size": 37},
        ),
        example_axes=EXAMPLE_AXES,
    )

    def __init__(self, num_experts: int, input_size: int, output_size: int, bias: bool = False, top_k: int = 1) -> None:
        super().__init__()
        if input_size % BLOCK:
            raise ValueError(f"MXFP4 weights come in blocks of {BLOCK} inputs; input_size {input_size} is no multiple.")
        self.ep_size = ep_size()
        self.num_experts = num_experts
        self.input_size = input_size
        self.output_size = output_size
        self.top_k = top_k
        shape = (num_experts, output_size, input_size // BLOCK)
        self.weight_blocks = self._bytes("weight_blocks", (*shape, BLOCK // 2))
        self.weight_scales = self._bytes("weight_scales", shape)
        self.bias = nn.Parameter(torch.empty(num_experts, output_size).normal_(std=0.02)) if bias else None

    def _bytes(self, name: str, shape: tuple[int, ...]) -> nn.Parameter:
        values = torch.randint(*self.byte_range(name, shape), shape, dtype=torch.uint8)
        return nn.Parameter(values, requires_grad=False)

    def byte_range(self, name: str, shape: Sequence[int]) -> tuple[int, int]:
        """Of the scales the two by which weights are about the number of inputs^-0.5."""
        if name != "weight_scales":
            return 0, 256
        exponent = _SCALE_BIAS - round(math.log2(_RMS * (BLOCK * shape[-1]) ** 0.5))
        return exponent - 1, exponent + 1

    def forward(
        self, x: Tensor, sorted_token_ids: Tensor, expert_ids: Tensor, num_tokens_post_padded: Tensor
    ) -> Tensor:
        self.check(x)
        alignment = (sorted_token_ids, expert_ids, num_tokens_post_padded)
        if uses_reference(x):
            return self.reference(x, *alignment)
        return mxfp4_moe(x, self.weight_blocks, self.weight_scales, self.bias, *alignment, self.top_k, self.ep_size)

    def reference(
        self, x: Tensor, sorted_token_ids: Tensor, expert_ids: Tensor, num_tokens_post_padded: Tensor
    ) -> Tensor:
        alignment = (sorted_token_ids, expert_ids, num_tokens_post_padded)
        return grouped_gemm(x, alignment, self.top_k, self.output_size, lambda e: self._expert(e, compute_dtype(x)))

    def _expert(self, number: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        weight = dequantize_mxfp4(self.weight_blocks[number], self.weight_scales[number], dtype)
        return weight, None if self.bias is None else self.bias[number].to(dtype)
