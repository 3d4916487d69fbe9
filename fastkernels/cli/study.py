"""`fastkernels study`: what inputs do to ops whose work depends on them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table
from typer import Argument, Option

from fastkernels import env
from fastkernels.cli.common import console, error_console, print_json
from fastkernels.errors import UnknownNameError
from fastkernels.report.publish import check_page, write_page
from fastkernels.studies.page import render_study
from fastkernels.studies.routing import INPUTS, StudyConfig, routing_study, save, sentence

_STUDIES = ("routing",)


def study(
    name: Annotated[str, Argument(help=f"One of {', '.join(_STUDIES)}.")],
    model: Annotated[str, Option(help="A model with a mixture of experts: a checkpoint directory or a name.")] = (
        StudyConfig.model
    ),
    num_prompts: Annotated[int, Option(help="Pieces of held-out text.")] = StudyConfig.num_prompts,
    prompt_bytes: Annotated[int, Option(help="Bytes of each.")] = StudyConfig.prompt_bytes,
    out: Annotated[
        Path | None, Option(help="A folder, or a .json file; a new folder under the runs' home when left out.")
    ] = None,
    dtype: Annotated[str | None, Option(help="float32, bfloat16 or float16; the model's own when left out.")] = None,
    device: Annotated[str | None, Option(help="cpu or cuda; the GPU when there is one.")] = None,
    seed: Annotated[int, Option(help="Of random tokens and tensors.")] = StudyConfig.seed,
    as_json: Annotated[bool, Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Hold captured inputs against synthetic ones: where a mixture of experts sends them."""
    if name not in _STUDIES:
        raise UnknownNameError("study", name, _STUDIES)
    config = StudyConfig(model, num_prompts, prompt_bytes, seed, dtype, device)
    path, is_folder = _path(out), out is None or out.suffix != ".json"
    for place in (path, path.with_name("report.html")) if is_folder else (path,):
        check_page(place)  # before the minutes that a large model takes
    with error_console.status(f"{model}: starting") as status:
        found = routing_study(config, lambda stage: status.update(f"{model}: {stage}"))
    save(found, path)
    if is_folder:
        write_page(path.with_name("report.html"), render_study(found))
    if as_json:
        print_json(found)
    else:
        _show(found)
        console.print(f"results: {path.parent if is_folder else path}", soft_wrap=True)


def _show(found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("input")
    for column in ("Gini", "published", "hot in common", "moved"):
        table.add_column(column, justify="right")
    for name in INPUTS:
        one = found["inputs"][name]
        shared = f"{one['hot_in_common']} of {found['num_hot']}"
        gini, published = f"{one['gini']:.3f}", f"{found['published']['gini'][name]:.3f}"
        table.add_row(name, gini, published, shared, f"{one['moved_share']:.1%}")
    console.print(table)
    console.print(sentence(found))


def _path(out: Path | None) -> Path:
    if out is None:
        return env.home() / f"{datetime.now(UTC).strftime('%Y%m%d-%H%M%S')}-study-routing" / "routing_study.json"
    return out if out.suffix == ".json" else out / "routing_study.json"
