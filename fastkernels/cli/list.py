"""`fastkernels list`: what there is, from source text alone."""

from __future__ import annotations

import ast
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from rich.tree import Tree
from typer import Option

from fastkernels import registry, sets
from fastkernels.cli.common import console, print_json
from fastkernels.cli.select import select_ops
from fastkernels.engine.model_source import find_model, presets, shipped_checkpoints
from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.registry import OpEntry


def list_ops(
    level: Annotated[int | None, Option(help="Ops of this level, 1 to 4.")] = None,
    architecture: Annotated[str | None, Option(help="Ops of this architecture.")] = None,
    map_of: Annotated[str | None, Option("--map", help="An architecture or an op: its tree, down to L1.")] = None,
    uses: Annotated[str | None, Option(help="An op: what its replacement changes, up to the models.")] = None,
    show_sets: Annotated[bool, Option("--sets", help="The implementation sets.")] = False,
    show_models: Annotated[bool, Option("--models", help="The models that need no file, for --model.")] = False,
    as_json: Annotated[bool, Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Ops by level, a model's tree, what a replacement changes, the implementation sets, or the models at hand."""
    views = [map_of is not None, uses is not None, show_sets, show_models]
    if sum(views) > 1:
        raise UsageError("--map, --uses, --sets and --models are four views; give one.")
    if map_of is not None:
        _show_map(map_of, as_json)
    elif uses is not None:
        _show_uses(uses, as_json)
    elif show_sets:
        _show_sets(as_json)
    elif show_models:
        _show_models(as_json)
    else:
        _show_ops(select_ops(None, level, architecture), as_json)


def _as_dict(entry: OpEntry) -> dict[str, Any]:
    return {"op": entry.name, "class": entry.class_name, "level": entry.level, "file": entry.file_name}


def _table(title: str, *columns: str) -> Table:
    console.print(title, style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show_ops(entries: list[OpEntry], as_json: bool) -> None:
    if as_json:
        parts = {"uses": registry.uses, "used_by": registry.used_by}
        print_json([_as_dict(e) | {key: [o.name for o in of(e.name)] for key, of in parts.items()} for e in entries])
        return
    table = _table(f"{len(entries)} ops", "op", "class", "file", "changes")
    for entry in entries:
        changed = len(registry.used_by(entry.name))
        table.add_row(entry.name, entry.class_name, entry.file_name, f"{changed} above" if changed else "")
    console.print(table)


def _show_uses(target: str, as_json: bool) -> None:
    found = [
        _as_dict(entry)
        | {
            "changes": [_as_dict(e) for e in registry.used_by(entry.name)],
            "architectures": registry.architectures_with(entry.name),
        }
        for entry in registry.find_ops(target)
    ]
    if as_json:
        print_json(found)
        return
    for op in found:
        models = ", ".join(op["architectures"]) or "none"
        count = len(op["changes"])
        title = f"Replacing {op['op']} changes {count} op{'' if count == 1 else 's'} above it; architectures: {models}"
        table = _table(title, "op", "class", "file")
        for changed in op["changes"]:
            table.add_row(changed["op"], changed["class"], changed["file"])
        console.print(table if op["changes"] else "")


def _roots(target: str) -> list[OpEntry]:
    models = {a.name: a.class_name for a in registry.ARCHITECTURES}
    try:
        return registry.find_ops(models.get(target, target))
    except UnknownNameError as error:
        raise UnknownNameError("architecture or op", target, [*models, *registry.ops()]) from error


def _show_map(target: str, as_json: bool) -> None:
    if as_json:
        print_json([_nested(entry) for entry in _roots(target)])
        return
    shown: set[str] = set()
    for entry in _roots(target):
        tree = Tree(_label(entry))
        _grow(tree, entry, shown)
        console.print(tree)


def _nested(entry: OpEntry) -> dict[str, Any]:
    return _as_dict(entry) | {"uses": [_nested(part) for part in registry.uses(entry.name)]}


def _label(entry: OpEntry) -> str:
    return f"[bold]{entry.class_name}[/]  [dim]{entry.file_name}[/]"


def _grow(tree: Tree, entry: OpEntry, shown: set[str]) -> None:
    """Add what `entry` uses; what a tree has shown before is named, not unfolded again."""
    for part in registry.uses(entry.name):
        is_repeated = part.name in shown and bool(registry.uses(part.name))
        branch = tree.add(_label(part) + (" [dim](as above)[/]" if is_repeated else ""))
        if not is_repeated:
            shown.add(part.name)
            _grow(branch, part, shown)


def _show_sets(as_json: bool) -> None:
    found = [sets.named_set(name) for name in sets.available_sets()]
    if as_json:
        print_json([asdict(s) | {"files": [str(p) for p in s.files.values()], "ops": _op_names(s)} for s in found])
        return
    table = _table("Implementation sets", "set", "ops", "what it is")
    for implementations in found:
        names = _op_names(implementations)
        row = ", ".join(names) if len(names) <= 6 else f"{len(names)} of {len(registry.ops())}"
        table.add_row(implementations.name, row or "none", _about(implementations.path))
    console.print(table)


def _show_models(as_json: bool) -> None:
    trained = shipped_checkpoints()
    found = []
    for name in [*trained, *presets()]:
        architecture = registry.architecture_of(find_model(name).hf_config)
        weights = "trained, shipped" if name in trained else "random, by --seed"
        found.append({"model": name, "architecture": architecture.name, "kind": str(architecture.kind)})
        found[-1] |= {"weights": weights}
    if as_json:
        print_json(found)
        return
    table = _table(
        "Models that need no file; any Hugging Face checkpoint directory or config.json is one, too", *found[0]
    )
    for model in found:
        table.add_row(*model.values())
    console.print(table)


def _op_names(implementations: sets.ImplementationSet) -> list[str]:
    return [entry.name for entry in implementations.ops()]


def _about(folder: Path) -> str:
    """The first line of the set's own docstring."""
    file = folder / "__init__.py"
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) if file.is_file() else None
    return (text or "").partition("\n")[0]
