"""How often the judge's comparison rejects a right answer, how near its limits others come, and what chance does.

    python benchmarks/judge_comparisons.py --ops llama_attention --dtypes float32 --judgements 100 --out found.json

A judgement is what the judge draws for one op and dtype: hidden shapes and input families of every way of building it.
Two right implementations, the baseline and the definition in the op's dtype with every sum in another order, are each
held to what the judge holds a candidate to, the other standing as the baseline; and, as "alone", to the frozen
tolerances without that.
bias_over_chance: the largest |mean signed error| over what chance explains (tolerance.chance_bias), among answers
whose only error is the final rounding.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fastkernels.bench.environment import environment
from fastkernels.capture.case import Case
from fastkernels.context import reference_mode
from fastkernels.harness.calibrate import answers_of
from fastkernels.harness.checks import beside_baseline, check_value, worst_of
from fastkernels.harness.compare import Expected, Finding, finite_rows, measure
from fastkernels.harness.correctness import BASELINE_FACTOR
from fastkernels.harness.expect import Expectation, baseline_class, build_reference, expectation
from fastkernels.harness.groups import make_groups
from fastkernels.harness.tolerance import Share, Tolerance, chance_bias, tolerances_for, unit_roundoff
from fastkernels.harness.verdict import Rejection
from fastkernels.op import Op
from fastkernels.registry import OpEntry, ops
from fastkernels.spec import Compare

Answer = Callable[[Op, Case, Expectation, torch.device], dict[str, Tensor]]


class OtherOrder(TorchFunctionMode):
    """Every matrix product as two halves over interleaved terms, added in float32."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.linear:
            return self._linear(*args, **kwargs)
        if func is torch.einsum and len(args) == 3:
            return self._einsum(*args)
        return func(*args, **kwargs)

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        first, second = (x[..., i::2].float() @ weight[:, i::2].float().T for i in (0, 1))
        y = first + second
        return (y if bias is None else y + bias.float()).to(x.dtype)

    def _einsum(self, equation: str, a: Tensor, b: Tensor) -> Tensor:
        first, second = equation.split("->")[0].split(",")
        axis = next(c for c in first if c in second and c not in equation.split("->")[1])
        i, j = first.index(axis), second.index(axis)
        halves = [torch.arange(k, a.shape[i], 2, device=a.device) for k in (0, 1)]
        return sum(torch.einsum(equation, a.index_select(i, h), b.index_select(j, h)) for h in halves)  # type: ignore[return-value]


def baseline(op: Op, case: Case, expected: Expectation, device: torch.device) -> dict[str, Tensor]:
    return answers_of(op, case, expected, device)


def other_order(op: Op, case: Case, expected: Expectation, device: torch.device) -> dict[str, Tensor]:
    with reference_mode(), OtherOrder():
        return answers_of(op, case, expected, device)


RIGHT: Mapping[str, Answer] = {"baseline": baseline, "other order": other_order}


