"""Implementation sets as an eval run takes them: their digest, which of their ops a model has, and parts of them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastkernels.bench.eval.records import SetRecord
from fastkernels.errors import RunFolderError, UsageError
from fastkernels.registry import OpEntry, ops_of_architecture
from fastkernels.sets import ImplementationSet, adapt_levels, folder_digest, resolve_set

_WHOLE = "_whole"


@dataclass(frozen=True)
class EvalSet:
    record: SetRecord
    implementations: ImplementationSet

    @property
    def name(self) -> str:
        return self.record.name

    def ops_in(self, architecture: str) -> list[str]:
        """Of the ops that it offers, those that the architecture has; lowest level first."""
        known = set(ops_of_architecture(architecture))
        return [entry.name for entry in self.implementations.ops() if entry in known]

    def folder_of(self, names: Collection[str], place: Path) -> Path:
        """A set of these ops alone: its own folder when they are all of them, else a new one below `place`.

        The new one holds no copy: its files take the chosen classes from the set, which is linked into it.
        """
        offered = self.implementations.ops()
        chosen = [entry for entry in offered if entry.name in names]
        path = self.implementations.path
        if len(chosen) == len(offered):
            return path
        folder = place / f"{_digest(sorted(names))}" / self.name
        if not folder.exists():
            folder.mkdir(parents=True)
            (folder / _WHOLE).symlink_to(path, target_is_directory=True)
            _write_part(self.implementations, chosen, folder)
        return folder


def read_sets(names: Sequence[str]) -> tuple[EvalSet, ...]:
    """Errors: UnknownNameError, UsageError for one that is not there, offers nothing or has the name of another."""
    found: dict[str, EvalSet] = {}
    for text in names:
        implementations = resolve_set(text)
        name, path = implementations.name, implementations.path
        if name in found and found[name].implementations.path != path:
            raise UsageError(f"Two sets are named {name!r}: {found[name].record.path} and {path}. Rename a folder.")
        if not implementations.ops():
            raise UsageError(f"The set {name!r} in {path} offers no op; `fastkernels stubs` writes files to fill in.")
        found[name] = read_set(implementations)
    return tuple(found.values())


def read_set(implementations: ImplementationSet) -> EvalSet:
    path = implementations.path.resolve()
    ops = [entry.name for entry in implementations.ops()]
    return EvalSet(SetRecord(implementations.name, str(path), ops, folder_digest(path)), implementations)


def set_of(record: SetRecord) -> EvalSet:
    """The set that a record is of, as it lies on this machine.

    Errors: RunFolderError when its files are not those of the record.
    """
    found = read_sets([record.path])[0]
    if found.record.sha256 != record.sha256:
        raise RunFolderError(
            f"The set {record.name!r} in {record.path} has changed: its files' SHA-256 is {found.record.sha256[:12]}, "
            f"{record.sha256[:12]} was asked for. On other hosts it must lie in a folder that all of them see."
        )
    return EvalSet(record, found.implementations)


def _digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def _write_part(implementations: ImplementationSet, chosen: Sequence[OpEntry], folder: Path) -> None:
    by_file: dict[tuple[int, str], list[str]] = {}
    adapted = []
    for entry in chosen:
        place = (entry.level, entry.stem)
        if place in implementations.files:
            by_file.setdefault(place, []).append(entry.class_name)
        else:
            adapted.append(entry)
    for (level, stem), classes in by_file.items():
        file = folder / f"L{level}" / f"{stem}.py"
        file.parent.mkdir(exist_ok=True)
        names = ", ".join(sorted(classes))
        file.write_text(f"from ..{_WHOLE}.L{level}.{stem} import {names}\n")
    if adapted and implementations.adapt is not None:
        levels = tuple(n for n in adapt_levels(implementations.adapt) if any(e.level == n for e in adapted))
        classes = sorted(entry.class_name for entry in adapted)
        (folder / "adapt.py").write_text(
            f"from .{_WHOLE} import adapt as whole\n\nLEVELS = {levels!r}\n\n\n"
            "def adapt(op_class):\n"
            f"    return whole.adapt(op_class) if op_class.__name__ in {classes!r} else None\n"
        )
