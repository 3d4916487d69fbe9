"""A candidate that is right but in one place, which a plain run of shapes must come upon; beside it, its right twin."""

from __future__ import annotations

import pytest
import torch
from judging import Bench, bench
from right_candidates import DECODE, SAMPLE, STORE

from fastkernels.harness.judge import JudgeConfig
from fastkernels.harness.verdict import Verdict

__all__ = ["bench"]

SILU_AND_MUL = """
import torch
from torch import nn

class SiluAndMul(nn.Module):
    def forward(self, x):
        gate, up = x.chunk(2, -1)
        y = nn.functional.silu(gate) * up
        DONE
        return y
"""

LAYER_NORM = """
import torch
from torch import nn

class LayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True, bias=True, returns_sum=True):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(normalized_shape)) if elementwise_affine else None
        self.bias = nn.Parameter(torch.empty(normalized_shape)) if elementwise_affine and bias else None

    def forward(self, x, residual=None, scale=None):
        x = x if scale is None else x * scale
        x = x if residual is None else x + residual
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).square().mean(-1, keepdim=True)
        y = (x - mean) * torch.rsqrt(variance + self.eps)
        y = y if self.weight is None else y * self.weight
        y = y if self.bias is None else y + self.bias
        return y if residual is None else (y, x)
"""

L2_NORM = """
from torch import nn

class L2Norm(nn.Module):
    def __init__(self, eps=1e-12, is_eps_in_root=False):
        super().__init__()
        self.eps, self.is_eps_in_root = eps, is_eps_in_root

    def forward(self, x):
        squares = x.square().sum(-1, keepdim=True)
        return x / ((squares + self.eps).sqrt() if self.is_eps_in_root else squares.sqrt().clamp_min(self.eps))
"""

GREEDY = """
from torch import nn

class GreedySample(nn.Module):
    def forward(self, logits):
        return logits.argmax(-1)
"""

SOURCES = {
    "store_kvcache": STORE,
    "silu_and_mul": SILU_AND_MUL.replace("DONE", ""),
    "layer_norm": LAYER_NORM,
    "l2_norm": L2_NORM,
    "greedy_sample": GREEDY,
    "flash_attn_decode": DECODE,
    "top_k_top_p_sample": SAMPLE,
}
CONFIG = JudgeConfig(num_shapes=6, is_timed=False, dtypes=(torch.float32,))
ROWS_OF_HEADS = "key.as_strided(key.shape, (key.stride(1) * key.shape[1], *key.stride()[1:]))[row]"


@pytest.mark.slow
@pytest.mark.parametrize("op", SOURCES)
def test_right_twin_passes_all_shapes_of_a_run(bench: Bench, op: str) -> None:
    record = bench.judge(op, SOURCES[op], CONFIG)
    assert record.verdict == Verdict.PASSED, record.message


@pytest.mark.parametrize(
    ("op", "right", "wrong"),
    [
        ("store_kvcache", "key[row]", ROWS_OF_HEADS),
        ("store_kvcache", "enumerate(slot_mapping.tolist())", "enumerate(slot_mapping.tolist()[:128])"),
        ("silu_and_mul", "DONE", "y.flatten(0, -2)[1024:] = 0"),
        ("silu_and_mul", "DONE", "y[..., 4096:] = 0"),
        ("layer_norm", "(x - mean).square().mean(-1, keepdim=True)", "x.square().mean(-1, keepdim=True) - mean * mean"),
        ("layer_norm", "x * scale", "x"),
        ("layer_norm", "(y, x)", "(y, residual)"),
        ("l2_norm", ".clamp_min(self.eps)", ""),
        ("greedy_sample", "logits.argmax", "logits[:, :2048].argmax"),
        ("flash_attn_decode", "weights = torch.where(seq_lens[:, None, None, None] > 0, weights, 0.0)", ""),
        (
            "flash_attn_decode",
            "flatten(1, 2).to(query.dtype)",
            "flatten(1, 2).to(query.dtype) * (torch.arange(len(query)) < 32)[:, None, None]",
        ),
        ("top_k_top_p_sample", "temperature.double())", "temperature.double().clamp_min(0.4))"),
        ("top_k_top_p_sample", ">= top_p[:, None])", ">= top_p[:, None].clamp_min(0.4))"),
    ],
    ids=[
        "rows by the stride of heads",
        "128 tokens",
        "1,024 rows",
        "4,096 columns",
        "variance in one pass",
        "no scale",
        "the sum left out",
        "a row of zeros",
        "2,048 tokens of a vocabulary",
        "NaN of no key",
        "32 sequences",
        "low temperature",
        "small nucleus",
    ],
)
def test_one_fault_is_found(bench: Bench, op: str, right: str, wrong: str) -> None:
    source = SILU_AND_MUL if right == "DONE" else SOURCES[op]
    assert right in source
    record = bench.judge(op, source.replace(right, wrong), CONFIG)
    assert record.verdict == Verdict.INCORRECT_NUMERICAL, record.message
