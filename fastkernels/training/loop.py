"""Training, step after step: resumed from its last state as if it had never stopped."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastkernels.errors import CheckpointError, UsageError

STATE = "state.pt"
_BETAS = (0.9, 0.95)
_LARGEST_GRADIENT = 1.0


class Task(Protocol):
    """A model and what it learns. seed: of its first weights and its batches. loss: of the batch that the number of a
    step decides, alone."""

    model: nn.Module
    seed: int

    def loss(self, step: int) -> Tensor: ...


@dataclass(frozen=True)
class Plan:
    """How long, and how fast. The learning rate rises over warmup_steps, then falls in a line to 0 at the end.

    minutes: ends it after so many, whatever `steps` says; how many steps that is depends on the machine.
    matrix_learning_rate: of matrices inside layers, by Muon; 0: they are trained by AdamW like all else.
    Errors: UsageError names what is out of range.
    """

    steps: int
    minutes: float | None = None
    learning_rate: float = 3e-3
    matrix_learning_rate: float = 0.0
    weight_decay: float = 0.1
    warmup_steps: int = 50
    save_every: int = 100

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.minutes is not None and not self.minutes > 0):
            raise UsageError(
                f"A training takes at least 1 step and more than 0 minutes, got {self.steps} and {self.minutes}."
            )
        if not self.learning_rate > 0 or self.matrix_learning_rate < 0 or self.save_every < 1:
            raise UsageError(
                f"learning_rate {self.learning_rate} must be > 0, matrix_learning_rate {self.matrix_learning_rate} "
                f">= 0, save_every {self.save_every} >= 1."
            )

    def progress(self, step: int, seconds: float) -> float:
        """In [0, 1]; 1 when it is over."""
        timed = 0.0 if self.minutes is None else seconds / (60 * self.minutes)
        return min(1.0, max(step / self.steps, timed))

    def rate(self, step: int, seconds: float) -> float:
        """Times a learning rate."""
        return min(1.0, (step + 1) / max(1, self.warmup_steps)) * (1 - self.progress(step, seconds))


@dataclass
class Progress:
    """How far a training is. losses: of every step; seconds: of all its runs, without what was lost."""

    step: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def train(task: Task, plan: Plan, folder: Path, report: Callable[[Progress, float], None] | None = None) -> Progress:
    """Train until the plan's end; folder/state.pt takes the state, and is gone on with when it is there.

    report: called after every step with the share that is done.
    Errors: UsageError when the state is that of another plan or seed; CheckpointError when it cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    optimizers = _optimizers(task.model, plan)
    bases = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    wanted = {**asdict(plan), "seed": task.seed}
    done = _resume(folder / STATE, task.model, optimizers, wanted)
    task.model.train()
    before, start = done.seconds, time.perf_counter()
    while (share := plan.progress(done.step, done.seconds)) < 1:
        for optimizer, base in zip(optimizers, bases, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * plan.rate(done.step, done.seconds)
        loss = task.loss(done.step)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(task.model.parameters(), _LARGEST_GRADIENT)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        done.losses.append(float(loss.detach()))
        done.step, done.seconds = done.step + 1, before + time.perf_counter() - start
        if done.step % plan.save_every == 0:
            _save(folder / STATE, task.model, optimizers, wanted, done)
        if report is not None:
            report(done, share)
    _save(folder / STATE, task.model, optimizers, wanted, done)
    task.model.eval()
    return done


def _optimizers(model: nn.Module, plan: Plan) -> list[torch.optim.Optimizer]:
    named = dict(model.named_parameters())  # a tied parameter once
    matrices = [p for name, p in named.items() if plan.matrix_learning_rate and _is_matrix_of_a_layer(name, p)]
    others = [p for p in named.values() if not any(p is matrix for matrix in matrices)]
    found: list[torch.optim.Optimizer] = []
    if matrices:
        found.append(torch.optim.Muon(matrices, lr=plan.matrix_learning_rate, weight_decay=plan.weight_decay))
    groups: list[dict[str, Any]] = [
        {"params": [p for p in others if p.dim() >= 2], "weight_decay": plan.weight_decay},
        {"params": [p for p in others if p.dim() < 2], "weight_decay": 0.0},
    ]
    return [*found, torch.optim.AdamW([g for g in groups if g["params"]], lr=plan.learning_rate, betas=_BETAS)]


def _is_matrix_of_a_layer(name: str, param: Tensor) -> bool:
    return param.dim() == 2 and not any(word in name for word in ("embed", "head", "gate.", "classifier"))


def _save(path: Path, model: nn.Module, optimizers: list[Any], plan: dict[str, Any], done: Progress) -> None:
    """plan: with the seed. Under a temporary name first: a signal leaves the state before or this one."""
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "plan": json.dumps(plan),
        "progress": asdict(done),
    }
    temporary = path.with_name(f".{path.name}.partial")
    torch.save(state, temporary)
    os.replace(temporary, path)


def _resume(path: Path, model: nn.Module, optimizers: list[Any], plan: dict[str, Any]) -> Progress:
    if not path.is_file():
        return Progress()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        made_by, done = json.loads(state["plan"]), Progress(**state["progress"])
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no state of a training: {error!r}. Delete it to begin anew.") from error
    changed = [
        f"{name} {made_by.get(name)} (now {value})" for name, value in plan.items() if made_by.get(name) != value
    ]
    if changed:
        raise UsageError(f"{path} was made with {', '.join(changed)}. Train with the same, or delete it.")
    try:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is of another model: {str(error).splitlines()[0]} Delete it.") from error
    return done
