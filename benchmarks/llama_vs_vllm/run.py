"""FastKernels and vLLM on the same GPU in one go, offline: the same weights, token ids, limits and number of KV tokens.

    python benchmarks/llama_vs_vllm/run.py --vllm-site /tmp/site --out "$OUT/llama_vs_vllm.json"
    python benchmarks/llama_vs_vllm/run.py --model mixtral --vllm-site /tmp/site --out "$OUT/mixtral_vs_vllm.json"
    python benchmarks/llama_vs_vllm/run.py --merge part1.json part2.json --out llama_vs_vllm.json

Each engine has a process of its own and a bounded share of the memory; both stay alive and one works while the other
waits, in the order ours, vLLM, vLLM, ours, ... The file is written again after every repeat; --deadline ends the run in
good time. Greedy, ignore_eos, no prefix cache, no detokenisation. models.py says what differs from model to model:
fewer layers where two engines would not fit otherwise. Runs that name one file as --turns start beside each other, and
measure one after another: who measures waits until nobody starts. vLLM asks for --vllm-memory of the card to be free.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE)]

from models import architecture_named, comparison_of, kv_bytes_per_token, with_layers  # noqa: E402
from results import BARS, Json, merged, summarised, table, write  # noqa: E402

from fastkernels.bench.e2e.scenario import WHOLE_WARMUP_TOKENS  # noqa: E402
from fastkernels.bench.e2e.tokens import agreement  # noqa: E402
from fastkernels.engine.model_source import find_model  # noqa: E402
from fastkernels.oracles.turns import Turns  # noqa: E402
from fastkernels.workloads import capped, find_traffic  # noqa: E402

SCENARIOS = ("single", "batch32", "decode_heavy", "balanced", "prefill_heavy", "azure_conv")
_MERGING = ("merge", "newest")
MADE_OF = "made_of.json"
"""Beside the weights: the config, seed and dtype that they were made of."""
_QUERY = "clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu,memory.used,clocks_event_reasons.active"


class Worker:
    """One engine's process: an order in, an answer out."""

    def __init__(self, name: str, environment: dict[str, str], log: Path) -> None:
        self.name, self.log = name, log
        self.spawned = time.time()
        self._is_killed = False
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-P", str(HERE / "worker.py"), name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, env=environment, text=True,
            )  # fmt: skip

    def ask(self, order: Json, seconds: float | None = None) -> Json:
        """seconds: after which it is killed. Errors: RuntimeError with its last words."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        killer = threading.Timer(seconds, self._kill) if seconds is not None else None
        if killer is not None:
            killer.start()
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            if killer is not None:
                killer.cancel()
        if line:
            answer: Json = json.loads(line)
        else:
            code = self.process.wait()
            answer = {"error": f"not ready after {seconds} s" if self._is_killed else f"its process ended with {code}"}
        if "error" in answer:
            tail = self.log.read_text(errors="replace")[-6000:]
            raise RuntimeError(f"{self.name}: {answer['error']}\n--- the end of {self.log} ---\n{tail}")
        return answer

    def close(self) -> None:
        pipe: IO[str] | None = self.process.stdin
        try:
            if pipe is not None:
                pipe.close()
            self.process.wait(30)
        except (OSError, subprocess.TimeoutExpired):
            self._kill()
            self.process.wait()

    def _kill(self) -> None:
        """With the processes that it started."""
        self._is_killed = True
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self.process.pid)
            for process in [own, *own.children(recursive=True)]:
                process.kill()


class Run:
    """The record, its file, and the time that is left."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.started = time.time()
        self.record: Json = {
            "schema_version": 1,
            "benchmark": f"{architecture_named(given.model)}_vs_vllm",
            "model": given.model,
            "layers": given.layers,
            "note": given.note,
            "status": "running",
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "settings": {
                key: v.name if isinstance(v, Path) else v for key, v in vars(given).items() if key not in _MERGING
            },
            "machine": machine(),
            "engines": {},
            "scenarios": {},
        }

    @property
    def elapsed(self) -> float:
        return time.time() - self.started

    def fits(self, seconds: float) -> bool:
        return self.given.deadline is None or self.elapsed + seconds < self.given.deadline

    def save(self) -> None:
        self.record["seconds"] = self.elapsed
        write(self.given.out, self.record)

    def say(self, text: str) -> None:
        print(f"[{self.elapsed:6.1f} s] {text}", flush=True)


