"""Implementation sets: folders that offer other implementations of baseline ops. Imports none of them."""

from __future__ import annotations

import ast
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from fastkernels import env
from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.registry import OpEntry, ops, ops_of_file
from fastkernels.source import BASELINE, LEVELS, NOT_PYTHON, module_names, parse

TASKS_DIR = Path(__file__).parent / "tasks"
ALTERNATIVES_DIR = TASKS_DIR / "alternatives"
CANDIDATE = "candidate"
_LEFT_OUT = ("__pycache__", ".git")
_MODULES = (".py", ".so", ".pyd")
LAYOUT = "L1/<file>.py ... L4/<file>.py with the baseline's file and class names, or an adapt.py"


class Status(StrEnum):
    """What became of a replacement in a model that ran."""

    REPLACED = "REPLACED"
    NEVER_CALLED = "NEVER_CALLED"
    IMPORT_ERROR = "IMPORT_ERROR"
    SIGNATURE_ERROR = "SIGNATURE_ERROR"


@dataclass(frozen=True)
class ImplementationSet:
    """Files that replace baseline files of the same place, or an adapt.py that derives a class for each op.

    files: by (level, stem); names that begin with "_" are helpers of the set, not ops.
    adapt: adapt.py with `adapt(op_class) -> type | None`, asked for every op that has no file; a literal
        `LEVELS = (1, 2)` in it says which levels it speaks for.
    chosen: the ops to take from it; None: all.
    """

    name: str
    path: Path
    files: Mapping[tuple[int, str], Path]
    adapt: Path | None = None
    chosen: frozenset[str] | None = None

    def select(self, names: Iterable[str]) -> ImplementationSet:
        """The same set for these ops alone.

        Errors: UnknownNameError when the set does not offer one.
        """
        offered = {entry.name for entry in self.ops()}
        for name in (wanted := frozenset(names)):
            if name not in offered:
                raise UnknownNameError(f"op in the set {self.name!r}", name, offered)
        return replace(self, chosen=wanted)

    def ops(self) -> list[OpEntry]:
        """The ops it offers, lowest level first, as far as its text says."""
        found = [entry for place, path in self.files.items() for entry in _offered(*place, path)]
        if self.adapt is not None:
            levels = adapt_levels(self.adapt)
            found += [e for e in ops().values() if e.level in levels and (e.level, e.stem) not in self.files]
        return sorted(e for e in found if self.chosen is None or e.name in self.chosen)

    def file_of(self, entry: OpEntry) -> Path | None:
        """The file that holds this op's implementation."""
        return self.files.get((entry.level, entry.stem), self.adapt)


def _offered(level: int, stem: str, path: Path) -> list[OpEntry]:
    """The ops of a baseline file that `path` also names; all of them when it names none or does not parse."""
    entries = ops_of_file(level, stem)
    try:
        named = module_names(path, without=f"{BASELINE}.L{level}.{stem}")
    except UsageError:
        return entries
    return [e for e in entries if e.class_name in named] or entries


def adapt_levels(path: Path) -> tuple[int, ...]:
    """What a literal `LEVELS = (1, 2)` in an adapt.py says; every level without one, or when the file does not parse.

    Errors: UsageError when LEVELS is anything else.
    """
    try:
        body = parse(path).body
    except UsageError:
        return LEVELS  # imported, it is an import error with its traceback
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if not isinstance(node, (ast.Assign, ast.AnnAssign)) or [getattr(t, "id", "") for t in targets] != ["LEVELS"]:
            continue
        try:
            found = tuple(ast.literal_eval(node.value or node))
        except (TypeError, *NOT_PYTHON):
            found = ()
        if not found or set(found) - set(LEVELS):
            raise UsageError(f"{path} says {ast.unparse(node)!r}; write levels out, such as LEVELS = {LEVELS}.")
        return found
    return LEVELS


def available_sets() -> list[str]:
    """Names that `resolve_set` knows: the user's and the shipped ones."""
    shipped = (p.name for p in ALTERNATIVES_DIR.iterdir() if p.is_dir() and not p.name.startswith(("_", ".")))
    return [CANDIDATE, *sorted(shipped)]


def resolve_set(name_or_dir: str | os.PathLike[str]) -> ImplementationSet:
    """The set of this name ("candidate", a shipped one) or in this directory.

    Errors: UnknownNameError when it is neither; UsageError when it is both, and when a directory does not look like a
    set.
    """
    text, path = os.fspath(name_or_dir), Path(name_or_dir)
    if text in available_sets():
        found = named_set(text)
        if _looks_like_a_set(path) and not path.samefile(found.path):
            raise UsageError(
                f"{text!r} is a set by name, in {found.path}, and a folder here: write .{os.sep}{text} for the folder, "
                "or that path for the set."
            )
        return found
    if path.is_dir():
        return _read_set(path.resolve().name, path.resolve())
    if path.is_file():
        raise UsageError(f"{path} is a file; a set is a directory with {LAYOUT}.")
    if os.sep in text or text.startswith("."):
        raise UsageError(f"There is no directory {text!r}; a set is a directory with {LAYOUT}.")
    raise UnknownNameError("implementation set or directory", text, available_sets())


def named_set(name: str) -> ImplementationSet:
    """One of `available_sets`, whatever folders there are here."""
    if name == CANDIDATE:
        return _read_set(CANDIDATE, (env.candidate_dir() or TASKS_DIR / CANDIDATE).absolute())
    return _read_set(name, ALTERNATIVES_DIR / name)


