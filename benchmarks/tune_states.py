"""Tries launch configurations of ops with states on a GPU, beside each op's kernel that goes chunk after chunk.

    python benchmarks/tune_states.py --out FILE
    TRITON_INTERPRET=1 python benchmarks/tune_states.py --device cpu

Every answer is held against the definition in float64: "error" is the largest root mean square of a difference, over
that of the right answer, of what the op returns and of the states that it writes. The table comes last, the fastest of
a size first. --seconds begins no further variant after so long. The second is a rehearsal at tiny sizes in float32.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from kernel_timing import graph_microseconds
from torch import Tensor
from torch.nn.functional import normalize

from fastkernels.bench.environment import environment
from fastkernels.kernels.chunk_gated_delta_rule import chunk_gated_delta_rule_in_turn
from fastkernels.kernels.chunk_gated_delta_rule_stages import chunk_gated_delta_rule_in_stages, default_stages
from fastkernels.tasks.baseline.L1.chunk_gated_delta_rule import ChunkGatedDeltaRule

MOST_ERROR = 0.015
"""Of bf16: the kernel that goes chunk after chunk errs by 0.004."""
IN_TURN, DEFAULT = "in turn", "stages"


@dataclass
class Row:
    op: str
    shape: str
    variant: str
    microseconds: float = 0.0
    error: float = 0.0
    problem: str = ""


@dataclass
class Case:
    """An op at one size. arguments: `states` among them, which variants write to; right: (returned, states) of them."""

    op: str
    shape: str
    arguments: dict[str, Tensor]
    right: Callable[[dict[str, Any]], Tensor]
    variants: dict[str, Callable[..., Tensor]]


def delta_rule(device: torch.device) -> Iterator[Case]:
    is_real = device.type != "cpu"
    keys, heads, size = (16, 32, 128) if is_real else (1, 2, 16)
    dtype = torch.bfloat16 if is_real else torch.float32

    def arguments(num_seqs: int, length: int) -> dict[str, Tensor]:
        """Rows of q and k of length one inside wider ones; decays that last some tens of rows."""
        n = num_seqs * length
        q, k = normalize(torch.randn(n, 2 * keys, size, device=device), dim=-1).to(dtype).chunk(2, dim=-2)
        v = torch.randn(n, 2 * heads, size, device=device).to(dtype)[:, heads:]
        gates = torch.rand(2, n, heads, device=device)
        return {
            "q": q, "k": k, "v": v, "g": -0.2 * gates[0].square(), "beta": 0.05 + 0.95 * gates[1],
            "states": torch.randn(num_seqs, heads, size, size, device=device),
            "query_start_loc": torch.arange(num_seqs + 1, dtype=torch.int32, device=device) * length,
            "state_indices": torch.arange(num_seqs, dtype=torch.int32, device=device),
            "has_initial_state": torch.arange(num_seqs, device=device) % 2 == 0,
        }  # fmt: skip

    def variant(**changed: int) -> Callable[..., Tensor]:
        stages = default_stages(size, size)._replace(**changed)
        return lambda *given: chunk_gated_delta_rule_in_stages(*given, stages, not is_real)

    def right(given: dict[str, Any]) -> Tensor:
        return ChunkGatedDeltaRule().reference(**given, max_query_len=0)

    changes: tuple[dict[str, int], ...] = (
        {"read_values": 64},
        {"carry_stages": 3},
        {"carry_values": 128, "carry_warps": 8},
        {"carry_values": 128, "carry_warps": 8, "carry_stages": 3},
        {"carry_values": 32},
        {"carry_values": 32, "carry_stages": 3},
        {"carry_warps": 8},
        {"read_warps": 8},
        {"read_values": 64, "read_warps": 8},
        {"leaf": 8},
        {"solve_values": 128},
        {"solve_warps": 8},
        {"chunk": 32},
        {"chunk": 32, "carry_stages": 4, "read_values": 64},
    )
    both = {IN_TURN: chunk_gated_delta_rule_in_turn, DEFAULT: variant()}
    tried = {", ".join(f"{n} {x}" for n, x in change.items()): variant(**change) for change in changes}
    sizes = [(1, 64), (1, 128), (1, 8192), (16, 64), (16, 128)] if is_real else [(1, 5)]
    for number, (num_seqs, length) in enumerate([(4, 2048) if is_real else (2, 70), *sizes]):
        variants = both if number else {**both, **(tried if is_real else dict(list(tried.items())[:1]))}
        shape = f"{num_seqs} x {length} x {heads}, {size} x {size}"
        yield Case("chunk_gated_delta_rule", shape, arguments(num_seqs, length), right, variants)


OPS = {"chunk_gated_delta_rule": delta_rule}
"""By name: the cases of an op, whose first has all variants."""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"all of them when none is named: {', '.join(OPS)}")
    parser.add_argument("--out", type=Path, help="a .json file")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--seconds", type=float, default=75.0)
    given = parser.parse_args(words)
    if unknown := [name for name in given.ops if name not in OPS]:
        parser.error(f"there is no op {unknown[0]!r}; there are {', '.join(OPS)}")
    torch.manual_seed(0)
    device, started = torch.device(given.device), time.monotonic()
    rows: list[Row] = []
    for name in given.ops or OPS:
        for case in OPS[name](device):
            rows += measured(case, device, given.seconds - (time.monotonic() - started))
            if given.out:  # what is known by now, should a later variant end the process
                record = {
                    "schema_version": 1,
                    "environment": environment(given.device),
                    "rows": list(map(asdict, rows)),
                }
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps(record, indent=1) + "\n")
    print_table(rows)
    return 1 if any(row.problem for row in rows) else 0


def measured(case: Case, device: torch.device, seconds: float) -> list[Row]:
    """Each variant, in the case's order; none is begun after so many seconds."""
    end, rows = time.monotonic() + seconds, []
    exact = {n: x.double() if x.is_floating_point() else x for n, x in case.arguments.items()}
    if time.monotonic() < end:
        exact["states"] = exact["states"].clone()
        wanted = case.right(exact), exact["states"]
    for name, call in case.variants.items():
        row = Row(case.op, case.shape, name)
        rows.append(row)
        if time.monotonic() >= end:
            row.problem = "no time was left"
            continue
        try:
            _measure(row, call, case.arguments, wanted, device)
        except Exception as error:  # the variants behind it are tried all the same
            row.problem = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:120]
    return rows


