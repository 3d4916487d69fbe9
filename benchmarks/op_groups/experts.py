"""Mixtures of experts, whole: sorting, both products, activation and sum; and the routing before them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import silu

from fastkernels.tasks.baseline.L1.topk_softmax import TopKSoftmax
from fastkernels.tasks.baseline.L2.fused_experts import FusedExperts
from op_groups.bench import Bench, Call, Row


def rows(bench: Bench) -> Iterator[Row]:
    mixtral = bench.config("mixtral-8x7b-v0.1", "tiny-mixtral")
    gpt_oss = bench.config("gpt-oss-120b", "tiny-gpt-oss")
    qwen = bench.config("qwen3-next-80b-a3b", "tiny-qwen3_next")
    for model, num_experts, top_k in (
        ("Mixtral-8x7B", mixtral.num_local_experts, mixtral.num_experts_per_tok),
        ("GPT-OSS-120B", gpt_oss.num_local_experts, gpt_oss.num_experts_per_tok),
        ("Qwen3-Next-80B", qwen.num_experts, qwen.num_experts_per_tok),
    ):
        yield from _routing(bench, model, num_experts, top_k)
    init = {"num_experts": mixtral.num_local_experts, "top_k": mixtral.num_experts_per_tok}
    sizes = {"hidden_size": mixtral.hidden_size, "intermediate_size": mixtral.intermediate_size}
    yield from _experts(bench, "Mixtral-8x7B", init | sizes)
    init = {"num_experts": qwen.num_experts, "top_k": qwen.num_experts_per_tok}
    sizes = {"hidden_size": qwen.hidden_size, "intermediate_size": qwen.moe_intermediate_size}
    yield from _experts(bench, "Qwen3-Next-80B", init | sizes)
    init = {"num_experts": gpt_oss.num_local_experts, "top_k": gpt_oss.num_experts_per_tok}
    sizes = {"hidden_size": gpt_oss.hidden_size, "intermediate_size": gpt_oss.intermediate_size}
    form = {"activation": "swiglu_oai", "bias": True, "quant_config": "mxfp4"}
    yield from _experts(bench, "GPT-OSS-120B MXFP4", init | sizes | form)


def _routing(bench: Bench, model: str, num_experts: int, top_k: int) -> Iterator[Row]:
    init = {"num_experts": num_experts, "top_k": top_k}
    op = bench.build(TopKSoftmax, init, torch.float32)

    def topk(logits: Tensor) -> tuple[Tensor, Tensor]:
        chosen, ids = logits.topk(top_k)
        return chosen.softmax(-1), ids.int()

    for n in (16, 256, 8192) if not bench.is_rehearsal else (7,):
        yield bench.row(
            model,
            f"{n} x {num_experts}, {top_k} of them",
            op,
            lambda n=n: (bench.randn(n, num_experts, dtype=torch.float32),),
            {"torch.topk": topk},
            init=init,
            dtype=torch.float32,
        )


def _experts(bench: Bench, model: str, init: dict[str, int | str | bool]) -> Iterator[Row]:
    op = bench.build(FusedExperts, init, torch.bfloat16)
    num_experts, top_k, hidden = int(init["num_experts"]), int(init["top_k"]), int(init["hidden_size"])

    def grouped(x: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        """Two of torch's grouped products over rows in their experts' order."""
        experts = topk_ids.flatten()
        order = experts.argsort(stable=True)
        counts = torch.zeros(num_experts, dtype=torch.int32, device=x.device)
        ends = counts.index_add_(0, experts, torch.ones_like(experts)).cumsum(0, dtype=torch.int32)
        token = order // top_k
        h = torch._grouped_mm(x[token], op.w13.weight.transpose(1, 2), offs=ends)
        gate, up = h.chunk(2, dim=-1)
        y = torch._grouped_mm(silu(gate) * up, op.w2.weight.transpose(1, 2), offs=ends)
        y = y * topk_weights.flatten()[order, None].to(y.dtype)
        return torch.zeros_like(x).index_add_(0, token, y)

    others: dict[str, Call] = {} if "quant_config" in init else {"torch._grouped_mm": grouped}
    for n in (1, 16, 128, 4096) if not bench.is_rehearsal else (9,):

        def make(n: int = n) -> tuple[Tensor, ...]:
            chosen, ids = bench.randn(n, num_experts, dtype=torch.float32).topk(top_k)
            return bench.randn(n, hidden), chosen.softmax(-1), ids.int()

        shape = f"{n} x {hidden}, {top_k} of {num_experts} experts"
        yield bench.row(model, shape, op, make, others)
