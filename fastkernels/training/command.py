"""The command lines of examples/train_tiny.py and examples/train_digits.py."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from typer import Option

from fastkernels import env
from fastkernels.cli.common import console, error_console
from fastkernels.engine.model import find_device
from fastkernels.engine.pipeline import Pipeline
from fastkernels.training.corpus import held_out_sources, text_facts, train_sources
from fastkernels.training.digits import BATCH_SIZE, MODEL_CLASS, NAME, PLAN, DigitsTask, digits, write_processor
from fastkernels.training.language import (
    RECIPES,
    LanguageTask,
    TextWindows,
    find_recipe,
    held_out_figures,
)
from fastkernels.training.loop import Plan, Progress, Task, train
from fastkernels.training.quality import digits_accuracy
from fastkernels.training.release import amend, curve, release

HELD_OUT_SEQUENCES = 128
"""Windows of held-out text that the record's figures are of."""

_Model = Annotated[str, Option(help=f"One of {', '.join(RECIPES)}.")]
_Out = Annotated[Path | None, Option(help="The folder that takes the checkpoint, and the state to go on from.")]
_Steps = Annotated[int | None, Option(help="Steps; those of the shipped checkpoint when left out.")]
_Minutes = Annotated[float | None, Option(help="Stop after so many minutes; the learning rate ends with them.")]
_Device = Annotated[str | None, Option(help="cpu or cuda; the GPU when there is one.")]
_Seed = Annotated[int, Option(help="Of the first weights and of the order of the data.")]


def train_language(
    model: _Model = "trained-llama",
    out: _Out = None,
    steps: _Steps = None,
    minutes: _Minutes = None,
    device: _Device = None,
    seed: _Seed = 0,
) -> None:
    """Train a tiny language model on the text of Python's standard library; called again, it goes on."""
    recipe = find_recipe(model)
    plan = _changed(recipe.plan, steps, minutes)
    folder, on = out or env.home() / model, find_device(device)
    held_out, sources = held_out_sources(), train_sources()
    task = LanguageTask(recipe, TextWindows(sources), seed, on)
    done = train_with_bar(task, plan, folder, model)
    task.model.to(torch.bfloat16).float()  # what is measured is what is released
    figures = held_out_figures(task, held_out, HELD_OUT_SEQUENCES)
    for name in recipe.trained_only:
        delattr(task.model.config, name)
    record = {
        **_record(model, recipe.model_class, plan, seed, on, done),
        "batch_size": recipe.batch_size,
        "sequence_len": recipe.sequence_len,
        "text": {"train": text_facts(sources), "held_out": text_facts(held_out)},
        "held_out": figures,
        "curve": curve(done),
    }
    release(task.model, folder, torch.bfloat16, record)
    said = "{bits_per_byte:.3f} bits per byte of held-out text; {unigram_bits_per_byte:.3f} by token frequencies alone"
    console.print(f"{folder}: {said.format(**record['held_out'])}", soft_wrap=True)


def train_with_bar(task: Task, plan: Plan, folder: Path, name: str) -> Progress:
    """Train, and show how far it is on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=error_console) as bar:
        row = bar.add_task(name, total=1.0)

        def report(done: Progress, share: float) -> None:
            some = done.losses[-50:]
            bar.update(row, completed=share, description=f"{name} step {done.step} loss {sum(some) / len(some):.3f}")

        return train(task, plan, folder, report)


def _changed(plan: Plan, steps: int | None, minutes: float | None) -> Plan:
    """With minutes alone the steps are as many as they allow."""
    most = 10**9 if minutes is not None else plan.steps
    return replace(plan, steps=most if steps is None else steps, minutes=minutes)


def _record(name: str, model_class: str, plan: Plan, seed: int, device: torch.device, done: Progress) -> dict[str, Any]:
    return {
        "name": name,
        "model_class": model_class,
        "command": command_line(),
        "seed": seed,
        "device": str(device),
        "plan": asdict(plan),
        "num_steps": done.step,
        "seconds": round(done.seconds, 1),
    }


def command_line() -> str:
    """As it was called, without the folder's place on this machine."""
    program, *given = sys.argv
    behind = zip(["", *given], given, strict=False)
    words = [word for before, word in behind if before != "--out" and word.partition("=")[0] != "--out"]
    return " ".join(["python", f"examples/{Path(program).name}", *words])


def train_digits(
    out: _Out = None,
    steps: _Steps = None,
    minutes: _Minutes = None,
    device: _Device = None,
    seed: _Seed = 0,
) -> None:
    """Train a tiny video classifier on scikit-learn's digits; called again, it goes on."""
    plan, folder, on = _changed(PLAN, steps, minutes), out or env.home() / NAME, find_device(device)
    task = DigitsTask(seed, on)
    done = train_with_bar(task, plan, folder, NAME)
    record = {**_record(NAME, MODEL_CLASS, plan, seed, on, done), "batch_size": BATCH_SIZE, "curve": curve(done)}
    write_processor(folder)
    release(task.model, folder, torch.bfloat16, record)
    accuracy = digits_accuracy(Pipeline(folder, dtype="float32", device=str(on)))
    amend(folder, {"held_out": {"accuracy": accuracy, "num_digits": len(digits()[1].labels)}})
    console.print(f"{folder}: {accuracy:.1%} of the held-out digits", soft_wrap=True)
