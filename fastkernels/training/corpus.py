"""The text of Python's own standard library: some modules to train on, others held out."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastkernels.errors import EnvironmentProblem, UsageError

HELD_OUT_SHARE = 16
"""One module in so many is held out."""

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "__pycache__"})
"""encodings: 120 tables that are nearly the same text, so that held-out ones would be known."""

_GENERATED = "_sysconfigdata"
"""Holds the paths of the machine that Python was built on."""


@dataclass(frozen=True)
class SourceText:
    """module: its dotted name, a package by its own."""

    module: str
    text: str


@cache
def standard_library(folder: Path | None = None) -> tuple[SourceText, ...]:
    """Every module that is not a test, by name. folder: that of the running Python's library when left out.

    Errors: EnvironmentProblem when there is no source text: some systems have only compiled modules.
    """
    root = folder or Path(sysconfig.get_path("stdlib"))
    found = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).with_suffix("").parts
        if _LEFT_OUT & set(parts) or path.name.startswith(_GENERATED):
            continue
        name = ".".join(part for part in parts if part != "__init__")
        found.append(SourceText(name, path.read_text(encoding="utf-8", errors="replace")))
    if not found:
        raise EnvironmentProblem(f"{root} holds no *.py files of Python's standard library; install its sources.")
    return tuple(sorted(found, key=lambda source: source.module))


def is_held_out(module: str) -> bool:
    """Decided by the name alone, so that a module stays on its side in every version of Python."""
    return hashlib.sha256(module.encode()).digest()[0] % HELD_OUT_SHARE == 0


def train_sources(folder: Path | None = None) -> list[SourceText]:
    return [source for source in standard_library(folder) if not is_held_out(source.module)]


def held_out_sources(folder: Path | None = None) -> list[SourceText]:
    return [source for source in standard_library(folder) if is_held_out(source.module)]


def held_out_texts(num: int, num_bytes: int, folder: Path | None = None) -> list[str]:
    """`num` pieces of num_bytes bytes (less what a cut character had) of held-out modules: first the beginning of each
    that is long enough, then what follows it.

    Errors: UsageError when the held-out modules have fewer.
    """
    if num < 1 or num_bytes < 1:
        raise UsageError(f"num is {num} and num_bytes {num_bytes}; the least of both is 1.")
    pieces: list[str] = []
    sources = [source.text.encode() for source in held_out_sources(folder)]
    for start in range(0, max(map(len, sources), default=0), num_bytes):
        whole = [text[start : start + num_bytes] for text in sources if len(text) >= start + num_bytes]
        pieces += [piece.decode(errors="ignore") for piece in whole]
        if len(pieces) >= num:
            return pieces[:num]
    raise UsageError(f"{num} held-out texts of {num_bytes} bytes were asked for; there are {len(pieces)}.")


def text_facts(sources: Iterable[SourceText]) -> dict[str, str | int]:
    """Number of modules and bytes, and a digest of all names and texts in order."""
    digest, num_modules, num_bytes = hashlib.sha256(), 0, 0
    for source in sources:
        data = source.text.encode()
        digest.update(f"{source.module}\0{len(data)}\0".encode() + data)
        num_modules, num_bytes = num_modules + 1, num_bytes + len(data)
    return {"num_modules": num_modules, "num_bytes": num_bytes, "sha256": digest.hexdigest()}