def _looks_like_a_set(path: Path) -> bool:
    return (path / "adapt.py").is_file() or any((path / f"L{level}").is_dir() for level in LEVELS)


def _read_set(name: str, path: Path) -> ImplementationSet:
    if not path.is_dir():
        raise UsageError(f"The set {name!r} should be in {path}, which is not a directory.")
    files: dict[tuple[int, str], Path] = {}
    for level in LEVELS:
        for file in sorted((path / f"L{level}").glob("*.py")):
            if file.name.startswith("_") or not file.is_file():
                continue
            if not ops_of_file(level, file.stem):
                known = {f"L{e.level}/{e.stem}" for e in ops().values()}
                note = f"A helper's name begins with an underscore: _{file.name}."
                raise UnknownNameError(f"baseline file for {file}", f"L{level}/{file.stem}", known, note)
            files[level, file.stem] = file
    adapt = path / "adapt.py"
    if not (name == CANDIDATE or _looks_like_a_set(path)):
        raise UsageError(f"{path} holds no implementation; expected {LAYOUT}.")
    _refuse_misplaced(path, {stem for _, stem in files})
    return ImplementationSet(name, path, files, adapt if adapt.is_file() else None)


def _refuse_misplaced(path: Path, stems: set[str]) -> None:
    """Errors: UsageError for what looks like an op's file or a level's folder and would never be used."""
    levels = {f"L{level}" for level in LEVELS}
    for found in sorted(path.iterdir()):
        if found.is_dir() and re.fullmatch(r"[lL]\d+", found.name) and found.name not in levels:
            raise UsageError(f"{found} would never be used: the levels' folders are {', '.join(sorted(levels))}.")
        is_new = found.suffix == ".py" and found.stem not in stems
        places = [e.file_name for level in LEVELS for e in ops_of_file(level, found.stem)] if is_new else []
        if places:
            raise UsageError(f"{found} would never be used there: its place is {places[0]} in {path}.")


def linked_files(implementations: ImplementationSet, entries: Iterable[OpEntry]) -> list[Path]:
    """Where the files of these ops lie that are links out of the set: a confined process must be let read them."""
    root = implementations.path.resolve()
    found = {file.resolve() for entry in entries if (file := implementations.file_of(entry)) is not None}
    return sorted(path for path in found if not path.is_relative_to(root))


def links_out_of(path: Path) -> list[Path]:
    """Links in a set's folder that lead out of it. Only the ops' own files are read there: a set is written by others,
    and what it links to may be none of theirs."""
    found = [Path(folder) / name for folder, folders, names in os.walk(path) for name in (*folders, *names)]
    return sorted(f for f in found if f.is_symlink() and not f.resolve().is_relative_to(path.resolve()))


def folder_digest(path: Path) -> str:
    """SHA-256 over places and contents of all files in a folder, in the order of their places; links are followed."""
    return _digest_of(_files_of(path), path)


def source_digest(implementations: ImplementationSet, entry: OpEntry) -> str:
    """SHA-256 of the file that holds an op's implementation; with those of the set that it names, where it names any.

    A module is named by its stem, any other file by its name, in this file or in one that is named itself. A file that
    holds other ops only counts when it is imported relatively.
    Errors: UsageError when the set has no file for the op.
    """
    file = implementations.file_of(entry)
    if file is None:
        raise UsageError(f"The set {implementations.name!r} in {implementations.path} has no file for {entry.name}.")
    found = _named_files(implementations, file)
    if len(found) == 1:
        return hashlib.sha256(source_text(file).encode()).hexdigest()
    return _digest_of(sorted(found), implementations.path)


def source_text(path: Path) -> str:
    """ "" when it cannot be read: whoever loads it says why."""
    return _content(path).decode(encoding="utf-8", errors="replace")


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _digest_of(files: Iterable[Path], folder: Path) -> str:
    state = hashlib.sha256()
    for file in files:
        content = _content(file)
        state.update(f"{file.relative_to(folder).as_posix()}\n{len(content)}\n".encode())
        state.update(content)
    return state.hexdigest()


def _files_of(path: Path) -> list[Path]:
    """Without links that lead nowhere, or back to a folder above them."""
    found = []
    for folder, folders, names in os.walk(path, followlinks=True):
        above = {Path(folder).resolve(), *Path(folder).resolve().parents}
        folders[:] = sorted(n for n in folders if n not in _LEFT_OUT and (Path(folder) / n).resolve() not in above)
        found += [file for name in sorted(names) if (file := Path(folder) / name).is_file()]
    return found


def _named_files(implementations: ImplementationSet, file: Path) -> set[Path]:
    by_word: dict[str, list[Path]] = {}
    for path in _files_of(implementations.path):
        module = path.parent.name if path.name == "__init__.py" else path.name.partition(".")[0]
        by_word.setdefault(module if path.suffix in _MODULES else path.name, []).append(path)
    of_ops = {*implementations.files.values(), implementations.adapt}
    found: set[Path] = set()
    waiting = [file]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        text = source_text(path)
        imported = _relatively_imported(text)
        for word in {*re.findall(r"\w+", text), *re.findall(r"[\w.-]+", text)} & by_word.keys():
            waiting += [other for other in by_word[word] if other not in of_ops or word in imported]
    return found


def _relatively_imported(text: str) -> set[str]:
    """Every part of the names that a module takes from its own set."""
    try:
        nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.ImportFrom) and n.level]
    except NOT_PYTHON:
        return set()
    return {part for n in nodes for part in ((n.module or "").split(".") + [alias.name for alias in n.names])}
