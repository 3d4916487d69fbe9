"""Which implementation serves each op of a model."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastkernels.overlay import Overlay
from fastkernels.registry import ops_of_module


def kernels_of(model: nn.Module, overlay: Overlay | None) -> list[dict[str, Any]]:
    """Every op in a model, by name, with the set that serves it.

    num_calls: of a replacement, the calls that reached its Python code; None of the baseline's own, uncounted.
    """
    replaced = {line["op"]: line for line in overlay.report()} if overlay is not None else {}
    found: dict[str, dict[str, Any]] = {}
    for module in model.modules():
        for entry in ops_of_module(type(module).__module__) or ():
            if entry.class_name == type(module).__name__:
                line = {"op": entry.name, "class": entry.class_name, "set": "baseline", "status": "BASELINE"}
                found[entry.name] = {**line, "num_calls": None}
    for name, line in replaced.items():
        known = found.get(name, {"op": name, "class": None})
        found[name] = {**known, "set": line["set"], "status": line["status"], "num_calls": line["num_calls"]}
    return [found[name] for name in sorted(found)]
