"""Every op by name, what uses what, and the architectures. Read from source text; imports no task."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from fastkernels.architecture_file import PLACES, TUPLES, read_architecture_file
from fastkernels.errors import UnknownNameError, UsageError
from fastkernels.source import BASELINE, LEVELS, SourceModule, find_base, modules, references

_OP_MODULE, _OP_CLASS = "fastkernels.op", "Op"


@dataclass(frozen=True, order=True)
class OpEntry:
    """One op: "rms_norm" is class RMSNorm in L1/rms_norm.py."""

    level: int
    stem: str
    name: str
    class_name: str
    module: str
    path: Path

    @property
    def file_name(self) -> str:
        return f"L{self.level}/{self.stem}.py"


class Kind(StrEnum):
    """How an architecture's requests are computed: the engine's runner of the same name."""

    AUTOREGRESSIVE = "autoregressive"
    SINGLE_PASS = "single_pass"
    ITERATIVE = "iterative"


@dataclass(frozen=True)
class Architecture:
    """A model family: where its L4 class, configuration, pipeline and oracle are, and what its checkpoints are called.

    hf_architectures: names in a config.json's "architectures"; model_types: its "model_type", where it has no such.
    engine_ops: what the engine calls beside the model to turn its logits into tokens.
    pipeline: "module:class" of what makes tensors of a request and an answer of tensors; "" where tokens are all.
    oracle: module in fastkernels.oracles. published: what was published of it, with its source. not_supported: of what
    the library of record can do, in words. config_patterns: regular expressions of other values of a config.json by
    their keys, where it has neither "architectures" nor "model_type". family: scoring.items.Family, by which answers
    are compared; answers: the tensors of a result that are, by name, where it makes no tokens.
    inputs: what `generate` takes, by option ("--image") or by name of --input; gives: what comes of it; examples: such
    command lines, of tiny models. stand_ins: what takes the place of a published file ("L2/siglip_mlp") that is none of
    the architecture's; count_notes: by level, why as many files as published are not here.
    """

    name: str
    kind: Kind
    module: str
    class_name: str
    config: str
    hf_architectures: tuple[str, ...] = ()
    model_types: tuple[str, ...] = ()
    engine_ops: tuple[str, ...] = ()
    pipeline: str = ""
    oracle: str = ""
    published: Mapping[str, Any] = field(default_factory=dict, hash=False)
    not_supported: tuple[str, ...] = ()
    config_patterns: Mapping[str, str] = field(default_factory=dict, hash=False)
    family: str = ""
    answers: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict, hash=False)
    gives: str = ""
    examples: tuple[str, ...] = ()
    stand_ins: Mapping[str, str] = field(default_factory=dict, hash=False)
    count_notes: Mapping[str, str] = field(default_factory=dict, hash=False)


_SAMPLING_OPS = (
    *("apply_logit_bias", "apply_penalties", "apply_token_bitmask", "draw_seeds"),
    *("greedy_sample", "min_p", "top_k_top_p_sample", "top_logprobs"),
)


def _read_architecture(path: Path) -> Architecture:
    """One file of fastkernels/architectures; modules are named from the package on. Errors: UsageError."""
    body = read_architecture_file(path, [kind.value for kind in Kind])
    body["name"], body["kind"] = path.stem, Kind(body["kind"])
    body |= {name: tuple(body.get(name, ())) for name in TUPLES}
    body |= {name: f"fastkernels.{body[name]}" for name in PLACES if name in body}
    return Architecture(**body, engine_ops=_SAMPLING_OPS if body["kind"] is Kind.AUTOREGRESSIVE else ())


ARCHITECTURES = tuple(
    _read_architecture(path) for path in sorted(Path(__file__).with_name("architectures").glob("*.json"))
)

_ONE_WORD = {
    "KVCache": "Kvcache",
    "LightGCN": "Lightgcn",
    "ReLU": "Relu",
    "SpMM": "Spmm",
    "AllReduce": "Allreduce",
    "AllGather": "Allgather",
    "DINOv3": "Dinov3",
    "ViT": "Vit",
    "YOLOv10": "Yolov10",
    "SiLU": "Silu",
    "QuickGELU": "Quickgelu",
    "UNet": "Unet",
    "CLIP": "Clip",
    "Mamba2": "Mamba2_",
    "2D": "2d",
    "TopKSoftmax": "TopkSoftmax",
    "MoE": "Moe",
}  # as the published names do


def snake_case(class_name: str) -> str:
    """RMSNorm -> rms_norm, QKVParallelLinear -> qkv_parallel_linear, StoreKVCache -> store_kvcache."""
    for words, word in _ONE_WORD.items():
        class_name = class_name.replace(words, word)
    words = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", class_name)
    return re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", words).lower()


def _derives_from_op(module: SourceModule, class_name: str) -> bool:
    node = module.definitions[class_name]
    if not isinstance(node, ast.ClassDef):
        return False
    if any(isinstance(b, ast.Name) and module.imports.get(b.id) == (_OP_MODULE, _OP_CLASS) for b in node.bases):
        return True
    place = find_base(module, node)
    return place is not None and _derives_from_op(modules()[place[0]], place[1])


def _ops_in(module: SourceModule) -> list[OpEntry]:
    """The public classes of a file that derive from Op. Errors: UsageError when one's name is nearly the file's."""
    found = []
    for class_name in module.definitions:
        if class_name.startswith("_") or not _derives_from_op(module, class_name):
            continue
        stem, name = module.path.stem, snake_case(class_name)
        if stem != name and stem.replace("_", "") == name.replace("_", ""):
            raise UsageError(f"{module.path} holds {class_name}, whose name is {name!r}: rename the file.")
        found.append(OpEntry(module.level, stem, name, class_name, module.name, module.path))
    return found


@cache
def ops() -> dict[str, OpEntry]:
    """Every op by name.

    Errors: UsageError when two classes would have the same name.
    """
    found: dict[str, OpEntry] = {}
    for entry in (entry for module in modules().values() for entry in _ops_in(module)):
        if (other := found.get(entry.name)) is not None:
            raise UsageError(
                f"Two ops are named {entry.name!r}: {other.class_name} in {other.file_name} and "
                f"{entry.class_name} in {entry.file_name}. Rename one class."
            )
        found[entry.name] = entry
    return found


def find_ops(target: str) -> list[OpEntry]:
    """The ops meant by an op name, a class name, a file stem or "L1/rms_norm" (a file: all its ops).

    Errors: UnknownNameError suggests the nearest.
    """
    entries = ops().values()
    wanted = target.removesuffix(".py")
    for matches in (
        [e for e in entries if wanted in (e.name, e.class_name)],
        [e for e in entries if wanted in (e.stem, f"L{e.level}/{e.stem}")],
    ):
        if matches:
            return matches
    names = {n for e in entries for n in (e.name, e.class_name, e.stem)}
    if "/" in wanted:
        names = {f"L{e.level}/{e.stem}" for e in entries}
    raise UnknownNameError("op", target, names)


def ops_of_file(level: int, stem: str) -> list[OpEntry]:
    return ops_of_module(f"{BASELINE}.L{level}.{stem}")


def ops_of_module(module: str) -> list[OpEntry]:
    """Reads that file, and those of its classes' bases, alone."""
    return _ops_in(modules()[module]) if module in modules() else []


