"""`fastkernels leaderboard`: a run becomes an entry of a board; a board becomes a site."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from fastkernels.cli.common import console
from fastkernels.errors import UsageError
from fastkernels.leaderboard.store import Board, default_board
from fastkernels.leaderboard.submission import submission
from fastkernels.report.html import byte_count
from fastkernels.report.load import find_run


class Action(StrEnum):
    ADD = "add"
    BUILD = "build"


def leaderboard(
    action: Annotated[Action, Argument(help="add RUN to a board, or build a board's site.")],
    run: Annotated[
        Path | None, Argument(help="add: a run folder of kernels or eval, or its name under ./runs.")
    ] = None,
    agent: Annotated[str | None, Option(help="add: whose kernels these are.")] = None,
    implementation: Annotated[str | None, Option("--set", help="add: which set, when the run has several.")] = None,
    board: Annotated[Path | None, Option(help="The folder of entries; the shipped one, or ./runs/leaderboard.")] = None,
    out: Annotated[Path | None, Option(help="build: the folder for the site.")] = None,
    force: Annotated[
        bool, Option("--force", help="add: replace the agent's entry; take other hardware or --quick, and mark it.")
    ] = False,
) -> None:
    """Add a finished run to a leaderboard, or build the leaderboard's static site.

    Entries compare when they are of one kind, scenario set, hardware and manifest, and were judged on the same.
    """
    entries = Board(board or default_board())
    if action is Action.ADD:
        if run is None or agent is None or out is not None:
            raise UsageError("Say what to add: fastkernels leaderboard add RUN --agent NAME [--board DIR].")
        path = entries.add(submission(find_run(run), agent, implementation), is_forced=force)
        console.print(f"entry: {path}", soft_wrap=True, markup=False)
        return
    if out is None or run is not None or agent is not None or implementation is not None or force:
        raise UsageError("Say where the site goes, and nothing else: leaderboard build --out DIR [--board DIR].")
    _build(entries, out)


def _build(board: Board, out: Path) -> None:
    from fastkernels.leaderboard.build import build_board

    if not board.path.is_dir():
        raise UsageError(f"There is no board {board.path}; `fastkernels leaderboard add RUN --agent NAME` starts one.")
    built = build_board(board, out)
    entries = board.entries()
    agents = len({entry["agent"].casefold() for entry in entries})
    console.print(
        f"{len(entries)} {'entry' if len(entries) == 1 else 'entries'} of {agents} agent{'' if agents == 1 else 's'}: "
        f"{built.num_pages} pages, {byte_count(built.num_bytes)} beside plotly.js"
    )
    console.print(f"site: {built.path / 'index.html'}", soft_wrap=True, markup=False)
