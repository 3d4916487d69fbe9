"""Checkpoint tensors into a model's parameters, by their published names; names no model.

A model class says `packed_modules` (fused module -> {published module: shard id}) and `ignored_weights` (name endings);
its `convert_weight(name, source)`, where it has one, gives the (name, source) pairs that stand for a published tensor;
its `checkpoint_classes` are the classes that its config.json may name, and its `torch_files` {file: what goes ahead of
its tensors' names} files beside the safetensors ones;
a layer whose parameters are not the checkpoint's as they are has `weight_loader` and `checkpoint_shape`
(distributed/sharded_layer.py), which take this rank's part. Every parameter is written exactly once, or nothing counts.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fastkernels.checkpoint_files import (
    COMPONENTS,
    checkpoint_config,
    is_of_components,
    read_json,
    safetensors_files,
)
from fastkernels.distributed.sharded_layer import ShardedLayer, ShardId
from fastkernels.distributed.tensor_parallel import WeightSource
from fastkernels.errors import CheckpointError
from fastkernels.noise import random_normal, random_uniform, seed_of
from fastkernels.op import prepare_weights

_NAMES_SHOWN = 8
_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8},
    "BOOL": torch.bool,
}
"""As safetensors names them."""
_RANDOM_BLOCK = {"cpu": 1 << 14, "cuda": 1 << 24}  # numbers at once: temporaries in cache; few launches


@dataclass(frozen=True)
class Target:
    """Where one published tensor goes."""

    param: Tensor
    owner: nn.Module
    shard_id: ShardId

    def shape(self) -> tuple[int, ...]:
        """Of the checkpoint's tensor."""
        shape: Any = getattr(self.owner, "checkpoint_shape", None)
        return tuple(self.param.shape if shape is None else shape(self.param, self.shard_id))

    def byte_range(self) -> tuple[int, int]:
        """The values that random weights of bytes take: the owner's, or that of the op inside it."""
        owner: Any = getattr(self.owner, self.owner.inner) if isinstance(self.owner, ShardedLayer) else self.owner
        name = next(name for name, param in owner.named_parameters() if param is self.param)
        return owner.byte_range(name, self.shape())

    def load(self, source: WeightSource) -> None:
        loader = getattr(self.param, "weight_loader", None) or getattr(self.owner, "weight_loader", None)
        if loader is not None:
            loader(self.param, source, *(() if self.shard_id is None else (self.shard_id,)))
        else:
            self.param.data.copy_(source.narrow(0, 0, source.shape[0]))


@dataclass(frozen=True)
class SafetensorsSource:
    """A tensor in an open safetensors file, read in the part that is asked for."""

    piece: Any
    shape: tuple[int, ...]
    dtype: torch.dtype | None = None

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        return self.piece[(slice(None),) * dim + (slice(start, start + length),)]


