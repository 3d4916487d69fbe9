"""Architectures beside their libraries of record: parity and speed at the published size, a file each.

    python benchmarks/architectures.py dinov3 --out benchmarks/results/h200/dinov3.json
    python benchmarks/architectures.py --all --deadline 560 --out-dir benchmarks/results/h200 --skip-done
    python benchmarks/architectures.py --all --tiny --device cpu --out-dir /tmp/tiny
    python benchmarks/architectures.py --table --out-dir benchmarks/results/h200

Both models have the same random weights and are in one process, in the published dtype. Per load and number of
requests: ours as the engine runs it (on a GPU by CUDA graphs), the library's as it is and compiled by torch (mode of
--compile); rounds take turns, medians and the ratios' 95 % intervals over rounds. A ratio over 1 says that ours is
faster. Parity: both against the library in float32 when it fits beside them, else ours against it in the same dtype.
On a GPU the kernels that our time goes to are in the file, too.

--all: one after another in order of value, each in a process of its own, so that one that fails is a record of its
error; a file is whole after every number of requests, and says in "status" whether it is finished. An earlier file
with more measured in it stays, and the new one lies beside it as .json.less. --together: so many
are built and compiled at once, in one GPU's memory; whoever measures stops the others for as long.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from fastkernels.bench.environment import environment  # noqa: E402
from fastkernels.engine.model_source import find_model  # noqa: E402
from fastkernels.oracles.measure import Measurement, NotReady, Settings, first_line  # noqa: E402
from fastkernels.oracles.oracle import Load, Oracle, oracle_of  # noqa: E402
from fastkernels.oracles.turns import forget  # noqa: E402
from fastkernels.registry import ARCHITECTURES, Architecture, architecture  # noqa: E402

Json = dict[str, Any]

FIRST = ("dinov3", "vjepa2", "bge_m3", "pi0", "sdxl", "lightgcn", "yolov10", "dlrmv2", "vjepa2_classification")
LAST = ("whisper", "qwen2_vl", "mixtral", "mamba2", "gpt-oss", "qwen3_next", "llama")
"""Of those the published comparison is with vLLM: benchmarks/llama_vs_vllm measures it."""

FINISHED, CUT_SHORT, FAILED = "finished", "cut short by the deadline", "failed"
_DTYPES = {"BF16": "bfloat16", "FP16": "float16", "FP32": "float32", "MXFP4": "bfloat16"}
_LEAST_SECONDS, _GRACE = 40.0, 15.0
"""What an architecture is begun with; what a process has to end in, once its own time is over."""


def main(words: Sequence[str] | None = None) -> None:
    given = _arguments(words)
    if given.table:
        print(table(given.out_dir))
    elif given.all:
        run_all(given)
        print(table(given.out_dir))
    else:
        record = measure(architecture(given.name), given)
        print(json.dumps({key: record.get(key) for key in ("architecture", "status", "error", "seconds")}))
        raise SystemExit(record["status"] == FAILED)


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("name", nargs="?", help="a registered architecture")
    add("--all", action="store_true", help="every registered architecture, one after another")
    add("--table", action="store_true", help="of --out-dir's files; nothing is measured")
    add("--out", type=Path, help="the file of one architecture")
    add("--out-dir", type=Path, help="the folder of --all's files and logs")
    add("--only", nargs="+", help="of --all: these, in this order")
    add("--skip-done", action="store_true", help="leave out whose file is finished")
    add("--together", type=int, default=1, help="of --all: so many build and compile at once; each measures alone")
    add("--turns", type=Path, help="a folder by which processes on one device stop each other to measure")
    add("--deadline", type=float, help="seconds from the start after which nothing begins that would not end")
    add("--most-seconds", type=float, default=420.0, help="of --all: for one architecture")
    add("--layers", type=int, help="fewer than published; left out: as many as fit beside the library's copy")
    add("--tiny", action="store_true", help="the oracle's test-size configuration in float32")
    add("--batch", type=int, nargs="+", help="numbers of requests at once; left out: each load's own")
    add("--loads", nargs="+", help="of an architecture's loads; left out: all")
    add("--device", default="cuda")
    add("--dtype", help="left out: the published one")
    add("--compile", default="reduce-overhead", help="torch.compile's mode, or none")
    add("--compile-seconds", type=float, default=200.0, help="what takes longer to compile is left out")
    add("--rounds", type=int, default=10)
    add("--round-seconds", type=float, default=0.3, help="calls are repeated to last so long")
    given = parser.parse_args(words)
    if given.all or given.table:
        if given.out_dir is None or given.name is not None:
            parser.error("--all and --table take an --out-dir and no name")
    elif given.name is None or given.out is None:
        parser.error("say a name and --out, or --all and --out-dir")
    return given


def measure(entry: Architecture, given: argparse.Namespace) -> Json:
    """The record of one architecture, written to given.out again after every number of requests."""
    started = time.monotonic()
    dtype = given.dtype or ("float32" if given.tiny else _DTYPES[entry.published["dtype"]])
    record: Json = {"schema_version": 2, "architecture": entry.name, "status": "running", "dtype": dtype}
    record |= {"published": dict(entry.published), "environment": environment(given.device), "batches": []}

    def save(**changes: Any) -> None:
        record.update(changes, seconds=round(time.monotonic() - started, 1))
        _write(given.out, record)

    try:
        oracle = oracle_of(entry)
        layers = given.layers or oracle.most_layers
        sizes = next(iter(oracle.tiny().values())) if given.tiny else oracle.published(layers)
        save(**_facts(oracle, sizes))
        compile_mode = None if given.compile == "none" else given.compile
        settings = Settings(
            given.device,
            dtype,
            compile_mode,
            given.compile_seconds,
            given.rounds,
            given.round_seconds,
            turns=given.turns,
        )
        built = Measurement(entry, oracle, sizes, settings)
        num = sum(p.numel() for p in built.theirs.parameters())
        save(num_parameters=num, note=oracle.measured_against(built.theirs))
        _say(started, f"{entry.name}: both models, {num / 1e6:,.1f} million parameters")
        longest = 0.0
        for load, batch in _plan(oracle, given):
            begun = time.monotonic()
            if given.deadline is not None and begun - started + 1.2 * longest > given.deadline:
                save(status=CUT_SHORT)
                return record
            record["batches"].append(_one(built, load, batch))
            if not _gave_up(record["batches"][-1]):  # what is given up once is not tried again
                longest = max(longest, time.monotonic() - begun)
            save()
            _say(started, _line(record["batches"][-1]))
        save(status=FINISHED)
        if built.device.type == "cuda":
            for one, (load, batch) in zip(record["batches"], _plan(oracle, given), strict=True):
                one["costs"] = _costs(built, load, batch)
                save()
    except Exception as error:
        save(status=FAILED, error=first_line(error))
    return record


def _facts(oracle: Oracle, sizes: Mapping[str, Any]) -> Json:
    library = oracle.library or oracle.requires[0].partition(".")[0].replace("_", "-")
    published = oracle.published(None)
    layers = {"measured": oracle.num_layers(sizes), "published": oracle.num_layers(published)}
    return {
        "library": f"{library} {importlib.metadata.version(library)}",
        "provenance": find_model(oracle.preset).hf_config.get("_provenance") if oracle.preset else None,
        "layers": layers,
        "sizes": sizes,
    }


def _plan(oracle: Oracle, given: argparse.Namespace) -> Iterator[tuple[Load, int]]:
    for load in oracle.loads:
        if not given.loads or load.name in given.loads:
            for batch in given.batch or load.batches:
                yield load, batch


def _one(built: Measurement, load: Load, batch: int) -> Json:
    try:
        return built.measured(load, batch)
    except Exception as error:  # too large a batch, say: the others may still run
        return {"load": load.name, "batch": batch, "is_whole": load.is_whole, "error": first_line(error)}


def _gave_up(one: Json) -> bool:
    return any(mode.get("error", "").startswith(NotReady.__name__) for mode in one.get("modes", {}).values())


def _costs(built: Measurement, load: Load, batch: int) -> Json:
    try:
        return built.costs(load, batch)
    except Exception as error:
        return {"error": first_line(error)}


def _line(one: Json) -> str:
    head = f"  {one['load']}, {one['batch']}: "
    if "error" in one:
        return head + one["error"]
    ratios = [f"{n} {r['ratio']:.3f} [{r['low']:.3f}, {r['high']:.3f}]" for n, r in one["ratios"].items()]
    failed = [f"{n}: {mode['error']}" for n, mode in one["modes"].items() if "error" in mode]
    return head + f"ours {one['ms']['ours']:.3f} ms; " + "; ".join([*ratios, *failed])


def run_all(given: argparse.Namespace) -> None:
    """Each architecture in a process of its own, --together of them at once, with the time that is left."""
    started = time.monotonic()
    given.out_dir.mkdir(parents=True, exist_ok=True)
    processes: set[subprocess.Popen[bytes]] = set()

    def one(name: str) -> None:
        out = given.out_dir / f"{name}.json"
        if given.skip_done and read(out).get("status") == FINISHED:
            return _say(started, f"{name}: done before")
        left = float("inf") if given.deadline is None else given.deadline - (time.monotonic() - started) - _GRACE
        seconds = min(given.most_seconds, left)
        if seconds < _LEAST_SECONDS:
            return _say(started, f"{name}: {left:.0f} s are left, which is too little to begin")
        return _say(started, f"{name}: {_child(name, out, seconds, given, processes)}")

    with tempfile.TemporaryDirectory() as turns, ThreadPoolExecutor(given.together) as pool:
        given.turns = given.turns or (Path(turns) if given.together > 1 else None)
        try:
            list(pool.map(one, given.only or order()))
        except BaseException:  # an interrupt: threads that wait for processes do not hear of it
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(processes):
                _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # with what compiles for it
    process.wait()


def order() -> list[str]:
    """Of all that are registered; those that no list names between the two."""
    rest = [a.name for a in ARCHITECTURES if a.name not in FIRST + LAST]
    return [*FIRST, *rest, *LAST]


def _child(
    name: str, out: Path, seconds: float, given: argparse.Namespace, processes: set[subprocess.Popen[bytes]]
) -> str:
    """What became of it."""
    command = [sys.executable, str(Path(__file__).resolve()), name, "--out", str(out), "--deadline", str(seconds)]
    for option in ("device", "dtype", "compile", "compile_seconds", "rounds", "round_seconds", "layers", "turns"):
        value = getattr(given, option)
        command += [] if value is None else [f"--{option.replace('_', '-')}", str(value)]
    command += ["--batch", *map(str, given.batch)] if given.batch else []
    command += ["--loads", *given.loads] if given.loads else []
    command += ["--tiny"] if given.tiny else []
    _set_aside(out)
    with out.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        processes.add(process)
        try:
            code: int | None = process.wait(seconds + _GRACE)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                _end(process)
            processes.discard(process)
            if given.turns is not None:
                forget(given.turns, process.pid)
    record = read(out)
    if record.get("status") not in (FINISHED, CUT_SHORT, FAILED):
        ended = f"ended after {seconds:.0f} s" if code is None else f"its process ended with {code}"
        tail = [line for line in out.with_suffix(".log").read_text(errors="replace").splitlines() if line.strip()]
        has_some = any("ratios" in one for one in record.get("batches", []))
        status = CUT_SHORT if has_some and code is None else FAILED
        record |= {"architecture": name, "status": status, "error": f"{ended}: {''.join(tail[-1:])[:300]}"}
        _write(out, record)
    return f"{record['status']}, {len(record.get('batches', []))} measured. {record.get('error', '')}{_chosen(out)}"


def _set_aside(out: Path) -> None:
    """The file of an earlier try, or the one that was aside of it, where a try was interrupted that had less."""
    if out.is_file() and _num_measured(out) >= _num_measured(_aside(out)):
        out.replace(_aside(out))
    out.unlink(missing_ok=True)


def _chosen(out: Path) -> str:
    """The earlier file is put back where it has more than the new one; a word of it."""
    earlier, less = _aside(out), out.with_name(f"{out.name}.less")
    if _num_measured(earlier) <= _num_measured(out):
        earlier.unlink(missing_ok=True)
        return ""
    out.replace(less)
    earlier.replace(out)
    return f" {out.name} stays as it was, with {_num_measured(out)} measured; this try is in {less.name}."


def _aside(out: Path) -> Path:
    return out.with_name(f"{out.name}.before")


def _num_measured(path: Path) -> int:
    return sum("ratios" in one for one in read(path).get("batches", []))


def table(folder: Path) -> str:
    """A line a load and number of requests."""
    lines = [
        f"{'architecture':22} {'load':14} {'batch':>5} {'ours ms':>10} {'library':>10} {'best':>10}  ratio to best"
    ]
    for name in order():
        record = read(folder / f"{name}.json")
        for one in record.get("batches", []):
            head = f"{name:22} {one['load']:14} {one['batch']:5} "
            lines.append(head + (one["error"][:90] if "error" in one else _cells(one)))
        if record and record["status"] != FINISHED:
            lines.append(f"{name:22} {record['status']}: {record.get('error', '')}")
    return "\n".join(lines)


def _cells(one: Json) -> str:
    ms, ratios = one["ms"], one["ratios"]
    best = min(ratios, key=lambda name: ratios[name]["ratio"])
    cosines = [p["ours"]["least_cosine"] for p in one["parity"].values() if "least_cosine" in _ours(p)]
    parity = f", least cosine {min(cosines):.6f}" if cosines else ""
    interval = f"{ratios[best]['ratio']:.3f} [{ratios[best]['low']:.3f}, {ratios[best]['high']:.3f}] {best}"
    return f"{ms['ours']:10.3f} {ms['library']:10.3f} {ms[best]:10.3f}  {interval}{parity}"


def _ours(parity: Any) -> Json:
    return parity.get("ours", {}) if isinstance(parity, dict) else {}


def read(path: Path) -> Json:
    """Empty when there is none."""
    try:
        found: Json = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found


def _write(path: Path, record: Json) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def _say(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:6.1f} s] {text}", flush=True)


if __name__ == "__main__":
    main()
