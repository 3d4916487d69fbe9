"""`fastkernels lineage`: which source of an op came from which, as a tree and as a page."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from rich.markup import escape
from rich.tree import Tree
from typer import Argument, Option

from fastkernels.cli.common import console, print_json
from fastkernels.errors import EnvironmentProblem
from fastkernels.report.publish import INSTALL_TRACKING, is_mlflow_installed, write_page

if TYPE_CHECKING:
    from fastkernels.report.lineage import Judged, Kernel, Lineage


def lineage(
    op: Annotated[str, Argument(help="An op, its class or its file, as rms_norm.")],
    mlflow_uri: Annotated[str | None, Option(help="An MLflow server; the local sqlite file when left out.")] = None,
    out: Annotated[Path | None, Option(help="Where the page goes; lineage-OP.html here when left out.")] = None,
    as_json: Annotated[bool, Option("--json", help="Every source and judgement on stdout.")] = False,
) -> None:
    """Show which source of an op came from which, and how fast each was, from what MLflow was told; write a page."""
    if not is_mlflow_installed():
        raise EnvironmentProblem(f"MLflow is not installed, and lineage is read from it. {INSTALL_TRACKING}.")
    from fastkernels.report.lineage import find_lineage
    from fastkernels.report.lineage_page import render_lineage

    found = find_lineage(op, mlflow_uri)
    path = out or Path(f"lineage-{found.op}.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_page(path, render_lineage(found))
    if as_json:
        print_json(lineage_json(found))
        return
    if len(found.hardware) > 1:
        console.print(
            f"[yellow]warning:[/] judged on {', '.join(map(escape, found.hardware))}: speedups do not compare."
        )
    console.print(lineage_tree(found))
    console.print(f"page: {path}", soft_wrap=True, markup=False)


def lineage_tree(found: Lineage) -> Tree:
    """One branch a source with its judgements; what came from it follows, numbered, and deeper where it forks."""
    from fastkernels.report.lineage import in_tree_order

    numbers = {id(kernel): number for number, kernel in enumerate(found.kernels, 1)}
    parents = {id(child): kernel for kernel in found.kernels for child in kernel.children}
    levels = [Tree(f"[bold]{escape(found.op)}[/]", guide_style="dim")]
    for kernel, depth in in_tree_order(found.roots):
        branch = levels[depth].add(_title(kernel, numbers, parents.get(id(kernel))))
        for judged in kernel.judged:
            branch.add(_line(judged))
        levels[depth + 1 :] = [branch]
    return levels[0]


def _title(kernel: Kernel, numbers: dict[int, int], parent: Kernel | None) -> str:
    origin = ""
    if parent is not None:
        origin = f" [dim]from {numbers[id(parent)]}[/]"
    elif kernel.parent:
        origin = f" [dim]from {kernel.parent[:12]}, not judged here[/]"
    return f"[bold]{numbers[id(kernel)]}. {kernel.sha256[:12]}[/] ({escape(kernel.implementation)}){origin}"


def _line(judged: Judged) -> str:
    when = judged.when.strftime("%Y-%m-%d %H:%M")
    colour = "green" if judged.verdict == "PASSED" else "red"
    if judged.speedup is None:
        return f"[dim]{when}[/] [{colour}]{judged.verdict}[/]"
    v = judged.speedup.to_json()
    cases = f"{judged.num_cases} case{'' if judged.num_cases == 1 else 's'}"
    return (
        f"[dim]{when}[/] [{colour}]{judged.verdict}[/] {v['speedup']:.3f}x "
        f"\\[{v['low']:.3f}, {v['high']:.3f}], {cases} [dim]{escape(judged.hardware)}[/]"
    )


def lineage_json(found: Lineage) -> dict[str, Any]:
    return {
        "op": found.op,
        "store": found.store,
        "kernels": [
            {
                "sha256": kernel.sha256,
                "set": kernel.implementation,
                "parent_sha256": kernel.parent,
                "children": [child.sha256 for child in kernel.children],
                "judged": [
                    {**asdict(j), "when": j.when.isoformat(), "speedup": j.speedup and j.speedup.to_json()}
                    for j in kernel.judged
                ],
            }
            for kernel in found.kernels
        ],
    }