@dataclass(frozen=True)
class RandomSource:
    """Near-normal numbers, or bytes, by (seed, place in the tensor): any part is the same on every rank and device."""

    shape: tuple[int, ...]
    seed: int
    mean: float
    deviation: float
    device: torch.device
    byte_range: tuple[int, int] | None = None

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        axes = [torch.arange(n, device=self.device) for n in self.shape]
        axes[dim] = axes[dim][start : start + length]
        out = torch.empty([len(axis) for axis in axes], device=self.device)
        seed = torch.tensor(self.seed, device=self.device)
        rows_at_once = max(1, _RANDOM_BLOCK.get(self.device.type, 1 << 20) // max(1, out[:1].numel()))
        for block, rows in zip(out.split(rows_at_once), axes[0].split(rows_at_once), strict=True):
            place = rows
            for extent, axis in zip(self.shape[1:], axes[1:], strict=True):
                place = (place * extent)[..., None] + axis
            if self.byte_range is None:
                block.copy_(random_normal(seed, place) * self.deviation + self.mean)
            else:
                low, high = self.byte_range
                block.copy_((random_uniform(seed, place) * (high - low)).floor() + low)
        return out


def published_tensors(model: nn.Module) -> dict[str, Target]:
    """Every tensor that a checkpoint of `model` may hold, by its published name; tied ones under each name."""
    packed: Mapping[str, Mapping[str, ShardId]] = getattr(model, "packed_modules", {})
    targets: dict[str, Target] = {}
    inner: set[str] = set()
    for path, owner in model.named_modules():
        if path in inner:
            continue
        names = [name for name, param in owner._parameters.items() if param is not None]
        names += [n for n, buffer in owner._buffers.items() if buffer is not None and _is_published(owner, n)]
        if isinstance(owner, ShardedLayer):
            inner.add(f"{path}.{owner.inner}".lstrip("."))
            names = [name for name in owner.parameter_names if getattr(owner, name) is not None]
        parent, _, stem = path.rpartition(".")
        for name in names:
            for module, shard_id in packed.get(stem, {stem: None}).items():
                published = ".".join(part for part in (parent, module, name) if part)
                targets[published] = Target(getattr(owner, name), owner, shard_id)
    return targets


def _is_published(owner: nn.Module, buffer: str) -> bool:
    """Whether checkpoints hold it: not what is derived, nor the count that only training reads."""
    return buffer not in owner._non_persistent_buffers_set and buffer != "num_batches_tracked"


def read_checkpoint(directory: Path) -> Iterator[tuple[str, WeightSource]]:
    """Name and source of every tensor, file by file; nothing is read until a source is narrowed.

    Of a directory of components each tensor is named behind its component: "unet.conv_in.weight".
    Errors: CheckpointError names a file that is truncated or not safetensors.
    """
    if is_of_components(directory):
        for component in sorted(read_json(directory / COMPONENTS)):
            if (directory / component / "config.json").is_file():
                for name, source in read_checkpoint(directory / component):
                    yield f"{component}.{name}", source
        return
    for file in safetensors_files(directory):
        try:
            opened = safe_open(file, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is truncated or not a safetensors file: {error}") from error
        with opened as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                piece = tensors.get_slice(name)
                yield name, SafetensorsSource(piece, tuple(piece.get_shape()), _DTYPES.get(piece.get_dtype()))


def _with_torch_files(directory: Path, files: Mapping[str, str]) -> Iterator[tuple[str, WeightSource]]:
    """The tensors of a checkpoint and of files that torch.save wrote: their names, and what goes ahead of the names in
    them. One without a prefix is the checkpoint itself, read where there is no safetensors file.

    Errors: CheckpointError for a file that holds anything but tensors by name.
    """
    there = {name: prefix for name, prefix in files.items() if (directory / name).is_file()}
    has_safetensors = any(directory.glob("*.safetensors"))
    if has_safetensors or "" not in there.values():
        yield from read_checkpoint(directory)
    for name, prefix in there.items():
        if prefix or not has_safetensors:
            for key, tensor in _torch_tensors(directory / name).items():
                yield f"{prefix}{key}", tensor


def _torch_tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path} is truncated, or holds more than tensors: {reason}") from error
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise CheckpointError(f"{path} holds no tensors by name.")
    return found


@dataclass
class _Problems:
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    retyped: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)

    def raise_if_any(self, model: nn.Module) -> None:
        lines = []
        for kind, names in vars(self).items():
            if names:
                more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
                lines.append(f"{len(names)} {kind}: {', '.join(names[:_NAMES_SHOWN])}{more}")
        if lines:
            raise CheckpointError(f"The checkpoint does not fit {type(model).__name__}: {'; '.join(lines)}.")


