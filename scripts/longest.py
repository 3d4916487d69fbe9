"""Prints the ten longest files and the ten longest functions of the package."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "fastkernels"
NUM_SHOWN = 10


def function_lengths(path: Path) -> list[tuple[int, str]]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    place = path.relative_to(PACKAGE.parent)
    return [((f.end_lineno or f.lineno) - f.lineno + 1, f"{place}:{f.lineno} {f.name}") for f in functions]


def show(title: str, lengths: list[tuple[int, str]]) -> None:
    print(f"{title} (lines)")
    for length, name in sorted(lengths, reverse=True)[:NUM_SHOWN]:
        print(f"{length:6}  {name}")


def main() -> None:
    paths = sorted(PACKAGE.rglob("*.py"))
    files = [(len(p.read_text(encoding="utf-8").splitlines()), str(p.relative_to(PACKAGE.parent))) for p in paths]
    show("Longest files", files)
    show("Longest functions", [found for p in paths for found in function_lengths(p)])


if __name__ == "__main__":
    main()