def op_of_file_of_its_name(name: str) -> OpEntry:
    """As ops()[name], of an op whose file has its name: no other file is read.

    Errors: UnknownNameError where no file has one.
    """
    named = (entry for level in LEVELS for entry in ops_of_file(level, name) if entry.name == name)
    if (found := next(named, None)) is None:
        raise UnknownNameError("op", name, ops())
    return found


def ops_of_level(level: int) -> list[OpEntry]:
    """Errors: UsageError when there is no such level."""
    if level not in LEVELS:
        raise UsageError(f"There is no level {level}; levels are {', '.join(map(str, LEVELS))}.")
    return [e for e in ops().values() if e.level == level]


@cache
def _graph() -> dict[str, tuple[OpEntry, ...]]:
    by_place = {(e.module, e.class_name): e for e in ops().values()}
    graph = {}
    for entry in ops().values():
        seen: set[tuple[str, str]] = set()
        found: set[OpEntry] = set()
        waiting = references(modules()[entry.module], entry.class_name)
        while waiting:
            place = waiting.pop()
            if place in seen:
                continue
            seen.add(place)
            if place in by_place:
                found.add(by_place[place])
            else:
                waiting |= references(modules()[place[0]], place[1])
        graph[entry.name] = tuple(sorted(found - {entry}, key=lambda e: (-e.level, e.name)))
    return graph


