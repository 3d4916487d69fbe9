"""`fastkernels e2e`: a model served whole, its throughput and latencies (tier 2)."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from typer import Option

from fastkernels import env
from fastkernels.bench.e2e.failures import failures
from fastkernels.bench.e2e.http import Endpoint
from fastkernels.bench.e2e.load import Arrivals
from fastkernels.bench.e2e.offline import Watcher
from fastkernels.bench.e2e.routes import route_of
from fastkernels.bench.e2e.run import E2ERun, run_e2e
from fastkernels.bench.e2e.scenario import EXAMPLES, Scenario
from fastkernels.bench.e2e.serving import LoadPlan
from fastkernels.bench.run_folder import RunFolder
from fastkernels.bench.sweep import require_device
from fastkernels.cli.common import console, error_console, print_json, tell_log
from fastkernels.cli.e2e_table import e2e_tables
from fastkernels.errors import EXIT_NOT_PASSED, EXIT_OK, UsageError
from fastkernels.report.publish import publish
from fastkernels.workloads import traffic_names

_WORKLOADS = ", ".join(traffic_names())
_QUICK_REQUESTS = 32
_GOODPUT = ("ttft", "tpot", "e2e")
_SECONDS_BETWEEN_LINES = 10
"""Of a log, within one stage."""


def e2e(
    model: Annotated[str, Option(help="A checkpoint directory, a config.json, or a preset such as tiny-llama.")],
    workload: Annotated[str, Option(help=f"One of {_WORKLOADS}; {EXAMPLES} for a model that makes no tokens.")],
    num_requests: Annotated[int | None, Option(help="Requests; the workload's own number when left out.")] = None,
    scale: Annotated[float, Option(help="Times the workload's lengths: below 1 for a tiny model.")] = 1.0,
    tp: Annotated[int, Option(help="Devices that share the model.")] = 1,
    enable_expert_parallel: Annotated[
        bool,
        Option("--enable-expert-parallel", help="Of --tp: each device holds some experts whole, not slices of all."),
    ] = False,
    candidates: Annotated[
        list[str] | None, Option(help="A set that replaces ops; repeated sets act together, beside the baseline.")
    ] = None,
    server: Annotated[str | None, Option(help="A running OpenAI-compatible server's URL, instead of ours.")] = None,
    served_model_name: Annotated[str | None, Option(help="The model's name there; the first when left out.")] = None,
    request_rate: Annotated[float | None, Option(help="Requests a second over HTTP; inf sends all at once.")] = None,
    burstiness: Annotated[
        float | None,
        Option(help="Of --request-rate's gaps: 1 is a Poisson process, as when left out; less is burstier."),
    ] = None,
    max_concurrency: Annotated[int | None, Option(help="Requests under way at most.")] = None,
    speedup: Annotated[float | None, Option(help="Replay a trace's own arrival times so much faster.")] = None,
    goodput: Annotated[
        list[str] | None, Option(help="A limit in ms that good requests keep, as ttft:500; repeatable.")
    ] = None,
    repeats: Annotated[int | None, Option(help="Passes over the requests; 3 offline and 1 under load.")] = None,
    quick: Annotated[bool, Option("--quick", help=f"One pass over at most {_QUICK_REQUESTS} requests.")] = False,
    device: Annotated[str | None, Option(help="cpu, cuda or fake; the GPU when there is one.")] = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16; the model's own when left out.")] = None,
    engine: Annotated[
        list[str] | None, Option(help="More of the engine's options, as max_num_seqs=1024; repeatable.")
    ] = None,
    seed: Annotated[int, Option(help="Of random weights, token ids and arrivals.")] = 0,
    out: Annotated[Path | None, Option(help="The run folder; a new one under ./runs when left out.")] = None,
    mlflow_uri: Annotated[str | None, Option(help="An MLflow server; a local sqlite file when left out.")] = None,
    no_track: Annotated[bool, Option("--no-track", help="Log nothing to MLflow.")] = False,
    as_json: Annotated[bool, Option("--json", help="results.json on stdout.")] = False,
) -> int:
    """Serve a workload whole: offline throughput, or load over HTTP with --request-rate, --speedup or --server.

    A model that makes no tokens answers its pipeline's examples; over HTTP where OpenAI's API has a route for them:
    embeddings and images. One that sees or hears is asked beside example pictures, videos or recordings.

    Exit code 1 when a replacement was not in force or a request failed.
    """
    words = {key: value for key, value in locals().items() if key not in _NOT_SAID}
    if device is not None:
        require_device(device)
    options = {"tensor_parallel_size": tp, "device": device, "dtype": dtype, **_engine_options(engine or [])}
    if enable_expert_parallel:
        options["enable_expert_parallel"] = True
    scenario = Scenario(
        model, workload, num_requests, scale, seed, {key: value for key, value in options.items() if value is not None}
    )
    if quick:
        few = min(scenario.size, _QUICK_REQUESTS)
        scenario = Scenario(model, workload, few, scale, seed, scenario.options)
    _check_load(scenario, **{name: words[name] for name in _OF_LOAD})
    arrivals = _arrivals(scenario, server, request_rate, burstiness, speedup)
    if arrivals is None and (max_concurrency is not None or goodput):
        raise UsageError("--max-concurrency and --goodput are of load over HTTP; give --request-rate or --server.")
    if server is not None and candidates:
        raise UsageError("--candidates replace ops of our own server; start one with them, or leave --server out.")
    plan = (
        None
        if arrivals is None
        else LoadPlan(
            None if server is None else Endpoint(server, env.api_key()),
            served_model_name,
            arrivals,
            _at_least_one("--max-concurrency", max_concurrency),
            _limits(goodput or []),
        )
    )
    count = _at_least_one("--repeats", repeats) or (1 if quick or plan else 3)
    run = E2ERun(scenario, tuple(candidates or ()), count, plan=plan, request=words)
    folder = run.start(out)
    return _run(run, folder, mlflow_uri, is_tracked=not no_track, as_json=as_json)


_OF_LOAD = ("server", "served_model_name", "request_rate", "speedup", "max_concurrency", "goodput")
_NOT_SAID = ("out", "mlflow_uri", "no_track", "as_json")


def _run(run: E2ERun, folder: RunFolder, mlflow_uri: str | None, *, is_tracked: bool, as_json: bool) -> int:
    try:
        results = run_with_bar(run, folder)
    finally:  # an interrupted run has a report of what it finished
        report = publish(folder.path, mlflow_uri=mlflow_uri, is_tracked=is_tracked)
    if as_json:
        print_json(results)
    else:
        for table in e2e_tables(results):
            console.print(table)
        console.print(f"report: {report}\nrun:    {folder.path}", soft_wrap=True)
    found = failures(results)
    for sentence in found:
        error_console.print(f"[bold red]not passed:[/] {escape(sentence)}", soft_wrap=True)
    return EXIT_NOT_PASSED if found else EXIT_OK


def run_with_bar(run: E2ERun, folder: RunFolder) -> dict[str, Any]:
    """Under a progress bar: the side, the repeat, tokens offline and requests under load."""
    unit = "tokens" if run.plan is None and run.scenario.makes_tokens else "requests"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn(unit))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=error_console, transient=True) as bar:
        task = bar.add_task("starting", total=None)
        current, told_at = "", 0.0

        def stage(text: str) -> None:
            nonlocal current, told_at
            if text != current:
                current, told_at = text, time.monotonic()
                tell_log(text)
                bar.update(task, description=text, completed=0, total=None)

        def progress(done: int, total: int) -> None:
            nonlocal told_at
            bar.update(task, completed=done, total=total)
            if time.monotonic() - told_at >= _SECONDS_BETWEEN_LINES:
                told_at = time.monotonic()
                tell_log(f"{current}: {done:,} of {total:,} {unit}")

        return run_e2e(run, folder, Watcher(stage=stage, progress=progress))


def _arrivals(
    scenario: Scenario, server: str | None, request_rate: float | None, burstiness: float | None, speedup: float | None
) -> Arrivals | None:
    """None: offline. Errors: UsageError."""
    if burstiness is not None and request_rate is None:
        raise UsageError(f"--burstiness {burstiness:g} is of the gaps that --request-rate draws; give that as well.")
    has_times = scenario.makes_tokens and scenario.traffic.has_arrivals
    if speedup is not None and not has_times:
        raise UsageError(f"--speedup replays arrival times; {scenario.workload} has none. Give --request-rate.")
    if speedup is not None and request_rate is not None:
        raise UsageError("--speedup replays a trace's arrival times and --request-rate draws others: give one.")
    if request_rate is not None:
        return Arrivals(request_rate, 1.0 if burstiness is None else burstiness, seed=scenario.seed)
    if speedup is None and server is None:
        return None
    if not has_times:
        return Arrivals(math.inf)
    return Arrivals(None, speedup=1.0 if speedup is None else speedup)


def _check_load(scenario: Scenario, **given: Any) -> None:
    """Errors: UsageError names what is of load, or of answers in pieces, where the model has no such thing."""
    said = [f"--{name.replace('_', '-')}" for name, value in given.items() if value]
    if not said:
        return
    route = route_of(scenario.architecture)
    if route is None:
        raise UsageError(
            f"OpenAI's API has no route for answers of {scenario.model}, and load over HTTP is measured of tokens, "
            f"embeddings and images; leave {' and '.join(said)} out."
        )
    for text in given["goodput"] or ():
        if not route.is_streamed and not text.startswith("e2e"):
            raise UsageError(
                f"--goodput {text} is of answers that come in pieces; those of {scenario.model} come whole: give e2e "
                "alone."
            )


def _engine_options(given: list[str]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not sign:
            raise UsageError(f"--engine {text} is not NAME=VALUE, as max_num_seqs=1024.")
        try:
            options[name.replace("-", "_")] = json.loads(value)
        except ValueError:
            options[name.replace("-", "_")] = value
    return options


def _limits(given: list[str]) -> dict[str, float]:
    limits: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition(":")
        name = "e2e" if name == "e2el" else name
        try:
            limits[name] = float(value)
        except ValueError:
            limits[name] = math.nan
        if name not in _GOODPUT or not limits[name] > 0:
            raise UsageError(f"--goodput {text} is not one of {', '.join(_GOODPUT)} with milliseconds, as ttft:500.")
    return limits


def _at_least_one(name: str, value: int | None) -> int | None:
    if value is not None and value < 1:
        raise UsageError(f"{name} is {value}; the least is 1.")
    return value
