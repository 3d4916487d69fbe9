"""Which op of a model errs: `python benchmarks/op_errors.py mamba2 --layers 2 --out FILE`.

The model of an architecture's oracle, at its published sizes and with its random weights, answers a load step by step
without CUDA graphs; every call of a primitive is then repeated by the op's definition on the same inputs. What a
rounding to the dtype costs is about 0.002 in bfloat16: an op far above it, or one with an error that its other calls
lack, is where to look. The table is sorted by the largest error; a call's place is the module's path.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from fastkernels.bench.environment import environment  # noqa: E402
from fastkernels.context import reference_mode  # noqa: E402
from fastkernels.op import Op  # noqa: E402
from fastkernels.oracles.measure import Measurement, Settings, first_line  # noqa: E402
from fastkernels.oracles.oracle import oracle_of  # noqa: E402
from fastkernels.registry import architecture, snake_case  # noqa: E402

_MOST_BYTES = 20 << 30
"""Of one call's inputs that are copied."""


@dataclass
class Error:
    """Of one op and output: the largest relative rms over calls, its place, and how many calls there were."""

    op: str
    output: str
    rms: float
    place: str
    shapes: str
    num_calls: int = 0
    num_failed: int = 0
    failure: str = ""


class Watch:
    """Hooks on every primitive of a model. most: calls of each op and place that are repeated."""

    def __init__(self, model: nn.Module, most: int) -> None:
        self.errors: dict[tuple[str, str], Error] = {}
        self._counts: dict[str, int] = {}
        self._most = most
        for name, module in model.named_modules():
            if isinstance(module, Op) and type(module).reference is not Op.reference:
                module.forward = self._watched(name, module, module.forward)  # type: ignore[method-assign]

    def _watched(self, place: str, op: Op, forward: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(forward)

        def call(*args: Any, **kwargs: Any) -> Any:
            self._counts[place] = self._counts.get(place, 0) + 1
            if self._counts[place] > self._most:
                return forward(*args, **kwargs)
            bound = signature.bind(*args, **kwargs).arguments
            tensors = [t for t in bound.values() if isinstance(t, Tensor)]
            if sum(t.numel() * t.element_size() for t in tensors) > _MOST_BYTES:
                return forward(*args, **kwargs)
            before = {n: v.clone() if isinstance(v, Tensor) else v for n, v in bound.items()}
            given = forward(*args, **kwargs)
            try:
                with reference_mode():
                    wanted = op.reference(**before)
            except Exception as error:
                self._note(op, place, "", math.inf, bound, first_line(error))
                return given
            for name, (a, b) in _pairs(op, given, wanted, bound, before).items():
                self._note(op, place, name, _relative_rms(a, b), bound)
            return given

        return call

    def _note(self, op: Op, place: str, output: str, rms: float, inputs: Mapping[str, Any], failure: str = "") -> None:
        name = snake_case(type(op).__name__)
        error = self.errors.setdefault((name, output), Error(name, output, -1.0, "", ""))
        error.num_calls += 1
        if failure:
            error.num_failed, error.failure = error.num_failed + 1, failure
        if not math.isnan(error.rms) and not rms <= error.rms:  # no number is larger than a NaN
            shapes = {n: list(v.shape) if isinstance(v, Tensor) else v for n, v in inputs.items()}
            error.rms, error.place, error.shapes = rms, place, str(shapes)[:300]


def _pairs(
    op: Op, given: Any, wanted: Any, inputs: Mapping[str, Any], copies: Mapping[str, Any]
) -> dict[str, tuple[Tensor, Tensor]]:
    lists = [list(x) if isinstance(x, tuple | list) else [x] for x in (given, wanted)]
    names = list(op.spec.outputs) or ["output"]
    pairs = {n: (a, b) for n, a, b in zip(names, *lists, strict=False) if isinstance(a, Tensor)}
    mutated = {n: (inputs[n], copies[n]) for n in op.spec.mutates if isinstance(inputs.get(n), Tensor)}
    return pairs | mutated


def _relative_rms(given: Tensor, wanted: Tensor) -> float:
    """Of numbers; of indices the share that differs."""
    if given.shape != wanted.shape:
        return math.inf
    if not given.is_floating_point():
        return float((given != wanted).double().mean()) if given.numel() else 0.0
    a, b = given.double(), wanted.double()
    is_same = (a == b) | (a.isnan() & b.isnan())
    return float(torch.where(is_same, 0.0, a - b).norm() / b[b.isfinite()].norm().clamp(min=1e-30))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", help="registered architectures")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tiny", action="store_true", help="the oracle's test-size configuration")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--calls", type=int, default=3, help="of each op of each layer that are repeated")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    record: dict[str, Any] = {"environment": environment(given.device), "architectures": {}}
    for name in given.names:
        started = time.monotonic()
        try:
            errors = errors_of(name, given)
        except Exception as error:
            print(f"{name}: {first_line(error)}", flush=True)
            record["architectures"][name] = {"error": first_line(error)}
            continue
        record["architectures"][name] = {"layers": given.layers, "errors": [asdict(e) for e in errors]}
        print(f"{name}, {time.monotonic() - started:.0f} s", flush=True)
        for e in errors:
            failed = f" {e.num_failed} failed: {e.failure[:100]}" if e.num_failed else ""
            print(f"  {e.op:26} {e.output:18} {e.rms:10.3g} of {e.num_calls:3} {e.place}{failed}", flush=True)
    if given.out:
        given.out.write_text(json.dumps(record, indent=1) + "\n")


def errors_of(name: str, given: argparse.Namespace) -> list[Error]:
    """The largest first."""
    entry = architecture(name)
    oracle = oracle_of(entry)
    sizes = next(iter(oracle.tiny().values())) if given.tiny else oracle.published(given.layers)
    built = Measurement(entry, oracle, sizes, Settings(given.device, given.dtype, None, enforce_eager=True))
    side = built.ours
    watch = Watch(side.model, given.calls)
    with torch.inference_mode():
        for load in oracle.loads:
            requests = oracle.load(sizes, min(given.batch, max(load.batches)), load.name)
            side.call(load, requests)()
    return sorted(watch.errors.values(), key=lambda e: -e.rms if e.rms == e.rms else -math.inf)


if __name__ == "__main__":
    main()
