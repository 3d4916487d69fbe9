"""The catalogue is whole, its files are there, and they are not trivially broken ones."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from naive_judge import is_fooled

from fastkernels.adversarial.catalogue import Item, Status, entries, items, twins
from fastkernels.registry import ops
from fastkernels.sets import resolve_set

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "fastkernels" / "adversarial"
PUBLISHED = [
    f"{letter}{number:02}" for letter, last in (("T", 31), ("C", 40), ("S", 20)) for number in range(1, last + 1)
]
CHEATS = [item for item in items() if item.is_cheat]


def test_all_published_cheats_have_an_entry() -> None:
    ids = [entry.id for entry in entries()]
    assert len(PUBLISHED) == 91
    assert sorted(PUBLISHED) == sorted(id_ for id_ in ids if not id_.startswith("X"))
    assert len(set(ids)) == len(ids)


def test_enough_cheats_are_written() -> None:
    """The bar: 60 that a CPU can run, 80 with a GPU."""
    on_cpu = [entry for entry in entries() if any(cheat.runs_on("cpu") for cheat in entry.cheats)]
    written = [entry for entry in entries() if entry.cheats]
    assert len(on_cpu) >= 60
    assert len(written) >= 80


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.id)
def test_an_entry_says_what_catches_it_and_where_that_is_shown(entry: object) -> None:
    assert entry.what.endswith(".")
    assert entry.source
    assert entry.caught_by
    assert bool(entry.cheats) == (entry.status is Status.WRITTEN)
    file, _, name = entry.test.partition("::")
    text = (ROOT / file).read_text()
    assert not name or f"def {name}(" in text


@pytest.mark.parametrize("item", items(), ids=lambda item: item.name)
def test_a_file_is_a_set_with_the_op_it_names(item: Item) -> None:
    assert [entry.name for entry in resolve_set(item.path).ops()] == [item.op]
    assert ops()[item.op].level in (1, 2)


def test_every_folder_is_in_the_catalogue() -> None:
    folders = {p for kind in ("cheats", "twins") for p in (SUITE / kind).iterdir() if p.is_dir()}
    assert {item.path for item in items()} == folders


def test_every_family_of_legitimate_use_has_a_twin() -> None:
    families = {twin.family for twin in twins()}
    assert {
        "a library call",
        "lazy compilation",
        "weight packing in set-up",
        "nondeterministic but right",
        "in place by contract",
        "threads that join",
        "a CUDA graph",
        "a stream that joins",
        "scratch memory",
        "a cache that knows no content",
    } <= families


@pytest.mark.parametrize("item", items(), ids=lambda item: item.name)
def test_a_file_touches_no_native_memory(item: Item) -> None:
    """No patched tables, debuggers or signal traps: those are entries without a file.

    T12 calls the CUDA runtime, which has no other way from Python; it touches no memory but its own.
    """
    for path in item.path.rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        imported |= {str(node.module).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        allowed = {"ctypes"} if item.name.startswith("T12") else set()
        assert not imported & {"ctypes", "cffi", "signal", "_ctypes"} - allowed


def test_the_files_pass_the_linter() -> None:
    ruff = Path(sys.executable).with_name("ruff")
    done = subprocess.run([ruff, "check", SUITE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("item", [c for c in CHEATS if c.fools_a_naive_judge], ids=lambda item: item.name)
def test_a_cheat_fools_a_naive_judge(item: Item) -> None:
    assert is_fooled(item)


def test_most_cheats_fool_a_naive_judge() -> None:
    on_cpu = [cheat for cheat in CHEATS if cheat.runs_on("cpu")]
    assert sum(cheat.fools_a_naive_judge for cheat in on_cpu) >= 2 * len(on_cpu) / 3


def test_what_is_not_caught_is_named() -> None:
    text = (ROOT / "docs" / "cheats.md").read_text()
    unwritten = [entry for entry in entries() if entry.status is not Status.WRITTEN]
    assert all(f"{entry.id} " in text for entry in unwritten)
