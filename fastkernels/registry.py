"""Every op by name, what uses what, and the architectures. Read from source text; imports no task."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastkernels.errors import UnknownNameError, UsageError

BASELINE = "fastkernels.tasks.baseline"
BASELINE_DIR = Path(__file__).parent / "tasks" / "baseline"
LEVELS = (1, 2, 3, 4)
_OP_MODULE, _OP_CLASS = "fastkernels.op", "Op"


@dataclass(frozen=True, order=True)
class OpEntry:
    """One op: "rms_norm" is class RMSNorm in L1/rms_norm.py."""

    level: int
    stem: str
    name: str
    class_name: str
    module: str
    path: Path

    @property
    def file_name(self) -> str:
        return f"L{self.level}/{self.stem}.py"


@dataclass(frozen=True)
class Architecture:
    """A model family: where its L4 class and its configuration are, and the names its checkpoints carry."""

    name: str
    module: str
    class_name: str
    hf_architectures: tuple[str, ...]
    config: str


ARCHITECTURES = (
    Architecture(
        name="llama",
        module=f"{BASELINE}.L4.llama",
        class_name="LlamaForCausalLM",
        hf_architectures=("LlamaForCausalLM",),
        config="fastkernels.tasks.configs.llama:LlamaConfig",
    ),
)


def snake_case(class_name: str) -> str:
    """RMSNorm -> rms_norm, QKVParallelLinear -> qkv_parallel_linear, LlamaForCausalLM -> llama_for_causal_lm."""
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", class_name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


@dataclass(frozen=True)
class SourceModule:
    """The top level of one baseline file: its definitions and what each name in it stands for."""

    name: str
    level: int
    path: Path
    definitions: Mapping[str, ast.stmt]
    imports: Mapping[str, tuple[str, str]]  # name here -> (module, name there); "" there: the module itself


def read_module(path: Path, level: int) -> SourceModule:
    """Errors: UsageError when the file is not Python."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    except SyntaxError as error:
        raise UsageError(f"{path} does not parse: {error}") from error
    definitions: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            definitions[node.name] = node
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            definitions.update({t.id: node for t in targets if isinstance(t, ast.Name)})
    imports: dict[str, tuple[str, str]] = {}
    for statement in ast.walk(tree):
        if isinstance(statement, ast.ImportFrom) and statement.module:
            imports.update({a.asname or a.name: (statement.module, a.name) for a in statement.names})
        elif isinstance(statement, ast.Import):
            imports.update({a.asname: (a.name, "") for a in statement.names if a.asname})
    return SourceModule(f"{BASELINE}.L{level}.{path.stem}", level, path, definitions, imports)


@cache
def modules() -> dict[str, SourceModule]:
    """Every file of baseline/L1..L4 by module name."""
    found = [
        read_module(path, level)
        for level in LEVELS
        for path in sorted((BASELINE_DIR / f"L{level}").glob("*.py"))
        if path.stem != "__init__"
    ]
    return {module.name: module for module in found}


def _resolve(module: SourceModule, name: str) -> tuple[str, str] | None:
    """Where the class or function `name` of `module` is defined: (module, name), None outside of the baseline."""
    if name in module.definitions:
        return module.name, name
    source, original = module.imports.get(name, ("", ""))
    if source in modules() and original in modules()[source].definitions:
        return source, original
    return None


def find_base(module: SourceModule, node: ast.ClassDef) -> tuple[str, str] | None:
    """The baseline class that a class derives from: (module, name)."""
    places = (_resolve(module, b.id) for b in node.bases if isinstance(b, ast.Name) and b.id != node.name)
    return next((place for place in places if place is not None), None)


def _derives_from_op(module: SourceModule, class_name: str) -> bool:
    node = module.definitions[class_name]
    if not isinstance(node, ast.ClassDef):
        return False
    if any(isinstance(b, ast.Name) and module.imports.get(b.id) == (_OP_MODULE, _OP_CLASS) for b in node.bases):
        return True
    place = find_base(module, node)
    return place is not None and _derives_from_op(modules()[place[0]], place[1])


@cache
def ops() -> dict[str, OpEntry]:
    """Every op by name: the public classes of the baseline that derive from Op.

    Errors: UsageError when two classes would have the same name.
    """
    found: dict[str, OpEntry] = {}
    for module in modules().values():
        for class_name in module.definitions:
            if class_name.startswith("_") or not _derives_from_op(module, class_name):
                continue
            stem = module.path.stem
            is_stem = stem.replace("_", "") == class_name.lower()  # StoreKVCache is store_kvcache, as published
            name = stem if is_stem else snake_case(class_name)
            entry = OpEntry(module.level, stem, name, class_name, module.name, module.path)
            if name in found:
                raise UsageError(
                    f"Two ops are named {name!r}: {found[name].class_name} in {found[name].file_name} and "
                    f"{class_name} in {entry.file_name}. Rename one class."
                )
            found[name] = entry
    return found


