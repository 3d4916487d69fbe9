"""Ways to make a model wrong, by degrees: in its parameters, its tables, or between its parts; undone exactly.

A severity is 0 for nothing. The same seed damages the same places in the same directions at every severity, so that a
curve over severities is of one damage that grows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fastkernels.noise import seed_of

_HEAD = "compute_logits"
"""The method, not a module, by which an engine asks a language model for its logits."""

_LEAST_FREQUENCY = 1e-4
"""Of a rotary embedding whose base is 10,000; the largest is 1."""


class Damage(Protocol):
    """name: in a few words, as tables and curves have it."""

    @property
    def name(self) -> str: ...

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        """Errors: ValueError when the model has no such part."""


@contextmanager
def damaged(model: nn.Module, damage: Damage, severity: float, seed: int) -> Iterator[None]:
    """The model is damaged inside, and bit for bit what it was afterwards."""
    with ExitStack() as undo, torch.no_grad():
        damage.inflict(model, severity, seed, undo)
        yield


@dataclass(frozen=True)
class WeightNoise:
    """Parameters whose names match get Gaussian noise of `severity` times their root mean square."""

    name: str = "weight noise"
    pattern: str = ""

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        for name, weight in _parameters(model, self.pattern):
            _replace(weight, weight + severity * _like(weight, name, seed), undo)


@dataclass(frozen=True)
class UntrainedWeights:
    """Of parameters whose names match, a share `severity` is random numbers of the same root mean square: at 1 they
    are those of a model that was never trained."""

    name: str
    pattern: str

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        for name, weight in _parameters(model, self.pattern):
            _replace(weight, (1 - severity) * weight + severity * _like(weight, name, seed), undo)


@dataclass(frozen=True)
class DroppedLayers:
    """A share `severity` of the layers adds nothing, the last ones first; a part of a layer adds less.

    pattern: of the parameters that write to the residual stream; its group is the layer's number.
    """

    pattern: str
    name: str = "dropped layers"

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        found = _parameters(model, self.pattern)
        numbers = [int(match.group(1)) for name, _ in found if (match := re.search(self.pattern, name))]
        num_layers = max(numbers) + 1
        for number, (_, weight) in zip(numbers, found, strict=True):
            dropped = min(1.0, max(0.0, severity * num_layers - (num_layers - 1 - number)))
            _replace(weight, weight * (1 - dropped), undo)


@dataclass(frozen=True)
class RandomFrequencies:
    """A share `severity` of the rotary tables' dimensions turns by frequencies drawn anew, evenly in their logarithm.

    pattern: of buffers [positions, cosines then sines].
    """

    pattern: str = r"cos_sin_cache$"
    name: str = "random rotary frequencies"

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        tables = [(name, table) for name, table in model.named_buffers() if re.search(self.pattern, name)]
        _check(self.pattern, tables)
        for name, table in tables:
            generator, half = _generator(name, seed), table.shape[1] // 2
            is_hit = torch.randperm(half, generator=generator) < round(severity * half)
            frequencies = torch.rand(half, generator=generator).mul(math.log(_LEAST_FREQUENCY)).exp()
            angles = torch.arange(len(table))[:, None] * frequencies
            drawn = torch.cat([angles.cos(), angles.sin()], dim=1).to(table)
            _replace(table, torch.where(is_hit.repeat(2).to(table.device), drawn, table), undo)


@dataclass(frozen=True)
class RandomRows:
    """A share `severity` of the rows that a part gives (tokens, mostly) is random: logits that favour any token, scores
    that choose any expert.

    pattern: of modules, or compute_logits. scale: deviation of what is drawn; None: that of the part's own output.
    """

    name: str
    pattern: str = _HEAD
    scale: float | None = None

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        generator = _generator(self.pattern, seed)

        def spoiled(rows: Tensor) -> Tensor:
            is_hit = torch.rand(len(rows), generator=generator) < severity
            scale = float(rows.float().std()) if self.scale is None else self.scale
            drawn = torch.randn(rows.shape, generator=generator).mul(scale).to(rows)
            return torch.where(is_hit.view(-1, *[1] * (rows.dim() - 1)).to(rows.device), drawn, rows)

        if self.pattern == _HEAD:
            _wrap_method(model, _HEAD, spoiled, undo)
            return
        for module in _modules(model, self.pattern):
            _on_output(module, spoiled, undo)


@dataclass(frozen=True)
class ShuffledInput:
    """A share `severity` of the places of an argument's values is shuffled among themselves, within each sample.

    pattern: of modules, "^$" the whole model. argument: its number among the positional ones.
    """

    name: str
    pattern: str
    argument: int = 0

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        generator = _generator(self.name, seed)

        def shuffled(x: Tensor) -> Tensor:
            flat = x.flatten(1) if x.dim() > 1 else x[None]
            order = torch.randperm(flat.shape[1], generator=generator)
            hit = order[: round(severity * len(order))]
            places = torch.arange(flat.shape[1])
            places[hit] = hit[torch.randperm(len(hit), generator=generator)]
            return flat[:, places.to(x.device)].view_as(x)

        for module in _modules(model, self.pattern):
            _on_argument(module, self.argument, shuffled, undo)


@dataclass(frozen=True)
class ValueNoise:
    """What a part is given (argument: its number) or gives (None) gets Gaussian noise of `severity` times its root mean
    square."""

    name: str
    pattern: str
    argument: int | None = None

    def inflict(self, model: nn.Module, severity: float, seed: int, undo: ExitStack) -> None:
        generator = _generator(self.name, seed)

        def noisy(x: Tensor) -> Tensor:
            noise = torch.randn(x.shape, generator=generator).to(x)
            return x + severity * float(x.float().pow(2).mean().sqrt()) * noise

        for module in _modules(model, self.pattern):
            if self.argument is None:
                _on_output(module, noisy, undo)
            else:
                _on_argument(module, self.argument, noisy, undo)


def _parameters(model: nn.Module, pattern: str) -> list[tuple[str, nn.Parameter]]:
    """Floating-point ones; a tied one once. Errors: ValueError when none matches."""
    found = [(n, p) for n, p in model.named_parameters() if p.is_floating_point() and re.search(pattern, n)]
    _check(pattern, found)
    return found


def _modules(model: nn.Module, pattern: str) -> list[nn.Module]:
    found = [module for name, module in model.named_modules() if re.search(pattern, name)]
    _check(pattern, found)
    return found


def _check(pattern: str, found: list[Any]) -> None:
    if not found:
        raise ValueError(f"The model has no part whose name matches {pattern!r}: nothing would be damaged.")


def _generator(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(name, seed))


def _like(weight: Tensor, name: str, seed: int) -> Tensor:
    """Gaussian numbers of the weight's root mean square, by its name and the seed."""
    noise = torch.randn(weight.shape, generator=_generator(name, seed))
    return (noise * float(weight.float().pow(2).mean().sqrt())).to(weight)


def _replace(tensor: Tensor, values: Tensor, undo: ExitStack) -> None:
    undo.callback(tensor.data.copy_, tensor.detach().clone())
    tensor.data.copy_(values)


def _wrap_method(model: nn.Module, name: str, change: Callable[[Tensor], Tensor], undo: ExitStack) -> None:
    inner: Callable[..., Tensor] = getattr(model, name)
    vars(model)[name] = lambda *args: change(inner(*args))
    undo.callback(vars(model).pop, name)


def _on_output(module: nn.Module, change: Callable[[Tensor], Tensor], undo: ExitStack) -> None:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    undo.callback(module.register_forward_hook(hook).remove)


def _on_argument(module: nn.Module, number: int, change: Callable[[Tensor], Tensor], undo: ExitStack) -> None:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (*args[:number], change(args[number]), *args[number + 1 :])

    undo.callback(module.register_forward_pre_hook(hook).remove)
