"""Where real prompts, random tokens and random tensors are routed by a model's first mixture of experts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastkernels.bench.environment import environment
from fastkernels.capture.case import Case
from fastkernels.capture.digest import tensor_digest
from fastkernels.capture.record import MEGABYTE, Recorder
from fastkernels.capture.replay import build_op, call_op
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.report.publish import write_page
from fastkernels.training.corpus import held_out_texts
from fastkernels.workloads.traffic import TokenSource

PUBLISHED: dict[str, Any] = {
    "model": "Qwen3-VL-30B-A3B-Instruct-FP8",
    "num_experts": 128,
    "top_k": 8,
    "real_prompts": "WildChat",
    "gini": {"real prompts": 0.339, "random tokens": 0.480, "random tensors": 0.232},
    "num_hot": 16,
    "hot_in_common": {"random tokens": 4},
    "source": "Appendix D of the published FastKernels paper (Figure 4 and the text beside it)",
}

INPUTS = ("real prompts", "random tokens", "random tensors")
_GATE, _ROUTING = "gate_linear", "topk_softmax"
_EVERY_CALL = 1 << 30
_BUDGET_MB = 4096
_NUM_PAGES = 4096
_SEED_LIMIT = 1 << 63
_RANDOM_IDS, _RANDOM_TENSORS = 0, 1
"""Streams of drawn numbers."""


@dataclass(frozen=True)
class StudyConfig:
    """num_prompts pieces of held-out text of prompt_bytes bytes each; dtype: the model's own when left out.

    Errors: UsageError names what is out of range.
    """

    model: str = "trained-mixtral"
    num_prompts: int = 64
    prompt_bytes: int = 512
    seed: int = 0
    dtype: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        if self.num_prompts < 2 or self.prompt_bytes < 1:
            raise UsageError(
                f"A study takes at least 2 prompts of at least 1 byte, got {self.num_prompts} of {self.prompt_bytes}."
            )
        if not 0 <= self.seed < _SEED_LIMIT:
            raise UsageError(f"The seed of a study is at least 0 and below 2**63, got {self.seed}.")


@dataclass(frozen=True)
class Routed:
    """Of one mixture of experts. gate: a call of it as a case; rows: [num_tokens, hidden_size] that it was given;
    routing: a call of what chooses by its scores."""

    gate: Case
    routing: Case
    rows: Tensor

    def experts(self, rows: Tensor) -> np.ndarray:
        """[num_tokens, top_k]: the experts that the captured gate sends `rows` to."""
        with torch.inference_mode():
            (scores,) = call_op(build_op(self.gate), self.gate, {"x": rows})
            _, ids = call_op(build_op(self.routing), self.routing, {"router_logits": scores})
        found: np.ndarray = ids.numpy()
        return found


def routing_study(config: StudyConfig, report: Callable[[str], None] = lambda stage: None) -> dict[str, Any]:
    """Plain JSON: by input the tokens of each expert, the Gini coefficient of the loads, hot experts in common.

    report: told what is done next. Errors: UnsupportedError for a model without a mixture of experts by softmax.
    """
    texts = held_out_texts(config.num_prompts, config.prompt_bytes)
    report("real prompts")
    real, prompts, facts = _captured(config, lambda llm: [llm.tokenizer.encode(text).ids for text in texts])
    report("random tokens")
    random, _, _ = _captured(config, lambda llm: _random_ids(llm, prompts, config.seed))
    report("random tensors")
    generator = torch.Generator().manual_seed(config.seed * 2 + _RANDOM_TENSORS)
    noise = torch.randn(real.rows.shape, generator=generator).to(real.rows.dtype)
    num_experts, top_k = int(real.routing.init["num_experts"]), int(real.routing.init["top_k"])
    real_ids = real.experts(real.rows)
    ids = dict(zip(INPUTS, (real_ids, random.experts(random.rows), real.experts(noise)), strict=True))
    counts = {name: expert_counts(chosen, num_experts) for name, chosen in ids.items()}
    half = sum(map(len, prompts[: len(prompts) // 2]))
    halves = [expert_counts(part, num_experts) for part in (real_ids[:half], real_ids[half:])]
    return {
        "schema_version": 1,
        "study": "routing",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "request": asdict(config),
        "model": {**facts, "num_experts": num_experts, "top_k": top_k},
        "num_prompts": len(prompts),
        "num_tokens": len(real_ids),
        **_figures(counts, halves, 2 * top_k),
        "published": PUBLISHED,
        "environment": environment(str(facts["device"])),
    }


def _figures(counts: dict[str, np.ndarray], halves: Sequence[np.ndarray], num_hot: int) -> dict[str, Any]:
    real = counts["real prompts"]
    num_experts = len(real)
    num_hot = min(num_hot, num_experts)
    return {
        "num_hot": num_hot,
        "hot_in_common_by_chance": num_hot**2 / num_experts,
        "inputs": {
            name: {
                "loads": count.tolist(),
                "gini": round(gini(count), 4),
                "hot": hot_experts(count, num_hot),
                "hot_in_common": len({*hot_experts(count, num_hot)} & {*hot_experts(real, num_hot)}),
                "moved_share": round(moved_share(real, count), 4),
            }
            for name, count in counts.items()
        },
        "halves_of_real_prompts": {
            "hot_in_common": len({*hot_experts(halves[0], num_hot)} & {*hot_experts(halves[1], num_hot)}),
            "moved_share": round(moved_share(*halves), 4),
        },
    }


def _random_ids(llm: LLM, prompts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
    """Of the same lengths, every token but the end as likely as any other."""
    source = TokenSource(llm.core.info.vocab_size, llm.core.info.eos_token_ids, seed)
    return [source.draw(len(prompt), _RANDOM_IDS, number) for number, prompt in enumerate(prompts)]


def _captured(
    config: StudyConfig, make_prompts: Callable[[LLM], list[list[int]]]
) -> tuple[Routed, list[list[int]], dict[str, Any]]:
    """What the first mixture of experts was given, token after token; the prompts; what the model is."""
    with Recorder([_GATE, _ROUTING], keep=_EVERY_CALL, budget_bytes=_BUDGET_MB * MEGABYTE) as recorder:
        llm = LLM(
            config.model,
            dtype=config.dtype,
            device=config.device,
            num_pages=_NUM_PAGES,
            enforce_eager=True,
            enable_prefix_caching=False,
            seed=config.seed,
        )
        prompts = make_prompts(llm)
        llm.generate(prompts, SamplingParams(max_tokens=1, ignore_eos=True), use_tqdm=False)
    gates = [case for case in recorder.cases if case.op == _GATE]
    routings = [case for case in recorder.cases if case.op == _ROUTING]
    info = llm.core.info
    if not gates or not routings:
        raise UnsupportedError(
            f"{info.model} calls no {_GATE} and {_ROUTING}: it has no mixture of experts by softmax."
        )
    weight = tensor_digest(gates[0].params["weight"])
    rows = torch.cat([case.inputs["x"] for case in gates if tensor_digest(case.params["weight"]) == weight])
    if len(rows) != (num := sum(map(len, prompts))):
        raise UnsupportedError(
            f"The first gate of {info.model} saw {len(rows)} rows of {num} prompt tokens; use fewer."
        )
    facts = {"name": info.model, "dtype": info.dtype, "device": info.device, "first_gate": list(gates[0].callers)[:1]}
    return Routed(gates[0], routings[0], rows), prompts, facts


def expert_counts(ids: np.ndarray, num_experts: int) -> np.ndarray:
    """[num_experts]: how many tokens go to each."""
    return np.bincount(ids.ravel(), minlength=num_experts)


def gini(loads: Sequence[int] | np.ndarray) -> float:
    """0 when all loads are equal, 1 - 1/n when one of n has everything: half the mean difference over the mean.

    Errors: ValueError when there is no load, or a negative one.
    """
    x = np.sort(np.asarray(loads, dtype=np.float64))
    if not len(x) or x[0] < 0 or not math.isfinite(total := float(x.sum())) or total <= 0:
        raise ValueError(f"A Gini coefficient needs loads of at least 0, one of them more; got {list(loads)}.")
    places = np.arange(1, len(x) + 1)
    return float(((2 * places - len(x) - 1) * x).sum() / (len(x) * total))


def hot_experts(loads: np.ndarray, num: int) -> list[int]:
    """The `num` experts with most tokens, the hottest first; of equal ones the lower number."""
    return [int(i) for i in np.argsort(-np.asarray(loads), kind="stable")[:num]]


def moved_share(loads: np.ndarray, others: np.ndarray) -> float:
    """Of all places that tokens go to, the share that stands at other experts: half the summed difference of shares."""
    return float(np.abs(loads / loads.sum() - others / others.sum()).sum() / 2)


def sentence(study: dict[str, Any]) -> str:
    """The figures in words, with the published ones beside them."""
    model, inputs, published = study["model"], study["inputs"], study["published"]
    ginis = {name: inputs[name]["gini"] for name in INPUTS}
    return (
        f"Load Gini at the first gate of {model['name']} ({model['num_experts']} experts, top {model['top_k']}): "
        f"{ginis['random tensors']:.3f} for random tensors, {ginis['random tokens']:.3f} for random token ids, "
        f"{ginis['real prompts']:.3f} for real prompts; random ids share {inputs['random tokens']['hot_in_common']} of "
        f"the {study['num_hot']} hottest experts with real prompts ({study['hot_in_common_by_chance']:.3g} by chance). "
        f"Published for {published['model']} ({published['num_experts']} experts, top {published['top_k']}): "
        f"{published['gini']['random tensors']:.3f}, {published['gini']['random tokens']:.3f} and "
        f"{published['gini']['real prompts']:.3f}; "
        f"{published['hot_in_common']['random tokens']} of {published['num_hot']} hot experts in common."
    )


def save(study: dict[str, Any], path: Path) -> None:
    """As JSON, whole or not at all; folders on the way are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path, json.dumps(study, indent=1) + "\n")
