"""Gates and norms of Qwen3-Next and Mamba-Codestral, and gated activations of SDXL and Pi0."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastkernels.tasks.baseline.L1.fused_gdn_gating import FusedGDNGating
from fastkernels.tasks.baseline.L1.gelu_and_mul import GeluAndMul
from fastkernels.tasks.baseline.L1.l2_norm import L2Norm
from fastkernels.tasks.baseline.L1.rms_norm_gated import RMSNormGated
from fastkernels.tasks.baseline.L1.sigmoid_mul import SigmoidMul
from op_groups.bench import Bench, Row

QKVZ = 12288
"""Of Qwen3-Next: queries, keys, values and gates of a token."""


def rows(bench: Bench) -> Iterator[Row]:
    for n in (1, 16, 128, 8192) if not bench.is_rehearsal else (3,):
        yield from _of_tokens(bench, n)
    for model, n, d, approximate in (
        ("SDXL", 2048, 5120, "none"),
        ("SDXL", 8192, 2560, "none"),
        ("Pi0", 816, 16384, "tanh"),
        ("Pi0", 51, 4096, "tanh"),
    ):
        init = {"approximate": approximate}
        n, d = bench.size(n, 5), bench.size(d, 24)
        op = bench.build(GeluAndMul, init, torch.bfloat16)
        yield bench.row(model, f"{n} x 2 x {d}", op, lambda n=n, d=d: (bench.randn(n, 2 * d),), init=init)


def _of_tokens(bench: Bench, n: int) -> Iterator[Row]:
    qwen, mamba, randn = "Qwen3-Next-80B", "Mamba-Codestral-7B", bench.randn
    init: dict[str, object] = {"hidden_size": 128, "eps": 1e-6, "norm_before_gate": True}
    yield bench.row(
        qwen,
        f"{n} x 32 x 128",
        bench.build(RMSNormGated, init, torch.bfloat16),
        lambda: (randn(n, 32, 128), randn(n, QKVZ)[:, 8192:].unflatten(1, (32, 128))),
        init=init,
    )
    init = {"hidden_size": 8192, "eps": 1e-5, "group_size": 1024}
    norm = bench.build(RMSNormGated, init, torch.bfloat16)
    yield bench.row(mamba, f"{n} x 8192 by 1024", norm, lambda: (randn(n, 8192), randn(n, 8192)), init=init)
    init = {"eps": 1e-6, "is_eps_in_root": True}
    yield bench.row(
        qwen,
        f"{n} x 32 x 128",
        bench.build(L2Norm, init, torch.bfloat16),
        lambda: (randn(n, QKVZ)[:, :4096].unflatten(1, (32, 128)),),
        init=init,
    )
    gate = bench.build(SigmoidMul, {"hidden_size": 256}, torch.bfloat16)
    yield bench.row(qwen, f"{n} x 16 x 256", gate, lambda: (randn(n, 16, 256), randn(n, 32, 256)[:, 1::2]))
    gate = bench.build(SigmoidMul, {"hidden_size": 2048, "gate_size": 1}, torch.bfloat16)
    yield bench.row(qwen, f"{n} x 2048, one a row", gate, lambda: (randn(n, 2048), randn(n, 1)))
    of_heads = [randn(32, dtype=torch.float32) for _ in range(2)]
    yield bench.row(
        qwen,
        f"{n} x 32",
        bench.build(FusedGDNGating, {}, torch.bfloat16),
        lambda: (of_heads[0], *randn(n, 64).chunk(2, -1), of_heads[1]),
    )
