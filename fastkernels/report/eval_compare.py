"""Two eval runs beside each other: which items became valid or broke, and which whole models became faster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastkernels.report.compare import Change, Comparison, change_of_speed, differences, hardware_warning
from fastkernels.report.eval_view import ItemView, item_views
from fastkernels.report.view import headline

Json = dict[str, Any]


def compare_evals(before: Json, after: Json) -> Comparison:
    """Items are matched by scenario and set; "passes" is VALID."""
    old, new = _by_key(before), _by_key(after)
    shas = [{s["name"]: s["sha256"] for s in results.get("sets", [])} for results in (before, after)]
    warnings = [*hardware_warning(before, after), *_manifests(before, after), *differences(before, after)]
    return Comparison(
        before, after, [_change(old.get(key), new.get(key), shas) for key in sorted({*old, *new})], warnings
    )


def _by_key(results: Json) -> dict[tuple[str, str], ItemView]:
    return {(v.record["item"], v.record["implementation"]): v for v in item_views(results)}


def _manifests(before: Json, after: Json) -> list[str]:
    old, new = (run.get("manifest") or {} for run in (before, after))
    if old == new:
        return []
    was, now = (f"{m.get('version')} (SHA-256 {str(m.get('sha256'))[:12]})" for m in (old, new))
    return [f"The manifest was {was} and is {now}: other answers count as right."]


def _change(old: ItemView | None, new: ItemView | None, shas: list[dict[str, str]]) -> Change:
    view = new or old
    assert view is not None
    name = view.record["implementation"]
    figures, change = _figures(old, new)
    return Change(
        op=view.record["item"],
        level=4,
        implementation=name,
        case=f"{view.record['family']} {view.record['dtype']}",
        change=change,
        verdict_before=old.verdict if old else None,
        verdict_after=new.verdict if new else None,
        message=headline(new.record["message"] or new.record["reason"]) if new else "",
        is_source_changed=bool(old and new and shas[0].get(name) != shas[1].get(name)),
        **figures,
    )


def _figures(old: ItemView | None, new: ItemView | None) -> tuple[Mapping[str, Any], str]:
    if old is None or new is None:
        return {}, "new" if old is None else "gone"
    if old.is_valid != new.is_valid:
        return {}, "now passes" if new.is_valid else "no longer passes"
    if not new.is_valid:
        return {}, "same" if old.verdict == new.verdict else "another verdict"
    if old.speedup is None or new.speedup is None:
        return {}, "not comparable"
    figures, change = change_of_speed(
        {**asdict(old.speedup), "noise_floor": old.item.noise_floor},
        {**asdict(new.speedup), "noise_floor": new.item.noise_floor},
    )
    return figures, change