def load_weights(model: nn.Module, source: Path | str | Iterable[tuple[str, WeightSource]]) -> None:
    """Fill every parameter of `model` from a checkpoint directory or from (published name, tensor) pairs.

    Then each layer prepares its own, where it has `process_weights_after_loading()`.
    Errors: CheckpointError names missing, extra, misshapen and repeated tensors, integers where floats belong (or the
        other way round), a file that cannot be read, or a config.json of another architecture; ValueError while the
        model is on the meta device.
    """
    if any(param.is_meta for param in model.parameters()):
        raise ValueError("The model is on the meta device: call model.to_empty(device=...) before loading.")
    if isinstance(source, (str, Path)):
        directory = Path(source)
        config = checkpoint_config(directory)
        named = config.get("architectures") or config.get("_class_name") or []
        named = [named] if isinstance(named, str) else named
        wanted = getattr(model, "checkpoint_classes", (type(model).__name__,))
        if named and not set(wanted) & set(named):
            raise CheckpointError(f"{directory} is of {', '.join(named)}, not of {', '.join(wanted)}.")
        source = _with_torch_files(directory, getattr(model, "torch_files", {}))
    targets = published_tensors(model)
    renames = [(re.compile(pattern), name) for pattern, name in getattr(model, "weight_renames", ())]
    convert = getattr(model, "convert_weight", None)
    written: dict[tuple[int, ShardId], str] = {}
    problems = _Problems()
    with torch.no_grad():
        for published, tensor in source:
            name = published
            for pattern, replacement in renames:
                name = pattern.sub(replacement, name)
            for part_name, part in [(name, tensor)] if convert is None else convert(name, tensor):
                _load_one(model, targets, written, problems, part_name, part)
        _fill_zeros(model, targets, written)
    for name, target in targets.items():
        if written.setdefault((id(target.param), target.shard_id), "") == "":
            problems.missing.append(name)
    problems.raise_if_any(model)
    prepare_weights(model)


def _fill_zeros(model: nn.Module, targets: Mapping[str, Target], written: dict[tuple[int, ShardId], str]) -> None:
    """Parameters that the published layout leaves out, by the model's `zero_weights`: ends of names."""
    ends = tuple(getattr(model, "zero_weights", ()))
    for name, target in targets.items():
        if name.endswith(ends) and (id(target.param), target.shard_id) not in written:
            written[id(target.param), target.shard_id] = name
            target.load(torch.zeros(target.shape()))


def _load_one(
    model: nn.Module,
    targets: Mapping[str, Target],
    written: dict[tuple[int, ShardId], str],
    problems: _Problems,
    name: str,
    tensor: WeightSource,
) -> None:
    target = targets.get(name)
    if target is None:
        if not name.endswith(("num_batches_tracked", *getattr(model, "ignored_weights", ()))):
            problems.extra.append(name)
        return
    key = (id(target.param), target.shard_id)
    if key in written:
        if written[key] == name:
            problems.twice.append(name)
            return
        # Tied: the name that the model has first counts, an embedding's before its head's, as in transformers.
        if name != next(n for n, t in targets.items() if (id(t.param), t.shard_id) == key):
            return
    written[key] = name
    if tuple(tensor.shape) != target.shape():
        problems.misshapen.append(f"{name} {list(tensor.shape)} instead of {list(target.shape())}")
        return
    dtype = _dtype_of(tensor)
    if dtype is not None and dtype.is_floating_point != target.param.dtype.is_floating_point:
        problems.retyped.append(f"{name} {dtype} instead of {target.param.dtype}".replace("torch.", ""))
        return
    target.load(tensor)


def _dtype_of(source: Any) -> torch.dtype | None:
    """Of the checkpoint's tensor that a source is a part or a view of; None for numbers that are drawn."""
    while hasattr(source, "whole"):
        source = source.whole
    return getattr(source, "dtype", None)


def random_weights(model: nn.Module, seed: int) -> None:
    """Fill every parameter by (seed, its published name): the same model on any device and over any number of ranks."""
    device = next((param.device for param in model.parameters()), torch.device("cpu"))
    load_weights(model, random_tensors(model, seed, device))


def random_tensors(model: nn.Module, seed: int, device: torch.device) -> Iterator[tuple[str, RandomSource]]:
    """What random_weights fills in, as a checkpoint's tensors; the model may be on the meta device.

    Matrices get deviation 1/sqrt(inputs), biases 0.02, norm weights 1 with deviation 0.1.
    """
    for name, target in published_tensors(model).items():
        shape = target.shape()
        is_vector, is_bias = len(shape) == 1, name.endswith(("bias", "running_mean"))
        deviation = (0.02 if is_bias else 0.1) if is_vector else (torch.Size(shape[1:]).numel()) ** -0.5
        mean = 1.0 if is_vector and not is_bias else 0.0
        byte_range = target.byte_range() if target.param.dtype == torch.uint8 else None
        yield name, RandomSource(shape, seed_of(name, seed), mean, deviation, device, byte_range)
