"""Writes docs/architectures.md from fastkernels/architectures and benchmarks/results."""

from __future__ import annotations

import json
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastkernels.engine.model import build_bare_model
from fastkernels.engine.model_source import build_config, find_model, presets
from fastkernels.oracles.measure import COMPILED, LIBRARY
from fastkernels.registry import (
    ARCHITECTURES,
    Architecture,
    OpEntry,
    architecture,
    architecture_of,
    ops_of_architecture,
)
from fastkernels.source import LEVELS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "architectures.md"
RESULTS = ROOT / "benchmarks" / "results"
_HEAD = """# Architectures

Written by `python scripts/architectures_page.py` from `fastkernels/architectures/*.json`, the ops' imports,
`benchmarks/results/cpu/parity.json`, and in `benchmarks/results/h200` `<architecture>_vs_vllm.json` and
`<architecture>.json`.

## Beside the library of record

Error: the largest difference of an answer from the library's, over its largest number, in float32 on a CPU at tiny
sizes, over all variants; tokens, boxes and rankings are equal where there are such. Ratio: the time of what is named
last over ours on an H200 at the published size, over 1 where ours is faster; published: the ratio that the FastKernels
paper prints for its own system.

| architecture | reference | library | error | ratio | published | measured against |
|---|---|---|---|---|---|---|
"""
_FIRST_LOOK = """
## First look on an H200

Of `benchmarks/results/h200/first_look`, whose files say in "note" how each was measured and what to hold against it.
The library's faster mode is the one beside; but for the files of the folder `compiled` it runs as it is alone. The
ratio is its time over ours, with the 95 % interval over a few rounds.

| architecture | load | at once | ours, ms | library, ms | its mode | ratio | layers |
|---|---|---|---|---|---|---|---|
"""
_COUNTS = """
## Ops by level

Ops that run when the architecture does, the engine's sampling ops left out, and in brackets those that no other
architecture here has: every branch that a configuration may take counts, and so do collectives and the layers that
split over ranks. Then the files of those that the published size builds, and the numbers of tasks as published.

| architecture | L1 | L2 | L3 | L4 | files at the published size | published |
|---|---|---|---|---|---|---|
"""
_DIFFERENCES = """
### Why the numbers differ

The paper counts tasks and does not list them; of some models its Table 9 names files, by classes of transformers. A
file here may hold several ops, as `parallel_linear` does, and branches of a shared op (`quickgelu` in `vision_mlp`) are
ops of an architecture that never takes them: so files of the published size are what compares. What is left:

"""
_PUBLISHED_FILES = """
### Published files and what takes their place

Every file that the paper names for an architecture is one of its files here, or is in this list. Where the names are
from is in each `architectures/*.json`, `published.files`.

| architecture | published file | in its place |
|---|---|---|
"""
_INPUTS = """
## What goes in and what comes out

Each line runs as it stands where the files are that it names. A picture, a recording, a video or a scene is a file, a
URL, a data URI or base64; values that are JSON numbers or lists are read as such. Models of one's own are folders in
place of `tiny-...`; over HTTP: [server.md](server.md).
"""
_NOT_SUPPORTED = """
## What is not supported

Of every model:

- LoRA adapters, speculative decoding, pipeline and data parallelism, offloading to the CPU.
- Quantised checkpoints but GPT-OSS's MXFP4: their tensors' names are not the model's, and are refused.
- Steps that hold a part of a prompt as CUDA graphs: they run eagerly, and graphs hold decode steps alone.
- Several ranks for a model that makes no tokens.

Of single models:

"""


