"""Why an end-to-end run did not pass, from its results alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastkernels.sets import Status


def failures(results: dict[str, Any]) -> list[str]:
    """What makes the run not pass, a sentence each: replacements not in force on a rank, sides that failed, requests
    that did."""
    found = []
    for side in results["sides"]:
        for line in side["replacements"]:
            if line["status"] != Status.REPLACED:
                rank = f" on rank {line['rank']}" if line.get("rank") is not None else ""
                found.append(f"{side['name']}: {line['op']} is {line['status']}{rank}.")
        if side["error"]:
            found.append(f"{side['name']}: {side['error']['message']}")
        num_failed = sum(r["summary"]["num_failed"] for r in side["repeats"])
        if num_failed:
            errors = [q["error"] for r in side["repeats"] for q in r["requests"] if q.get("error")] or ["?"]
            [(error, _)] = Counter(errors).most_common(1)
            all_of = "" if any(r["summary"]["num_completed"] for r in side["repeats"]) else "nothing came back: all "
            found.append(f"{side['name']}: {all_of}{num_failed} requests failed, most often with: {error}")
    return found