def uses(name: str) -> list[OpEntry]:
    """The ops that `name` is directly composed of, highest level first."""
    return list(_graph()[_known(name)])


def used_by(name: str) -> list[OpEntry]:
    """Everything that a replacement of `name` changes, up to the models, lowest level first."""
    changed = {_known(name)}
    while True:
        more = {op for op, parts in _graph().items() if any(p.name in changed for p in parts)} - changed
        if not more:
            return sorted(ops()[op] for op in changed - {name})
        changed |= more


def ops_below(name: str) -> list[OpEntry]:
    """`name` and everything it is composed of, lowest level first."""
    found, waiting = set(), {_known(name)}
    while waiting:
        op = waiting.pop()
        found.add(op)
        waiting |= {part.name for part in _graph()[op]} - found
    return sorted(ops()[op] for op in found)


def _known(name: str) -> str:
    if name not in ops():
        raise UnknownNameError("op", name, ops())
    return name


def architecture(name: str) -> Architecture:
    """Errors: UnknownNameError suggests the nearest."""
    known = {a.name: a for a in ARCHITECTURES}
    if name not in known:
        raise UnknownNameError("architecture", name, known)
    return known[name]


def architecture_of(hf_config: Mapping[str, Any]) -> Architecture:
    """The architecture that a Hugging Face config.json (or a pipeline's model_index.json) asks for.

    Errors: UnknownNameError when none of its "architectures" is known.
    """
    wanted = hf_config.get("architectures") or hf_config.get("_class_name") or []
    wanted = [wanted] if isinstance(wanted, str) else wanted
    model_type = hf_config.get("model_type")
    for candidate in ARCHITECTURES:
        by_type = not wanted and model_type in candidate.model_types
        patterns = {} if wanted or model_type else candidate.config_patterns
        by_pattern = any(re.search(pattern, str(hf_config.get(key, ""))) for key, pattern in patterns.items())
        if by_type or by_pattern or set(wanted) & set(candidate.hf_architectures):
            return candidate
    known = [h for a in ARCHITECTURES for h in (*a.hf_architectures, *a.model_types)]
    asked = ", ".join(map(str, wanted)) or model_type or "(none in the config)"
    raise UnknownNameError("architecture", asked, known)


def ops_of_architecture(name: str) -> list[OpEntry]:
    """Every op that runs when the architecture generates, lowest level first.

    Errors: UsageError when its class is no op.
    """
    model = architecture(name)
    root = next((e for e in ops().values() if (e.module, e.class_name) == (model.module, model.class_name)), None)
    if root is None:
        raise UsageError(
            f"architectures/{name}.json: 'class_name' is {model.class_name!r} in {model.module}, which is no op: it is "
            "a public class there that derives from fastkernels.op.Op."
        )
    roots = [root.name, *model.engine_ops]
    return sorted({entry for root in roots for entry in ops_below(root)})


def architectures_with(op: str) -> list[str]:
    """The architectures that an op is part of."""
    return [a.name for a in ARCHITECTURES if ops()[_known(op)] in ops_of_architecture(a.name)]
