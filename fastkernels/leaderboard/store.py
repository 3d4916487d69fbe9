"""A board: a folder of entries, one JSON file each, and what may join them."""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fastkernels
from fastkernels import env
from fastkernels.errors import InputFileError, RunFolderError, UsageError
from fastkernels.leaderboard.entry import ENTRY_SCHEMA_VERSION, entry_of
from fastkernels.leaderboard.entry_shape import entry_fault
from fastkernels.leaderboard.submission import Submission
from fastkernels.report.compare import hardware
from fastkernels.report.damage import blaming
from fastkernels.report.publish import write_page

Json = dict[str, Any]

_SHIPPED = Path(fastkernels.__file__).parents[1] / "benchmarks" / "results" / "leaderboard"
_LONGEST_SLUG = 60
"""Bytes: an entry's file is named by four, and a name has 255 at most."""
OTHER_HARDWARE, QUICK = "other hardware", "quick"


def default_board() -> Path:
    """The one that is shipped, where this is a checkout; else FASTKERNELS_HOME/leaderboard."""
    return _SHIPPED if _SHIPPED.is_dir() else env.home() / "leaderboard"


@dataclass(frozen=True)
class Board:
    """Entries of one agent differ in kind, scenario set or hardware: there is one file of each."""

    path: Path

    def files(self) -> dict[Path, Json]:
        """Errors: InputFileError names the file that is not an entry of this version."""
        return {path: read_entry(path) for path in sorted(self.path.glob("*.json"))}

    def entries(self) -> list[Json]:
        """All, by agent. Errors: as files."""
        return sorted(self.files().values(), key=_identity)

    def add(self, given: Submission, *, is_forced: bool = False) -> Path:
        """Write the run's entry; returns its file.

        Errors: UsageError when the agent has such an entry, the run is of other hardware than the board's or a first
        look with --quick (each unless forced); InputFileError when its manifest or its scenarios are not the board's;
        RunFolderError when it is damaged: what no later command could read is not written.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with _alone(self.path):
            return self._add(given, is_forced=is_forced)

    def _add(self, given: Submission, *, is_forced: bool) -> Path:
        files = self.files()
        group = (given.kind, given.scenario_set)
        wanted = (given.agent.casefold(), *group, hardware(given.results))
        known = next((path for path, entry in files.items() if _identity(entry) == wanted), None)
        others = [entry for path, entry in files.items() if path != known]
        alike = [e for e in others if (e["kind"], e["scenario_set"]) == group]
        _check_manifest(self.path, given, others)
        marks = [
            *([OTHER_HARDWARE] if _is_other_hardware(given, alike) else []),
            *([QUICK] if given.results["request"].get("quick") else []),
        ]
        if not is_forced:
            _refuse(self.path, given, alike, marks, known)
        _check_scenarios(self.path, given, alike)
        with blaming(given.run):
            entry = json.loads(json.dumps(entry_of(given, marks)))  # as it will be read
        if found := entry_fault(entry):
            raise RunFolderError(f"{given.run}: {found}; no entry can be made of it, and the results are damaged.")
        with blaming(given.run):
            text = json.dumps(entry, separators=(",", ":"), allow_nan=False) + "\n"
        path = known or free_name(self.path, [slug(part) for part in (given.kind, given.agent, *wanted[2:]) if part])
        write_page(path, text)
        return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """While no other command adds to the board: each sees what those before it wrote."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _identity(entry: Json) -> tuple[str, str, str, str]:
    return entry["agent"].casefold(), entry["kind"], entry["scenario_set"], entry["hardware"]


def _is_other_hardware(given: Submission, alike: list[Json]) -> bool:
    """Than that of the entries that came in without force."""
    known = {e["hardware"] for e in alike if OTHER_HARDWARE not in e["marks"]}
    return bool(known) and hardware(given.results) not in known


