"""The text of the baseline: its files, what they define, and what each definition names. Imports no task."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from fastkernels.errors import UsageError

BASELINE = "fastkernels.tasks.baseline"
BASELINE_DIR = Path(__file__).parent / "tasks" / "baseline"
LEVELS = (1, 2, 3, 4)
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)
"""What Python's parser raises; the last two of text that is nested too deeply for it."""


@dataclass(frozen=True)
class SourceModule:
    """The top level of one baseline file, which is read when it is first asked for.

    Errors: UsageError then, when the file is not Python.
    """

    name: str
    level: int
    path: Path

    @cached_property
    def definitions(self) -> Mapping[str, ast.stmt]:
        """Its classes, functions and assigned names."""
        found: dict[str, ast.stmt] = {}
        for node in self._tree.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                found[node.name] = node
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found.update({t.id: node for t in targets if isinstance(t, ast.Name)})
        return found

    @cached_property
    def imports(self) -> Mapping[str, tuple[str, str]]:
        """What a name here stands for: (module, name there); "" there is the module itself."""
        found: dict[str, tuple[str, str]] = {}
        for statement in _statements(self._tree):
            if isinstance(statement, ast.ImportFrom) and statement.module:
                found.update({a.asname or a.name: (statement.module, a.name) for a in statement.names})
            elif isinstance(statement, ast.Import):
                found.update({a.asname: (a.name, "") for a in statement.names if a.asname})
        return found

    @cached_property
    def _tree(self) -> ast.Module:
        return parse(self.path)


def parse(path: Path) -> ast.Module:
    """Errors: UsageError when the file is not Python, or cannot be read."""
    try:
        return ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    except NOT_PYTHON as error:
        raise UsageError(f"{path} does not parse: {error or 'it is nested too deeply'}") from error


def module_names(path: Path, *, without: str, _seen: frozenset[Path] = frozenset()) -> set[str]:
    """The names that a file binds when it runs, in branches too; not those that it takes from the module `without`.

    Of `from .other import *` they are the other file's. Errors: UsageError when a file is not Python.
    """
    found: set[str] = set()
    for node in _outside_definitions(parse(path)):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.ImportFrom) and (node.level or node.module != without):
            found |= {alias.asname or alias.name for alias in node.names} - {"*"}
            if node.level and node.names[0].name == "*":
                other = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                other = other / "__init__.py" if other.is_dir() else other.with_suffix(".py")
                if other.is_file() and other not in _seen:
                    found |= module_names(other, without=without, _seen=_seen | {path, other})
    return found


def _outside_definitions(node: ast.AST) -> Iterable[ast.AST]:
    """In no order."""
    waiting = [*ast.iter_child_nodes(node)]
    while waiting:
        child = waiting.pop()
        yield child
        if not isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(child)


def _statements(node: ast.AST) -> Iterable[ast.stmt]:
    """Those within `node`, at any depth; expressions, of which there are many more, are not looked through."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            if isinstance(child, ast.stmt):
                yield child
            yield from _statements(child)


@cache
def modules() -> dict[str, SourceModule]:
    """Every file of baseline/L1..L4 by module name."""
    found = [
        SourceModule(f"{BASELINE}.L{level}.{path.stem}", level, path)
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


def _names_in(node: ast.AST) -> Iterable[tuple[str, str]]:
    """Names read inside `node`: (alias, attribute) for `alias.attribute`, (name, "") for a bare one.

    Annotations do not count, save those of __init__: a part that is passed in is a part.
    """
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        yield node.value.id, node.attr
    elif isinstance(node, ast.Name):
        yield node.id, ""
    is_constructor = isinstance(node, ast.FunctionDef) and node.name == "__init__"
    for field, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.arguments) and not is_constructor:
                child = ast.Tuple([*child.defaults, *(d for d in child.kw_defaults if d is not None)])
            is_annotation = field in ("annotation", "returns") and not isinstance(node, ast.arg)
            if isinstance(child, ast.AST) and not is_annotation:
                yield from _names_in(child)


def references(module: SourceModule, definition: str) -> set[tuple[str, str]]:
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
        found |= references(module, base)
    return found - {(module.name, definition)}
