"""A run on disk: what was asked, each judgement as soon as it is made, and the whole at the end.

run.json             what was asked for, on what machine
ops/<set>--<op>.json one judgement each, written whole or not at all
items/<item>--<set>.json  of an eval run: one item each, likewise
results.json         everything, every sample
"""

from __future__ import annotations

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastkernels import env
from fastkernels.errors import RunFolderError, UsageError
from fastkernels.harness.records import SCHEMA_VERSION, OpRecord

RESUMABLE = ("kernels", "eval")
"""Kinds of run whose command has --resume."""


class RunFolder:
    """Errors: RunFolderError when a file is missing, cut off or of another version."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(
        cls,
        kind: str,
        request: dict[str, Any],
        environment: dict[str, Any],
        out: Path | None = None,
        **extra: Any,
    ) -> RunFolder:
        """extra: more top-level entries of run.json. Errors: UsageError when `out` is a file or holds a run."""
        if out is not None and (out / "run.json").exists():
            is_alike = kind in RESUMABLE and cls(out).header().get("kind") == kind
            go_on = f"go on with it by --resume {out}, or " if is_alike else ""
            raise UsageError(f"{out} holds a run already; {go_on}name another folder.")
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        try:
            path = out or _made(env.home() / f"{stamp}-{kind}")
            (path / "ops").mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            place = out or env.home()
            raise UsageError(f"{place} cannot be a run folder: a part of the path is a file. Name a folder.") from None
        folder = cls(path)
        header = {
            "schema_version": SCHEMA_VERSION,
            "kind": kind,
            "run_id": path.name,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "request": request,
            "environment": environment,
            **extra,
        }
        folder._write(path / "run.json", header)
        return folder

    def amend(self, **extra: Any) -> None:
        """Other top-level entries of run.json, of a run that is gone on with in other words."""
        self._write(self.path / "run.json", {**self.header(), **extra})

    def header(self) -> dict[str, Any]:
        header = self._read(self.path / "run.json")
        if header.get("schema_version") != SCHEMA_VERSION:
            raise RunFolderError(
                f"{self.path} has schema version {header.get('schema_version')}; this program reads {SCHEMA_VERSION}."
            )
        return header

    def add(self, record: OpRecord) -> None:
        self.keep(record.to_json())

    def keep(self, record: dict[str, Any]) -> None:
        """A judgement as JSON, in the place of an earlier one of its op and set."""
        self._write(self.path / "ops" / f"{record['implementation']}--{record['op']}.json", record)

    def records(self) -> list[dict[str, Any]]:
        """The judgements made so far, lowest level first."""
        records = [self._read(path) for path in sorted((self.path / "ops").glob("*.json"))]
        return sorted(records, key=lambda r: (r["level"], r["op"], r["implementation"]))

    def add_item(self, record: dict[str, Any]) -> None:
        """An item of an eval run (bench/eval/records.py)."""
        (self.path / "items").mkdir(exist_ok=True)
        self._write(self.path / "items" / f"{record['item']}--{record['implementation']}.json", record)

    def items(self) -> list[dict[str, Any]]:
        """Those measured so far, by name."""
        return [self._read(path) for path in sorted((self.path / "items").glob("*.json"))]

    def finish(self, **extra: Any) -> dict[str, Any]:
        """Write results.json; extra: more top-level entries ("status", "seconds", ...)."""
        results = {**self.header(), **extra, "ops": self.records()}
        self._write(self.path / "results.json", results)
        return results

    def results(self) -> dict[str, Any]:
        """results.json, or what there is of an unfinished run."""
        if (self.path / "results.json").exists():
            results = self._read(self.path / "results.json")
            if results.get("schema_version") != SCHEMA_VERSION:
                found = results.get("schema_version")
                raise RunFolderError(f"{self.path} has schema version {found}; this program reads {SCHEMA_VERSION}.")
            return results
        unfinished = {**self.header(), "status": "unfinished", "ops": self.records()}
        if unfinished["kind"] == "eval":
            unfinished["items"] = self.items()
        return unfinished

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            data = json.loads(path.read_text())
        except FileNotFoundError:
            raise RunFolderError(f"{self.path} is not a run folder: {path.name} is missing.") from None
        except NotADirectoryError:
            raise RunFolderError(f"{self.path} is a file; a run is a folder with {path.name}.") from None
        except IsADirectoryError:
            raise RunFolderError(f"{path} is a folder; in a run it is a file.") from None
        except ValueError as error:
            raise RunFolderError(f"{path} is cut off or altered: {error}.") from None
        if not isinstance(data, dict):
            raise RunFolderError(f"{path} does not hold a JSON object.")
        return data

    def _write(self, path: Path, data: dict[str, Any]) -> None:
        """Under a temporary name first: a full disk or a signal leaves the old file or none."""
        temporary = path.with_name(f".{path.name}.partial")
        try:
            with temporary.open("w") as file:
                json.dump(data, file, allow_nan=True)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _made(path: Path) -> Path:
    """A new folder of this name or, where another command has just made that, with a number after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{path.name}-{number}")
        with contextlib.suppress(FileExistsError):
            candidate.mkdir()
            return candidate
    raise RunFolderError(f"{path} and 999 names after it are taken.")