def machine() -> Json:
    """What nvidia-smi and the processor say of themselves."""
    query = "name,uuid,driver_version,memory.total,clocks.max.sm,clocks.applications.graphics,power.limit"
    cpu = next((x.split(":", 1)[1].strip() for x in _lines("/proc/cpuinfo") if x.startswith("model name")), "")
    return {"gpu": smi(query), "cpu": cpu, "num_cores": os.cpu_count()}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def smi(query: str) -> Json | None:
    """Values by name of the GPU that CUDA calls its first; None without nvidia-smi."""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = ["nvidia-smi", "-i", first, f"--query-gpu={query}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(zip(query.split(","), (v.strip() for v in done.stdout.strip().split(",")), strict=False))


def requests_of(name: str, given: argparse.Namespace, hf_config: Json) -> Json:
    """Token ids and lengths of a scenario, the same for both engines."""
    traffic = find_traffic(name).scaled(given.scale)
    if given.num_requests is not None:
        traffic = traffic.limited(min(given.num_requests, traffic.num_requests))
    eos = hf_config.get("eos_token_id")
    ends = eos if isinstance(eos, list) else [] if eos is None else [eos]
    ends = [*ends, *(v for k, v in hf_config.items() if k.endswith("_token_id") and isinstance(v, int))]
    requests, num_cut = capped(traffic.requests(hf_config["vocab_size"], ends), given.max_model_len)
    return {
        "num_cut": num_cut,
        "requests": [{"prompt": list(r.prompt_token_ids), "output_len": r.output_len} for r in requests],
    }


def engine_environment(site: Path | None, label: str) -> dict[str, str]:
    """PYTHONPATH of one engine: its own site first; the checkout only for ours."""
    environment = dict(os.environ)
    own = [str(site)] if site else []
    paths = [*own, *([str(ROOT)] if label == "ours" else [])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment |= {"DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false", "VLLM_LOGGING_LEVEL": "INFO"}
    return environment


def prepare_weights(run: Run, folder: Path) -> Path:
    """The directory that vLLM loads: the preset's random tensors for the seed, or its config alone.

    Errors: SystemExit when --checkpoint holds the weights of another run.
    """
    given = run.given
    directory = given.checkpoint or folder / "checkpoint"
    config = find_model(given.config).hf_config
    wanted = {k: v for k, v in config.items() if not k.startswith("_")} | {"seed": given.seed, "dtype": given.dtype}
    if (directory / "model.safetensors.index.json").exists():
        check_weights(directory, wanted)
        return directory
    command = [sys.executable, str(HERE / "checkpoint.py"), given.config, str(directory), "--seed", str(given.seed)]
    command += ["--dtype", given.dtype, *([] if given.weights == "shared" else ["--config-only"])]
    environment = engine_environment(given.ours_site, "ours")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"The checkpoint was not written: {done.stderr[-3000:]}")
    (directory / MADE_OF).write_text(json.dumps(wanted))
    run.say(f"checkpoint: {done.stdout.strip()}")
    return directory


def check_weights(directory: Path, wanted: Json) -> None:
    """Ours makes its weights from the preset and the seed. Errors: SystemExit when those here are not the same."""
    path = directory / MADE_OF
    found: Json = json.loads(path.read_text()) if path.exists() else {}
    wanted = json.loads(json.dumps(wanted))
    wrong = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    if wrong:
        told = ", ".join(f"{name} {found.get(name)!r}, not {wanted.get(name)!r}" for name in wrong[:3])
        told = told if found else f"no {MADE_OF}, which says what they are of"
        raise SystemExit(f"--checkpoint {directory} holds other weights: {told}. Delete it, or name another folder.")


def start_engines(run: Run, checkpoint: Path, logs: Path, hf_config: Json) -> dict[str, Worker]:
    """Ours first: while vLLM starts, nothing else on the device may change what is free."""
    given = run.given
    common = {
        "do": "start", "dtype": given.dtype, "seed": given.seed, "max_model_len": given.max_model_len,
        "max_num_seqs": given.max_num_seqs, "max_num_batched_tokens": given.max_num_batched_tokens,
        "page_size": 16, "kv_tokens": given.kv_tokens, "device": given.device,
        "kv_bytes_per_token": kv_bytes_per_token(hf_config, given.dtype),
        "gpu_memory_utilization": given.vllm_memory,
        "load_format": "auto" if given.weights == "shared" else "dummy",
    }  # fmt: skip
    workers: dict[str, Worker] = {}
    try:
        for name in given.engines:
            site = given.ours_site if name == "ours" else given.vllm_site
            worker = workers[name] = Worker(name, engine_environment(site, name), logs / f"{name}.log")
            own = json.loads(given.ours if name == "ours" else given.vllm)
            own = own if name == "ours" else {**comparison_of(given.model).vllm, **own}
            model = given.config if name == "ours" else str(checkpoint)
            order = {**common, "model": model, "options": own, "spawned": worker.spawned}
            facts = worker.ask(order, given.start_seconds)
            weights = "random by seed" if name == "ours" else "checkpoint" if given.weights == "shared" else "dummy"
            run.record["engines"][name] = {**facts, "weights": weights, "options": own}
            run.say(f"{name} is ready: {facts['startup_seconds']:.1f} s, {facts['kv_tokens']} KV tokens")
            run.save()
    except BaseException:
        close(workers)
        raise
    return workers


def close(workers: dict[str, Worker]) -> None:
    while workers:
        workers.popitem()[1].close()


def measure(run: Run, workers: dict[str, Worker], name: str, folder: Path, hf_config: Json) -> bool:
    """All repeats of one scenario, as far as the deadline lets it; whether it came to its end."""
    given = run.given
    made = requests_of(name, given, hf_config)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(made["requests"]))
    scenario: Json = {
        "name": name,
        "num_requests": len(made["requests"]),
        "num_prompt_tokens": sum(len(r["prompt"]) for r in made["requests"]),
        "num_output_tokens": sum(r["output_len"] for r in made["requests"]),
        "num_cut": made["num_cut"],
        "bar": BARS.get(name) if hf_config["architectures"] == ["LlamaForCausalLM"] else None,
        "agreement": None,
        "repeats": [],
    }
    tokens = {engine: folder / f"{name}-{engine}.json" for engine in workers}
    longest = 0.0
    is_small = scenario["num_prompt_tokens"] + scenario["num_output_tokens"] <= WHOLE_WARMUP_TOKENS
    warmup_share = 1.0 if is_small else given.warmup_share
    plan = [(-1, list(workers))] if given.warmup_share else []
    plan += [(n, list(workers) if n % 2 == 0 else list(reversed(workers))) for n in range(given.repeats)]
    for number, order in plan:
        if not run.fits(1.15 * len(order) * longest):
            run.say(f"{name}: the deadline is near; repeat {number} is left out")
            break
        for engine in order:
            share = warmup_share if number < 0 else 1.0
            before = smi(_QUERY)
            where = str(tokens[engine]) if number == 0 else None
            answer = workers[engine].ask({"do": "run", "requests": str(file), "share": share, "tokens": where})
            longest = max(longest, answer["seconds"] / share)
            scenario["repeats"].append(
                {"engine": engine, "repeat": number, "is_warmup": number < 0, "at_s": run.elapsed, **answer,
                 "gpu_before": before, "gpu_after": smi(_QUERY)}
            )  # fmt: skip
            run.record["scenarios"][name] = summarised(scenario)
            run.save()
            speed = answer["num_output_tokens"] / answer["seconds"]
            run.say(f"{name} {'warm-up' if number < 0 else number} {engine}: {answer['seconds']:.3f} s, {speed:,.0f}/s")
        if number == 0 and len(tokens) == 2 and given.weights == "shared":
            ours, theirs = (json.loads(tokens[engine].read_text()) for engine in ("ours", "vllm"))
            scenario["agreement"] = agreement(theirs, ours).to_json()
    run.record["scenarios"][name] = summarised(scenario)
    run.save()
    return sum(not r["is_warmup"] for r in scenario["repeats"]) == given.repeats * len(workers)


