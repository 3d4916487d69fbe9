"""One agent's run as an entry of a board: plain JSON, with every sample reduced to its interval.

leaderboard_schema_version  ENTRY_SCHEMA_VERSION
agent, kind, added          kind: "kernels" or "eval"
scenario_set                of an eval run; ""
run                         what was asked for and when, SHA-256 of its results.json
environment, hardware       as the run has it, and in one line
marks                       what was let through by force: "other hardware", "quick"
implementation              the set: name, SHA-256
scenarios_sha256            over all that the scenario set says; of an eval run
scenarios_note              of an entry whose scenarios_sha256 was not written by `add`: what says that it is right
manifest                    version and SHA-256 of scoring/manifest.json; of an eval run
targets                     how many ops are registered, by level; of a kernels run
judged_by                   conditions.judged_by; of a kernels run
scores                      op_scores by scope, or scoring.scores
subset_scores               scoring.scores of the largest part of the set that can be deployed, where the set broke a
                            model, or null; of an eval run, absent in older entries
ops, items                  figures of each; of an op also "launched", the kernels of a call by the candidate's own
                            word, and "kernels", those that its source names
sources                     the texts that ops name, by SHA-256; of a kernels run
cut_sources                 how many lines a file has of which sources holds the first MOST_SOURCE_LINES, by SHA-256
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastkernels.leaderboard.conditions import judged_by
from fastkernels.leaderboard.eval_entry import eval_part
from fastkernels.leaderboard.kernel_names import defined_kernels
from fastkernels.leaderboard.kernels_checks import check_judgement
from fastkernels.leaderboard.op_scores import op_scores, op_speed
from fastkernels.leaderboard.submission import Submission
from fastkernels.registry import ops as registered_ops
from fastkernels.report.compare import hardware
from fastkernels.report.mean_speedup import mean_speedup
from fastkernels.report.view import ErrorGroup, error_groups, headline

Json = dict[str, Any]

ENTRY_SCHEMA_VERSION = 1
SHARED_FILE = "adapt.py"
"""It derives the classes of many ops, so that it is laid beside no baseline."""
MOST_SOURCE_LINES = 600
"""Longer files are cut in an entry; the whole text is in the run's results.json."""

_LONGEST_MESSAGE = 400
_TIMING = (
    *("phase", "dtype", "shapes", "init", "clock", "ratio", "low", "high", "num_pairs", "noise_floor", "speed"),
    *("baseline_us", "candidate_us", "warm_baseline_us", "warm_candidate_us", "graph_baseline_us"),
    *("graph_candidate_us", "baseline_roofline_share", "candidate_roofline_share", "is_launch_bound"),
)


def entry_of(given: Submission, marks: Sequence[str] = ()) -> Json:
    """Errors: RunFolderError as of kernels_part and eval_part."""
    results = given.results
    entry: Json = {
        "leaderboard_schema_version": ENTRY_SCHEMA_VERSION,
        "agent": given.agent,
        "kind": given.kind,
        "scenario_set": given.scenario_set,
        "added": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": {
            **{name: results[name] for name in ("run_id", "created", "request")},
            "seconds": results.get("seconds", 0.0),
            "results_sha256": _sha256(given.run / "results.json"),
        },
        "environment": results["environment"],
        "hardware": hardware(results),
        "marks": list(marks),
    }
    return {**entry, **(kernels_part(given) if given.kind == "kernels" else eval_part(given))}


def kernels_part(given: Submission) -> Json:
    """Errors: RunFolderError when a judgement is not what its cases and samples say (kernels_checks)."""
    records = [r for r in given.results["ops"] if r["implementation"] == given.implementation]
    for record in records:
        check_judgement(given.run, record, is_timed=not given.results["request"].get("check_only"))
    sources: dict[str, str] = {}
    ops = [_op(record, sources) for record in records]
    num_lines = {name: len(text.splitlines()) for name, text in sources.items()}
    targets = {
        str(level): count for level, count in sorted(Counter(e.level for e in registered_ops().values()).items())
    }
    digest = hashlib.sha256("".join(f"{o['op']} {o['source_sha256']}\n" for o in ops).encode()).hexdigest()
    return {
        "implementation": {"name": given.implementation, "sha256": digest},
        "manifest": None,
        "targets": targets,
        "judged_by": judged_by(given.results),
        "scores": op_scores(targets, ops),
        "ops": ops,
        "sources": {name: "".join(t.splitlines(keepends=True)[:MOST_SOURCE_LINES]) for name, t in sources.items()},
        "cut_sources": {name: count for name, count in num_lines.items() if count > MOST_SOURCE_LINES},
    }


def _op(record: Json, sources: dict[str, str]) -> Json:
    timings = [{name: t[name] for name in _TIMING} for t in record["timings"]] if record["verdict"] == "PASSED" else []
    speedup = mean_speedup(timings)
    path = Path(record["source_path"])
    is_shared = path.name == SHARED_FILE
    return {
        **{name: record[name] for name in ("op", "level", "verdict", "source_sha256", "num_calls")},
        "message": headline(record["message"])[:_LONGEST_MESSAGE],
        "file": path.name if is_shared else "/".join(path.parts[-2:]),
        "source": _kept(sources, record["source"]),
        "baseline_source": "" if is_shared else _kept(sources, record["baseline_source"]),
        "launched": record.get("launched", []),
        "kernels": defined_kernels(record["source"]),
        "timings": timings,
        "speed": op_speed(timings),
        **(speedup.to_json() if speedup else {"speedup": None, "low": None, "high": None}),
        "errors": _errors(error_groups(record)),
    }


def _kept(sources: dict[str, str], text: str) -> str:
    """The name under which a text is kept; many ops of one set may share a file."""
    if not text:
        return ""
    name = hashlib.sha256(text.encode()).hexdigest()[:16]
    sources[name] = text
    return name


def _errors(groups: Sequence[ErrorGroup]) -> list[Json]:
    """The worst of each input family and dtype: errors as shares of what is allowed."""
    found: dict[tuple[str, str], Json] = {}
    for group in groups:
        known = found.setdefault(
            (group.family, group.dtype),
            {
                "family": group.family,
                "dtype": group.dtype,
                "verdict": "PASSED",
                "num_calls": 0,
                **dict.fromkeys(_WORST),
            },
        )
        known["num_calls"] += group.num_calls
        if group.verdict != "PASSED":
            known["verdict"] = group.verdict
        for name in _WORST:
            values = [v for v in (known[name], getattr(group, name)) if v is not None and math.isfinite(v)]
            known[name] = max(values) if values else None
    return list(found.values())


_WORST = ("row_share", "bias_share", "max_abs")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
