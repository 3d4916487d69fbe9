"""One implementation from a set: its file is run under a private name and its class is checked."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES, ExtensionFileLoader, FileFinder, ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from torch import nn

from fastkernels.errors import CandidateError, UsageError
from fastkernels.registry import OpEntry
from fastkernels.sets import ImplementationSet
from fastkernels.signatures import baseline_signature, class_signature

_REACH = "Workers read only Python's site-packages and the set's folder"
_PREFIX = "_fastkernels_set_"


class _FreshLoader(importlib.machinery.SourceFileLoader):
    """Compiles the text that is there now: a byte-code cache is fooled by two edits within one second."""

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _SetFinder(importlib.abc.MetaPathFinder):
    """Finds a set's helpers by their text or as extensions alone: byte code beside them may be of another text."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if path is None or not fullname.startswith(_PREFIX):
            return None
        loaders = ((ExtensionFileLoader, EXTENSION_SUFFIXES), (_FreshLoader, SOURCE_SUFFIXES))
        folders: list[str] = []
        for folder in path:
            spec = FileFinder(folder, *loaders).find_spec(fullname)
            if spec is not None and spec.loader is not None:
                return spec
            folders += (spec and spec.submodule_search_locations) or []
        if not folders:
            raise ModuleNotFoundError(f"No module named {fullname!r} with source text in {list(path)}", name=fullname)
        package = ModuleSpec(fullname, None, is_package=True)
        package.submodule_search_locations = folders
        return package


def _package(name: str, path: Path) -> None:
    """A package without an __init__, so that files of a set can import the set's own helpers relatively."""
    if not any(isinstance(finder, _SetFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _SetFinder())
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(path)]
        sys.modules[name] = package


def _import_file(implementations: ImplementationSet, path: Path) -> ModuleType:
    """Run one file of a set under a private name, once per process.

    Errors: CandidateError(kind="import") with the file's own traceback.
    """
    root = f"{_PREFIX}{hashlib.sha256(str(implementations.path).encode()).hexdigest()[:12]}"
    parts = path.relative_to(implementations.path).with_suffix("").parts
    _package(root, implementations.path)
    if len(parts) > 1:
        _package(f"{root}.{parts[0]}", implementations.path / parts[0])
    name = ".".join((root, *parts))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path, loader=_FreshLoader(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except CandidateError:  # of another file of the set, imported from this one
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        why = "does not import"
        if isinstance(error, (MemoryError, RecursionError)) and frame_in(path, error) is None:
            why += ": it is nested too deeply for Python's parser"
        told = f"{path} {why}.\n{_traceback_in(path, error)}"
        if _is_out_of_reach(error, implementations.path):
            told += f" ({_REACH}: install the library, or copy it there.)"
        raise CandidateError(told, kind="import") from error
    return module


def _is_out_of_reach(error: BaseException, folder: Path) -> bool:
    """Of a file whose own permissions allow it: a worker's confinement keeps it from what is not the set's."""
    if not isinstance(error, PermissionError) or not isinstance(error.filename, str):
        return False
    return not Path(error.filename).is_relative_to(folder) and os.access(error.filename, os.R_OK)


def frame_in(path: Path, error: BaseException) -> TracebackType | None:
    """The first frame of `path`, a file or a folder's files."""
    frame = error.__traceback__
    while frame is not None and not Path(frame.tb_frame.f_code.co_filename).is_relative_to(path):
        frame = frame.tb_next
    return frame


def _traceback_in(path: Path, error: BaseException) -> str:
    """The traceback from the first frame inside `path` on."""
    frame = frame_in(path, error)
    return "".join(traceback.format_exception(type(error), error, frame)).rstrip()


def load_class(entry: OpEntry, implementations: ImplementationSet) -> type[nn.Module]:
    """The class with which a set implements an op, its name and signatures checked.

    Errors: CandidateError: kind "import" with the traceback, kind "signature" with both signatures;
    UsageError when the set does not offer the op.
    """
    if (entry.level, entry.stem) in implementations.files:
        return _class_in_file(entry, implementations, implementations.files[entry.level, entry.stem])
    cls = None
    if implementations.adapt is not None:
        baseline = getattr(importlib.import_module(entry.module), entry.class_name)
        cls = adapted_class(entry, implementations, baseline)
    if cls is None:
        raise UsageError(f"The set {implementations.name!r} in {implementations.path} does not offer {entry.name}.")
    return cls


def _class_in_file(entry: OpEntry, implementations: ImplementationSet, path: Path) -> type[nn.Module]:
    cls = getattr(_import_file(implementations, path), entry.class_name, None)
    if not isinstance(cls, type):
        tree = ast.parse(path.read_bytes())
        defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        raise CandidateError(
            f"{path} has no class {entry.class_name}, the name of {entry.file_name}'s; "
            f"its classes: {', '.join(defined) or 'none'}.",
            kind="signature",
        )
    _check_class(entry, cls, path)
    return cls


def adapted_class(entry: OpEntry, implementations: ImplementationSet, baseline: type) -> type[nn.Module] | None:
    """What the set's adapt.py makes of the baseline's class; None when it leaves the op alone.

    Errors: CandidateError, as load_class.
    """
    path = implementations.adapt
    assert path is not None
    module = _import_file(implementations, path)
    if entry.level not in getattr(module, "LEVELS", (entry.level,)):
        return None
    try:
        cls = module.adapt(baseline)
    except Exception as error:
        message = f"{path}: adapt({entry.class_name}) failed.\n{_traceback_in(path, error)}"
        raise CandidateError(message, kind="import") from error
    if cls is not None:
        _check_class(entry, cls, path)
    return cls


def _check_class(entry: OpEntry, cls: type, path: Path) -> None:
    """Errors: CandidateError(kind="signature") shows the baseline's signature and the candidate's."""
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise CandidateError(f"{path}: {entry.class_name} is not a torch.nn.Module.", kind="signature")
    for method in ("__init__", "forward"):
        expected, given = baseline_signature(entry, method), class_signature(cls, method)
        if expected != given:
            raise CandidateError(
                f"{path}: {entry.class_name}.{method} has another signature than {entry.file_name}.\n"
                f"  baseline:  {method}{expected}\n  candidate: {method}{given}",
                kind="signature",
            )