def benchmark(given: argparse.Namespace) -> Json:
    run = Run(given)
    turns = Turns(given.turns) if given.turns else None
    given.out.parent.mkdir(parents=True, exist_ok=True)
    logs = given.logs or given.out.parent
    logs.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="llama-vs-vllm-") as temporary:
        folder = Path(temporary)
        given.config = with_layers(given.model, given.layers, folder)
        hf_config = find_model(given.config).hf_config
        needs_checkpoint = "vllm" in given.engines
        checkpoint = prepare_weights(run, folder) if needs_checkpoint else folder
        workers = start_engines(run, checkpoint, logs, hf_config)
        if needs_checkpoint and given.checkpoint is None:
            shutil.rmtree(checkpoint)  # loaded: the disk may have to hold those of other runs
        try:
            with turns.alone() if turns else contextlib.nullcontext():
                done = [measure(run, workers, name, folder, hf_config) for name in given.scenarios]
                close(workers)  # before another run measures
            run.record["status"] = "finished" if all(done) else "cut short by the deadline"
        finally:
            run.save()
            close(workers)
    return run.record


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, help="the JSON file")
    add("--merge", type=Path, nargs="+", help="put these files together instead of measuring")
    add("--newest", action="store_true", help="with --merge: a scenario in a later file takes the earlier one's place")
    add("--model", default="llama", help="an architecture of models.py, or a preset of FastKernels")
    add("--layers", type=int, help="fewer than published; left out: as models.py says")
    add("--scenarios", nargs="+", default=list(SCENARIOS))
    add("--repeats", type=int, default=3)
    add("--warmup-share", type=float, default=0.25, help="of each scenario's requests, run first and not counted")
    add("--engines", nargs="+", choices=("ours", "vllm"), default=["ours", "vllm"])
    add("--deadline", type=float, help="seconds from the start after which no repeat begins that would not end")
    add("--start-seconds", type=float, help="an engine that is not ready by then ends the run")
    add("--turns", type=Path, help="a file by which runs on one device take turns to measure")
    add("--weights", choices=("shared", "own"), default="shared", help="own: vLLM's dummy weights, no checkpoint")
    add("--checkpoint", type=Path, help="where the shared weights are, or are to be written; else a temporary folder")
    add("--vllm-site", type=Path, help="the folder that holds vLLM, for its process alone")
    add("--ours-site", type=Path, help="a folder of packages for our process alone")
    add("--dtype", default="bfloat16")
    add("--device", help="of ours; the GPU when there is one")
    add("--seed", type=int, default=0)
    add("--max-model-len", type=int, default=8192, help="also what requests are cut to")
    add("--max-num-seqs", type=int, help="left out: as models.py says, 1024 for most")
    add("--max-num-batched-tokens", type=int, default=8192)
    add("--kv-tokens", type=int, help="of each engine; left out: as models.py says, 41 GiB for Llama-3.1-8B")
    add("--vllm-memory", type=float, default=0.42, help="its gpu_memory_utilization; its KV cache is --kv-tokens")
    add("--ours", default="{}", help="more EngineConfig fields as JSON")
    add("--vllm", default="{}", help="more arguments of vLLM's LLM as JSON")
    add("--scale", type=float, default=1.0, help="times all lengths: below 1 for a tiny model")
    add("--num-requests", type=int, help="at most this many a scenario")
    add("--logs", type=Path, help="the folder of the engines' logs; --out's when left out")
    given = parser.parse_args(words)
    known = comparison_of(given.model)
    given.model, given.note = known.preset, known.note
    for name in ("layers", "max_num_seqs", "kv_tokens"):
        if getattr(given, name) is None:
            setattr(given, name, getattr(known, name))
    return given


def main(words: Sequence[str] | None = None) -> None:
    given = arguments(words)
    if given.merge:
        record = merged([json.loads(path.read_text()) for path in given.merge], given.newest)
        write(given.out, record)
    else:
        record = benchmark(given)
    print(table(record))


if __name__ == "__main__":
    main()
