"""Implementations in the place of baseline ops, in the process that runs a model.

`install` hooks the import of fastkernels.tasks.baseline.L*.<stem>: the baseline file runs, then its classes
are exchanged before any importer binds them, so nothing in a model file knows.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import nn

from fastkernels.errors import CandidateError, UsageError
from fastkernels.loading import adapted_class, load_class
from fastkernels.registry import OpEntry, ops_of_module
from fastkernels.sets import ImplementationSet, Status, available_sets, resolve_set
from fastkernels.source import modules

__all__ = ["ImplementationSet", "Overlay", "Status", "available_sets", "install", "load_class", "resolve_set"]


@dataclass
class Replacement:
    """One op and the set that stands in for it. num_traced: calls that torch.compile baked into a graph."""

    entry: OpEntry
    implementations: ImplementationSet
    num_calls: int = 0
    num_traced: int = 0
    error: CandidateError | None = None

    @property
    def status(self) -> Status:
        if self.error is not None:
            return Status.IMPORT_ERROR if self.error.kind == "import" else Status.SIGNATURE_ERROR
        return Status.REPLACED if self.num_calls + self.num_traced else Status.NEVER_CALLED


class Overlay:
    """The replacements of this process, in force from `install` on."""

    def __init__(self, sets: Sequence[ImplementationSet], *, strict: bool) -> None:
        self.strict = strict
        self.replacements: dict[str, Replacement] = {}
        self._adapting = [s for s in sets if s.adapt is not None]
        for implementations in sets:
            for entry in implementations.ops():
                if (entry.level, entry.stem) in implementations.files:
                    self._plan(entry, implementations)
        self._finder = _Finder(self)

    def _plan(self, entry: OpEntry, implementations: ImplementationSet) -> None:
        other = self.replacements.get(entry.name)
        if other is not None:
            raise UsageError(
                f"Two sets replace {entry.name}: {other.implementations.path} and {implementations.path}. "
                "Leave one out or select the ops of each."
            )
        self.replacements[entry.name] = Replacement(entry, implementations)

    def replace_in(self, module: ModuleType) -> None:
        """Exchange the classes of a baseline module that has just run."""
        for entry in ops_of_module(module.__name__):
            try:
                self._replace(module, entry, getattr(module, entry.class_name))
            except CandidateError as error:
                self.replacements[entry.name].error = error
                if self.strict:
                    raise

    def _replace(self, module: ModuleType, entry: OpEntry, baseline: type) -> None:
        if entry.name in self.replacements:
            cls: type[nn.Module] | None = load_class(entry, self.replacements[entry.name].implementations)
        else:
            cls = self._adapted(entry, baseline)
        if cls is None:
            return
        _inherit_data(cls, baseline)
        _count_calls(cls, self.replacements[entry.name])
        setattr(module, entry.class_name, cls)

    def _adapted(self, entry: OpEntry, baseline: type) -> type[nn.Module] | None:
        """What the one set makes of it that does not leave the op alone. Errors: UsageError when two do not."""
        found = None
        for implementations in self._adapting:
            if entry not in implementations.ops():
                continue
            try:
                cls = adapted_class(entry, implementations, baseline)
            except CandidateError:
                self._plan(entry, implementations)
                raise
            if cls is not None:
                self._plan(entry, implementations)
                found = cls
        return found

    def load(self) -> None:
        """Import every baseline module that a file replaces, so that a broken file shows at once."""
        for replacement in list(self.replacements.values()):
            importlib.import_module(replacement.entry.module)

    def remove(self) -> None:
        """Stop replacing what is imported from now on; what has been replaced stays."""
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)

    def report(self) -> list[dict[str, Any]]:
        """One line per replaced op: what became of it on this rank. num_calls counts traced calls too."""
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        return [
            {
                "op": r.entry.name,
                "set": r.implementations.name,
                "status": r.status.value,
                "num_calls": r.num_calls + r.num_traced,
                "num_traced": r.num_traced,
                "rank": rank,
                "error": None if r.error is None else str(r.error),
            }
            for r in sorted(self.replacements.values(), key=lambda r: r.entry)
        ]


def _inherit_data(cls: type, baseline: type) -> None:
    """Class-level data that others read (spec, packed_modules, ...), where the replacement has none of its own."""
    for name, value in vars(baseline).items():
        if not (name.startswith("_") or callable(value) or hasattr(value, "__get__") or hasattr(cls, name)):
            setattr(cls, name, value)


def _count_calls(cls: type, replacement: Replacement) -> None:
    """Count calls of instances of exactly this class.

    Inside torch.compile a count would be a side effect of the graph; there, tracing the call counts once.
    """
    inner: Callable[..., Any] = cls.__call__

    def note_trace() -> bool:
        replacement.num_traced += 1
        return True

    # What torch.compiler.assume_constant_result does, without importing the whole of torch._dynamo: 1.5 s of a start.
    note_trace._dynamo_marked_constant = True  # type: ignore[attr-defined]

    def counted_call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if type(self) is cls:
            if torch.compiler.is_dynamo_compiling():
                note_trace()
            else:
                replacement.num_calls += 1
        return inner(self, *args, **kwargs)

    cls.__call__ = counted_call  # type: ignore[method-assign]


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, overlay: Overlay) -> None:
        super().__init__(fullname, path)
        self._overlay = overlay

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        self._overlay.replace_in(module)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the baseline's files as Python would, with a loader that replaces."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in modules():
            return None
        file = str(modules()[fullname].path)
        return importlib.util.spec_from_file_location(fullname, file, loader=_Loader(fullname, file, self._overlay))


def install(sets: Iterable[ImplementationSet], *, strict: bool = True) -> Overlay:
    """Replace ops in this process from now on; call it before any baseline module is imported.

    strict: raise the first broken file's CandidateError; otherwise the baseline stays in its place and the
    report says IMPORT_ERROR or SIGNATURE_ERROR.
    Errors: UsageError when baseline modules are imported already, or when two sets replace the same op.
    """
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        raise UsageError("An overlay is installed already; pass all its sets in one call.")
    if imported := sorted(name for name in modules() if name in sys.modules):
        raise UsageError(
            f"An overlay must be installed before tasks are imported; {', '.join(imported[:3])}"
            f"{', ...' if len(imported) > 3 else ''} already is. Install it first, in a fresh process."
        )
    overlay = Overlay(list(sets), strict=strict)
    sys.meta_path.insert(0, overlay._finder)
    try:
        overlay.load()
    except BaseException:
        overlay.remove()
        raise
    return overlay
