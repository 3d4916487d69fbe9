"""The command line. Only the module of the command that is called is imported."""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from fastkernels.cli.common import reports_errors


@dataclass(frozen=True)
class Command:
    """One command: "module:function" and what `fastkernels --help` says of it."""

    name: str
    function: str
    help: str
    is_hidden: bool = False

    @property
    def module(self) -> str:
        return f"fastkernels.cli.{self.function.partition(':')[0]}"

    def load(self) -> Callable[..., Any]:
        function = getattr(importlib.import_module(self.module), self.function.partition(":")[2])
        return reports_errors(function)


COMMANDS = (
    Command("demo", "demo:demo", "The whole job on a tiny model: serve, capture, judge three kernels, report."),
    Command("list", "list:list_ops", "What there is: ops by level, a model's tree, what an op's replacement changes."),
    Command("stubs", "stubs:stubs", "Write candidate files to fill in."),
    Command("capture", "capture:capture", "Run a model on a workload and keep its ops' calls as cases."),
    Command("kernels", "kernels:kernels", "Judge candidate kernels: correctness, then speed (tier 1)."),
    Command("bench", "kernels:kernels", "The same as kernels.", is_hidden=True),
    Command("e2e", "e2e:e2e", "Serve a workload whole: throughput, latencies under load, tokens (tier 2)."),
    Command("generate", "generate:generate", "Run a model on your inputs: text, pictures, speech, scores, scenes."),
    Command("report", "report:report", "Show a run, or compare two."),
    Command("serve", "serve:serve", "Serve a model over HTTP."),
    Command("eval", "eval:evaluate", "Judge candidates inside whole models, over a set of scenarios (tier 3)."),
    Command("leaderboard", "leaderboard:leaderboard", "Add a run to a leaderboard, or build its site."),
    Command("lineage", "lineage:lineage", "Which kernel came from which, and how fast each was."),
    Command("calibrate", "calibrate:calibrate", "Measure what is noise and what is unusable in a family's answers."),
    Command("study", "study:study", "Studies of what inputs do to data-dependent ops."),
    Command("version", "version:version", "The versions of FastKernels and of what it runs on."),
)

EXIT_CODES = "\n\n".join(
    (
        "Exit codes:",
        "0 done, and all passed",
        "1 something did not pass",
        "2 wrong usage, or an unknown name",
        "3 a file is not what it should be",
        "4 an op or a request cannot do this",
        "5 the machine lacks something: a GPU, disk, a tool",
        "6 FastKernels itself failed on an op",
        "130 interrupted",
    )
)


def _not_loaded() -> None:
    """Stands for a command that is not called."""


def build_app(called: str | None) -> typer.Typer:
    """All commands by name and help; `called` with its module."""
    app = typer.Typer(
        name="fastkernels",
        help="A GPU-kernel benchmark that is an inference framework.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    for command in COMMANDS:
        if importlib.util.find_spec(command.module) is not None:
            function = command.load() if command.name == called else _not_loaded
            app.command(command.name, help=command.help, hidden=command.is_hidden)(function)
    app.callback()(_not_loaded)
    return app


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code. SIGTERM (`timeout`, a scheduler) keeps what Ctrl-C keeps."""
    given = [*(sys.argv[1:] if arguments is None else arguments)]  # not list(): that may be the module of `list`
    called = next((a for a in given if not a.startswith("-")), None)
    if called != "serve":  # which drains
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    reports_errors(build_app)(called)(given, prog_name="fastkernels")