def main() -> None:
    parity = _read(RESULTS / "cpu" / "parity.json").get("architectures", {})
    chosen = {a.name: _own_ops(a) for a in ARCHITECTURES}
    users = Counter(entry.name for entries in chosen.values() for entry in entries)
    text = _HEAD + "".join(_line(a, parity.get(a.name, {})) for a in ARCHITECTURES)
    looks = "".join(_first_look(a) for a in ARCHITECTURES)
    text += (_FIRST_LOOK + looks) * bool(looks)
    text += _COUNTS + "".join(_counts(a, chosen[a.name], users) for a in ARCHITECTURES)
    text += _DIFFERENCES + "".join(map(_differences, ARCHITECTURES))
    text += _PUBLISHED_FILES + "".join(map(_stand_ins, ARCHITECTURES))
    text += _INPUTS + _inputs()
    text += _NOT_SUPPORTED
    text += "".join(f"- {_title(a)}: {'; '.join(a.not_supported)}.\n" for a in ARCHITECTURES if a.not_supported)
    PAGE.write_text(text)


def _title(architecture: Architecture) -> str:
    return f"{architecture.published['name']} (`{architecture.name}`)"


def _line(architecture: Architecture, parity: dict[str, Any]) -> str:
    errors = [e for v in parity.get("variants", {}).values() for e in v["answers"].values()]
    error = "" if not errors else "not equal" if None in errors else f"{max(errors):.1g}"
    ratio, against = _speed(architecture.name)
    published = architecture.published
    cells = (_title(architecture), published["reference"], parity.get("library", ""), error, ratio)
    return "| " + " | ".join((*cells, str(published["speed_ratio"]), against)) + " |\n"


def _speed(name: str) -> tuple[str, str]:
    """The ratio, of several loads or scenarios the range, and what it is against; empty where nothing was measured.

    With vLLM where that was measured, else with the library of record in whichever of its modes is faster.
    """
    served = _read(RESULTS / "h200" / f"{name}_vs_vllm.json")
    ratios = [s["ratio"] for s in served.get("scenarios", {}).values() if s.get("ratio")]
    if ratios:
        return _range(ratios), "; ".join(
            [f"{_vllm(served)}, {_number(len(ratios))} scenarios", *_of_served(name, served)]
        )
    record = _read(RESULTS / "h200" / f"{name}.json")
    measured = [b for b in record.get("batches", []) if b.get("ratios")]
    if not measured:
        return "", f"not measured: {record['error']}" if "error" in record else ""
    best = [min(ratio["ratio"] for ratio in b["ratios"].values()) for b in measured]
    numbers: dict[str, list[str]] = {}
    for b in measured:
        numbers.setdefault(b["load"], []).append(str(b["batch"]))
    loads = ", ".join(f"{load} of {' and '.join(some)}" for load, some in numbers.items())
    facts = [
        f"{record['library']}, its faster mode: {loads}",
        *_as_it_is(measured),
        *_layers(**record.get("layers", {})),
    ]
    return _range(best), "; ".join([*facts, *([record["note"]] if record.get("note") else [])])


def _as_it_is(measured: list[dict[str, Any]]) -> list[str]:
    """Beside a library that was compiled: its ratios as it is."""
    if not any(COMPILED in b["ratios"] for b in measured):
        return []
    return [f"{_range([b['ratios'][LIBRARY]['ratio'] for b in measured if LIBRARY in b['ratios']])} of it as it is"]


def _first_look(architecture: Architecture) -> str:
    """A line a load; none where the architecture's own file holds a whole measurement."""
    folder = RESULTS / "h200"
    if any((folder / f"{architecture.name}{end}.json").is_file() for end in ("", "_vs_vllm")):
        return ""
    files = [folder / "first_look" / part / f"{architecture.name}.json" for part in ("", "compiled")]
    return "".join(line for file in files for line in _looked_at(architecture, _read(file)))


def _looked_at(architecture: Architecture, record: dict[str, Any]) -> list[str]:
    lines = []
    layers = "".join(_layers(**record.get("layers", {}))).removesuffix(" layers")
    for b in record.get("batches", []):
        if not b.get("ratios"):
            continue
        best = min(b["ratios"], key=lambda mode: b["ratios"][mode]["ratio"])
        ratio = b["ratios"][best]
        times = (f"{b['ms'][side]:.2f}" for side in ("ours", best))
        interval = f"{ratio['ratio']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        mode = best.removeprefix("library").strip("_") or "as it is"
        lines.append(" | ".join((_title(architecture), b["load"], str(b["batch"]), *times, mode, interval, layers)))
    return [f"| {line} |\n" for line in lines]