def _refuse(board: Path, given: Submission, alike: list[Json], marks: list[str], known: Path | None) -> None:
    if known is not None:
        raise UsageError(
            f"{board} has an entry of {given.agent} from a run of {given.kind} already: {known.name}. Choose another "
            "--agent, or --force replaces it."
        )
    if OTHER_HARDWARE in marks:
        others = sorted({e["hardware"] for e in alike})
        raise UsageError(
            f"{given.run} ran on {hardware(given.results)}, the board's runs of {given.kind} on {', '.join(others)}: "
            "their times do not compare. Use another --board, or --force marks the entry and ranks it apart."
        )
    if QUICK in marks:
        raise UsageError(
            f"{given.run} was made with --quick, a first look with wide intervals. Run it whole, or --force marks it."
        )


def _check_manifest(board: Path, given: Submission, entries: list[Json]) -> None:
    mine = given.results.get("manifest")
    if given.kind != "eval" or not isinstance(mine, dict):
        return
    for entry in entries:
        theirs = entry.get("manifest")
        if not theirs:
            continue
        if theirs["version"] != mine.get("version"):
            raise InputFileError(
                f"{given.run} was judged by manifest {mine.get('version')}, the entries of {board} by "
                f"{theirs['version']}: correctness does not compare. Evaluate again, or use another --board."
            )
        if theirs["sha256"] != mine.get("sha256"):
            raise InputFileError(
                f"{given.run} was judged by a manifest {mine['version']} of SHA-256 {str(mine.get('sha256'))[:12]}, "
                f"the entries of {board} by {theirs['sha256'][:12]}: one of them was altered. Evaluate again."
            )


def _check_scenarios(board: Path, given: Submission, alike: list[Json]) -> None:
    """One name stands for the same scenarios in all entries, or their means do not compare."""
    for entry in alike if given.kind == "eval" else []:
        other = given.scenarios ^ {item["item"] for item in entry["items"]}
        if other:
            raise InputFileError(
                f"{given.run} and {entry['agent']}'s entry of {board} are both of {given.scenario_set!r}, and differ "
                f"in {len(other)} scenarios ({', '.join(sorted(other)[:3])}): they do not compare. Use another --board."
            )
        theirs, mine = entry.get("scenarios_sha256"), given.scenarios_sha256
        if not theirs:
            raise InputFileError(
                f"{entry['agent']}'s entry of {board} does not say what its scenarios {given.scenario_set!r} were: "
                f"whether {given.run} compares cannot be told. Add that entry's run again, or use another --board."
            )
        if theirs != mine:
            raise InputFileError(
                f"{given.run} and {entry['agent']}'s entry of {board} are both of {given.scenario_set!r}, with other "
                f"workloads or restarts (SHA-256 {mine[:12]} and {theirs[:12]}): they do not compare. Evaluate the "
                "same scenarios, give those of your own another name, or use another --board."
            )


def free_name(folder: Path, parts: list[str]) -> Path:
    """The parts as a name that no file has."""
    stem, number = "--".join(parts), 1
    while (path := folder / f"{stem}{f'-{number}' if number > 1 else ''}.json").exists():
        number += 1
    return path


def slug(text: str) -> str:
    """Lower case letters, digits, dots and single dashes, not too many: fit for a file and a link."""
    return re.sub(r"[^a-z0-9._]+", "-", text.lower())[:_LONGEST_SLUG].strip("-.") or "entry"


def read_entry(path: Path) -> Json:
    """Errors: InputFileError."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError) as error:
        raise InputFileError(f"{path} is cut off or altered: {error}.") from None
    if not isinstance(entry, dict):
        raise InputFileError(f"{path} does not hold a JSON object; remove it from the board.")
    version = entry.get("leaderboard_schema_version")
    if version != ENTRY_SCHEMA_VERSION:
        raise InputFileError(f"{path} has schema version {version}; this program reads {ENTRY_SCHEMA_VERSION}.")
    if found := entry_fault(entry):
        raise InputFileError(f"{path}: {found}; the entry is damaged. Add the run again, or remove the file.")
    return entry
