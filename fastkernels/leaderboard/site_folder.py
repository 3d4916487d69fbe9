"""A site's files in their folder: a build takes away what builds before it wrote there, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

from fastkernels.errors import UsageError
from fastkernels.report.publish import write_page

MARKER = ".fastkernels-site"
"""It lists what builds wrote into its folder, one place a line."""


def earlier_files(out: Path) -> set[str]:
    """What builds wrote into `out`. Errors: UsageError when it is a file, or holds files and no site."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; --out is a folder for the site.")
    marker = out / MARKER
    if not marker.exists():
        if out.is_dir() and any(out.iterdir()):
            raise UsageError(f"{out} holds files that are no site of ours; choose an empty or a new folder for --out.")
        return set()
    names = marker.read_text(encoding="utf-8").splitlines()
    return {name for name in names if name and _is_within(PurePosixPath(name))}


def _is_within(place: PurePosixPath) -> bool:
    return not place.is_absolute() and ".." not in place.parts


def replace_files(out: Path, files: Mapping[str, str], earlier: Collection[str]) -> None:
    """Put `files`, texts by place, where `earlier` ones were; everything else in `out` stays.

    Errors: UsageError names what stands in the place of a new file and is none of `earlier`.
    """
    for name in files:
        if (out / name).exists() and (name not in earlier or not (out / name).is_file()):
            raise UsageError(
                f"{out / name} is no file that a build wrote, and would be lost: move it, or name another --out."
            )
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{MARKER}-", dir=out) as folder:
        partial = Path(folder)
        for name, text in files.items():
            _with_parents(partial / name).write_text(text, encoding="utf-8")
        _mark(out, {*earlier, *files})  # a build that is ended from here on leaves only files that are listed
        for name in files:
            (partial / name).replace(_with_parents(out / name))
    _remove(out, set(earlier) - files.keys())
    _mark(out, files)


def _with_parents(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _mark(out: Path, names: Collection[str]) -> None:
    write_page(out / MARKER, "".join(f"{name}\n" for name in sorted(names)))


def _remove(out: Path, names: Collection[str]) -> None:
    """With the folders that are empty then."""
    for name in names:
        (out / name).unlink(missing_ok=True)
    for folder in {out / place for name in names for place in PurePosixPath(name).parents[:-1]}:
        with contextlib.suppress(OSError):  # it holds something else
            folder.rmdir()