def _range(ratios: list[float]) -> str:
    low, high = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return low if low == high else f"{low} to {high}"


def _vllm(served: dict[str, Any]) -> str:
    engines = [part.get("engines", {}) for part in served.get("parts", [served])]
    versions = sorted({e["vllm"]["version"] for e in engines if "vllm" in e})
    return f"vLLM {' and '.join(versions)}".strip()


def _of_served(name: str, served: dict[str, Any]) -> list[str]:
    layers: list[str] = []
    if served.get("layers"):
        layers = _layers(served["layers"], find_model(served["model"]).hf_config.get("num_hidden_layers"))
    return [*layers, *([served["note"]] if served.get("note") else [])]


def _layers(measured: int | None = None, published: int | None = None) -> list[str]:
    return [] if measured is None or measured == published else [f"{measured} of {published} layers"]


def _number(count: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six")
    return words[count] if count < len(words) else str(count)


def _own_ops(architecture: Architecture) -> list[OpEntry]:
    return [e for e in ops_of_architecture(architecture.name) if e.name not in architecture.engine_ops]


def _counts(architecture: Architecture, entries: list[OpEntry], users: Counter[str]) -> str:
    cells = []
    for level in LEVELS:
        here = [e for e in entries if e.level == level]
        alone = sum(users[e.name] == 1 for e in here)
        cells.append(f"{len(here)} ({alone})")
    files = " / ".join(str(files_at_published_size(architecture.name)[f"L{n}"]) for n in LEVELS)
    tasks = " / ".join(str(architecture.published["tasks"][f"L{n}"]) for n in LEVELS)
    return "| " + " | ".join((_title(architecture), *cells, files, tasks)) + " |\n"


@cache
def files_at_published_size(name: str) -> dict[str, int]:
    """By level, of the ops that the published configuration builds; of the tiny one where none is shipped.

    The model is built on "meta": it takes no memory.
    """
    places = {(entry.module, entry.class_name): entry for entry in _own_ops(architecture(name))}
    source = find_model(_published_presets().get(name, f"tiny-{name}"))
    model = build_bare_model(source, build_config(source), torch.float32, torch.device("meta"))
    built = {places.get((type(module).__module__, type(module).__name__)) for module in model.modules()}
    return {f"L{n}": len({entry.path for entry in built if entry is not None and entry.level == n}) for n in LEVELS}


@cache
def _published_presets() -> dict[str, str]:
    """By architecture, one of several: they differ in sizes."""
    named = [preset for preset in presets() if not preset.startswith("tiny-")]
    return {architecture_of(find_model(preset).hf_config).name: preset for preset in named}


def _differences(architecture: Architecture) -> str:
    lines = [f"  - {level}: {note}\n" for level, note in architecture.count_notes.items()]
    return "".join([f"- {_title(architecture)}\n", *lines]) if lines else ""


def _stand_ins(architecture: Architecture) -> str:
    rows = ((_title(architecture), f"`{file}`", what) for file, what in architecture.stand_ins.items())
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _inputs() -> str:
    """A section for all that take and give the same."""
    alike: dict[tuple[Any, ...], list[Architecture]] = {}
    for each in ARCHITECTURES:
        alike.setdefault((*each.inputs.items(), each.gives), []).append(each)
    return "".join(map(_inputs_of, alike.values()))


def _inputs_of(alike: list[Architecture]) -> str:
    lines = [f"- `{name}`: {what}\n" for name, what in alike[0].inputs.items()]
    examples = "".join(f"{line}\n" for each in alike for line in each.examples)
    title = ", ".join(each.name for each in alike)
    return f"\n### {title}\n\n{''.join(lines)}- out: {alike[0].gives}\n\n```\n{examples}```\n"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


if __name__ == "__main__":
    main()