def _measure(
    row: Row, call: Callable[..., Tensor], given: dict[str, Tensor], wanted: tuple[Tensor, Tensor], device: torch.device
) -> None:
    mine = {**given, "states": given["states"].clone()}
    returned = call(*mine.values())
    row.error = max(_error(x, y) for x, y in zip((returned, mine["states"]), wanted, strict=True))
    if not row.error < MOST_ERROR:  # NaN too
        row.problem = f"errs by more than {MOST_ERROR}"
    if device.type == "cpu":
        started = time.perf_counter()
        call(*mine.values())
        row.microseconds = (time.perf_counter() - started) * 1e6
    else:
        row.microseconds = graph_microseconds([lambda: call(*mine.values())] * 2, 30.0)
        torch.cuda.empty_cache()


def _error(got: Tensor, right: Tensor) -> float:
    return float((got.double() - right).square().mean().sqrt() / right.square().mean().sqrt())


def print_table(rows: list[Row]) -> None:
    for op, shape in dict.fromkeys((row.op, row.shape) for row in rows):
        print(f"{op} {shape}")
        own = [row for row in rows if (row.op, row.shape) == (op, shape)]
        for row in sorted(own, key=lambda row: (row.microseconds == 0.0, row.microseconds)):
            print(f"  {row.microseconds:9.1f} us  error {row.error:.5f}  {row.variant:48} {row.problem}".rstrip())


if __name__ == "__main__":
    raise SystemExit(main())
