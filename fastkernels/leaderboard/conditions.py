"""What a run was judged by: inputs, limits, tolerances. Entries of other conditions are never ranked together."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]

_SHOWN = 8
"""Letters of a SHA-256."""


def judged_by(results: Json) -> Json:
    """Of a kernels run: what an entry keeps of the words and files that its judgements hang on, None where the run does
    not say. dtype: those that were asked for, in order; None: the device's own, and what an op takes instead."""
    request = results["request"]
    dtypes = request.get("dtype")
    return {
        "cases_sha256": results.get("cases_sha256"),
        "tolerances_sha256": results.get("tolerances_sha256"),
        "dtype": sorted(set(dtypes)) if dtypes else None,
        "device": results["environment"]["device"].partition(":")[0],
        **{name: request.get(name) for name in ("quick", "check_only", "timeout", "memory_gb")},
    }


def conditions(entry: Json) -> str:
    """Equal for entries that compare, hardware and manifest apart."""
    if entry["kind"] == "eval":
        return str(entry.get("scenarios_sha256", ""))
    return json.dumps(entry.get("judged_by", {}), sort_keys=True)


def in_words(entry: Json) -> str:
    """What a kernels entry was judged on; of one of whole models "", since its scenario set's name says so."""
    if entry["kind"] == "eval":
        return ""
    found = entry.get("judged_by")
    return "; ".join(filter(None, _words(found).values())) if found else "what it was judged on is not said"


def differing_words(entry: Json, entries: Sequence[Json]) -> str:
    """Of in_words what is not alike in all entries of its kind, for a label; "" where nothing is to be said."""
    found = entry.get("judged_by")
    if not found:
        return ""
    others = [e.get("judged_by") or {} for e in entries if e["kind"] == entry["kind"]]
    words = _words(found).items()
    return ", ".join(word for name, word in words if word and any(other.get(name) != found[name] for other in others))


def _words(found: Json) -> dict[str, str]:
    """By the name in judged_by; "" for what is usual."""
    own = "bfloat16" if found["device"] == "cuda" else "float32"
    cases, tolerances = found["cases_sha256"], found["tolerances_sha256"]
    timeout, memory = found["timeout"], found["memory_gb"]
    return {
        "cases_sha256": f"captured cases {cases[:_SHOWN]}" if cases else "",
        "dtype": f"inputs drawn in {', '.join(found['dtype']) if found['dtype'] else f'{own} or what an op takes'}",
        "check_only": "correctness alone" if found["check_only"] else "",
        "quick": "a first look" if found["quick"] else "",
        "timeout": "" if timeout is None else f"{timeout:g} s a call",
        "memory_gb": "" if memory is None else f"{memory:g} GB",
        "tolerances_sha256": f"tolerances {tolerances[:_SHOWN]}" if tolerances else "",
    }