def find_ops(target: str) -> list[OpEntry]:
    """The ops meant by an op name, a class name, a file stem or "L1/rms_norm" (a file: all its ops).

    Errors: UnknownNameError suggests the nearest.
    """
    entries = ops().values()
    wanted = target.removesuffix(".py")
    for matches in (
        [e for e in entries if wanted in (e.name, e.class_name)],
        [e for e in entries if wanted in (e.stem, f"L{e.level}/{e.stem}")],
    ):
        if matches:
            return matches
    names = {n for e in entries for n in (e.name, e.class_name, e.stem)}
    if "/" in wanted:
        names = {f"L{e.level}/{e.stem}" for e in entries}
    raise UnknownNameError("op", target, names)


def ops_of_file(level: int, stem: str) -> list[OpEntry]:
    return [e for e in ops().values() if (e.level, e.stem) == (level, stem)]


def ops_of_module(module: str) -> list[OpEntry]:
    return [e for e in ops().values() if e.module == module]


def ops_of_level(level: int) -> list[OpEntry]:
    """Errors: UsageError when there is no such level."""
    if level not in LEVELS:
        raise UsageError(f"There is no level {level}; levels are {', '.join(map(str, LEVELS))}.")
    return [e for e in ops().values() if e.level == level]


def _names_in(node: ast.AST) -> Iterable[tuple[str, str]]:
    """Names read inside `node`; (alias, attribute) for `alias.attribute`, (name, "") for a bare one."""
    for child in ast.walk(node):
        if isinstance(child, ast.Attribute) and isinstance(child.value, ast.Name):
            yield child.value.id, child.attr
        elif isinstance(child, ast.Name):
            yield child.id, ""


def _references(module: SourceModule, definition: str) -> set[tuple[str, str]]:
    """Baseline definitions that `definition` names.

    A base class of the same file does not count: a replacement is bound after the file has run, so it
    cannot change a class that was derived there.
    """
    node = module.definitions[definition]
    bases = {b.id for b in node.bases if isinstance(b, ast.Name)} if isinstance(node, ast.ClassDef) else set()
    own_bases = bases & module.definitions.keys()
    found: set[tuple[str, str]] = set()
    for name, attribute in _names_in(node):
        source, original = module.imports.get(name, ("", ""))
        imported = f"{source}.{original}".removesuffix(".")
        if attribute and imported in modules() and attribute in modules()[imported].definitions:
            found.add((imported, attribute))
        elif name not in own_bases and (place := _resolve(module, name)):
            found.add(place)
    for base in own_bases:  # what the base itself uses is used here too
        found |= _references(module, base)
    return found - {(module.name, definition)}


@cache
def _graph() -> dict[str, tuple[OpEntry, ...]]:
    by_place = {(e.module, e.class_name): e for e in ops().values()}
    graph = {}
    for entry in ops().values():
        seen: set[tuple[str, str]] = set()
        found: set[OpEntry] = set()
        waiting = _references(modules()[entry.module], entry.class_name)
        while waiting:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            if place in by_place:
                found.add(by_place[place])
            else:
                waiting |= _references(modules()[place[0]], place[1])
        graph[entry.name] = tuple(sorted(found - {entry}, key=lambda e: (-e.level, e.name)))
    return graph


def uses(name: str) -> list[OpEntry]:
    """The ops that `name` is directly composed of, highest level first."""
    return list(_graph()[_known(name)])


def used_by(name: str) -> list[OpEntry]:
    """Everything that a replacement of `name` changes, up to the models, lowest level first."""
    changed = {_known(name)}
    while True:
        more = {op for op, parts in _graph().items() if any(p.name in changed for p in parts)} - changed
        if not more:
            return sorted(ops()[op] for op in changed - {name})
        changed |= more


def ops_below(name: str) -> list[OpEntry]:
    """`name` and everything it is composed of, lowest level first."""
    found, waiting = set(), {_known(name)}
    while waiting:
        op = waiting.pop()
        found.add(op)
        waiting |= {part.name for part in _graph()[op]} - found
    return sorted(ops()[op] for op in found)


def _known(name: str) -> str:
    if name not in ops():
        raise UnknownNameError("op", name, ops())
    return name


def architecture(name: str) -> Architecture:
    """Errors: UnknownNameError suggests the nearest."""
    for candidate in ARCHITECTURES:
        if candidate.name == name:
            return candidate
    raise UnknownNameError("architecture", name, [a.name for a in ARCHITECTURES])


def architecture_of(hf_config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Hugging Face config.json asks for.

    Errors: UnknownNameError when none of its "architectures" is known.
    """
    wanted = hf_config.get("architectures") or []
    for candidate in ARCHITECTURES:
        if set(wanted) & set(candidate.hf_architectures):
            return candidate
    known = [h for a in ARCHITECTURES for h in a.hf_architectures]
    raise UnknownNameError("architecture", ", ".join(map(str, wanted)) or "(none in the config)", known)


def ops_of_architecture(name: str) -> list[OpEntry]:
    """Every op of the architecture, lowest level first."""
    model = architecture(name)
    return ops_below(find_ops(model.class_name)[0].name)