class Tally:
    """What the comparisons of one op and dtype came to."""

    def __init__(self) -> None:
        self.num, self.num_judgements = 0, 0
        self.rejected: Counter[str] = Counter()
        self.rejected_judgements: Counter[str] = Counter()
        self.shares: dict[str, Share] = {}
        self.examples: list[str] = []
        self.bias_over_chance = 0.0
        self.failed: set[str] = set()

    def add(self, case: Case, exact: Expectation, answers: Mapping[str, Mapping[str, Tensor]], entry: OpEntry) -> None:
        """Both implementations on one case."""
        frozen = tolerances_for(entry.name, case.dtype, case.family, exact)
        is_widened = case.family != "wide_range" or entry.level > 1
        for who, other in (("baseline", "other order"), ("other order", "baseline")):
            found = self._check(f"{other} as baseline", case, exact, answers[other], frozen, BASELINE_FACTOR)
            held, tolerances = beside_baseline(exact, frozen, found, is_widened=is_widened)
            findings = self._check(who, case, held, answers[who], tolerances)
            self.shares[who] = self.shares.get(who, Share()).worst(worst_of(findings).share)
            self._check(f"{who} alone", case, exact, answers[who], frozen)
            self.num += 1
        for expected in exact.compared:
            answer = answers["baseline"][expected.name]
            if expected.compare is Compare.VALUES and answer.is_floating_point() and answer.numel():
                self._add_bias(expected, answer)

    def _check(
        self,
        who: str,
        case: Case,
        exact: Expectation,
        answers: Mapping[str, Tensor],
        tolerances: Mapping[str, Tolerance],
        factor: float = 1.0,
    ) -> dict[str, Finding]:
        findings = {}
        try:
            for expected in exact.compared:
                if expected.compare is not Compare.SAMPLE:
                    answer = answers[expected.name]
                    findings[expected.name] = check_value(exact, expected, answer, tolerances[expected.name], factor)
        except Rejection as rejection:
            self.rejected[who] += 1
            self.failed.add(who)
            if not who.endswith("alone"):
                self.examples.append(f"{who} {case.family} {case.phase}: {rejection.message}"[:300])
        return findings

    def _add_bias(self, expected: Expected, answer: Tensor) -> None:
        rows, answers = finite_rows(expected.value, answer.double())
        error, chance = measure(rows, answers, expected.dtype), chance_bias(rows, expected.dtype)
        if chance and error.row <= unit_roundoff(expected.dtype):
            self.bias_over_chance = max(self.bias_over_chance, error.bias / chance)

    def judged(self) -> None:
        self.num_judgements += 1
        self.rejected_judgements.update(self.failed)
        self.failed = set()

    def to_json(self) -> dict[str, Any]:
        return {
            "judgements": self.num_judgements,
            "comparisons": self.num,
            "rejected": dict(self.rejected),
            "rejected_judgements": dict(self.rejected_judgements),
            "bias_over_chance": self.bias_over_chance,
            "largest_share": {who: asdict(share) for who, share in self.shares.items()},
            "examples": self.examples[:8],
        }


def judge_once(entry: OpEntry, dtype: torch.dtype, device: torch.device, seed: int, shapes: int, tally: Tally) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in make_groups(entry, [], (dtype,), shapes, device, generator):
        op = build_reference(group.entry, group.init, group.params, group.dtype, device)
        for case in (case for pool in group.pools for case in pool):
            exact = expectation(group.exact, case, device)
            tally.add(case, exact, {who: answer(op, case, exact, device) for who, answer in RIGHT.items()}, entry)
    tally.judged()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ops", nargs="*")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float16", "bfloat16"])
    parser.add_argument("--judgements", type=int, default=25)
    parser.add_argument("--shapes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=1e9, help="stop an op after its share of these")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    entries = [e for e in ops().values() if baseline_class(e).spec.num_ranks == 1]
    entries = [e for e in entries if not arguments.ops or e.name in arguments.ops]
    results: dict[str, Any] = {"environment": environment(arguments.device), "ops": {}}
    for entry in entries:
        for name in arguments.dtypes:
            tally, started = Tally(), time.monotonic()
            for number in range(arguments.judgements):
                if time.monotonic() - started > arguments.seconds / len(entries) / len(arguments.dtypes):
                    break
                seed = arguments.seed * 1000 + number
                judge_once(entry, getattr(torch, name), torch.device(arguments.device), seed, arguments.shapes, tally)
            found = results["ops"].setdefault(entry.name, {})[name] = tally.to_json()
            if arguments.out:
                arguments.out.write_text(json.dumps(results, indent=1) + "\n")
            print(
                f"{entry.name:30}{name:9} judgements {found['judgements']:4} comparisons {found['comparisons']:6} "
                f"rejected {found['rejected']} of judgements {found['rejected_judgements']} "
                f"bias/chance {found['bias_over_chance']:.2f} "
                + " ".join(
                    f"{w}: el {s.element:.2f} row {s.row:.2f} bias {s.bias:.2f}" for w, s in tally.shares.items()
                )
                + "".join(f"\n    {e}" for e in tally.examples[:3]),
                flush=True,
            )


if __name__ == "__main__":
    main()
