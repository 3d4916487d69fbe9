"""The tiny Llama on a CPU: FastKernels' engine and transformers' generate decode the same batch from the same weights.

    OMP_NUM_THREADS=2 python benchmarks/tiny_vs_transformers.py

Greedy, the same token ids, the same number of tokens; passes alternate. FastKernels compiles its decode steps
(warm="full"); transformers runs as it comes, and once more with its static cache and torch.compile. Waits for a machine
that does nothing else, and writes results/cpu/tiny_vs_transformers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "llama_vs_vllm")]

from checkpoint import write_checkpoint, write_config  # noqa: E402

from fastkernels import LLM, SamplingParams  # noqa: E402
from fastkernels.bench.e2e.metrics import ratio  # noqa: E402
from fastkernels.bench.e2e.tokens import agreement, digest  # noqa: E402
from fastkernels.bench.environment import environment  # noqa: E402
from fastkernels.workloads import Workload  # noqa: E402

MODEL = "tiny-llama"
BAR = 3.0
QUIET_LOAD = 0.7


def ours(prompts: list[list[int]], output_len: int) -> Callable[[], list[list[int]]]:
    llm = LLM(MODEL, device="cpu", enable_prefix_caching=False, warm="full")
    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
    return lambda: [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params, use_tqdm=False)]


def transformers(
    folder: Path, prompts: list[list[int]], output_len: int, is_compiled: bool = False
) -> Callable[[], list[list[int]]]:
    from transformers import AutoModelForCausalLM, CompileConfig

    options: dict[str, Any] = {}
    if is_compiled:
        compile_config = CompileConfig(fullgraph=False, mode="default", dynamic=False)
        compile_config._compile_all_devices = True  # else generate compiles on GPUs alone
        options = {"cache_implementation": "static", "compile_config": compile_config}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts)
    mask = torch.ones_like(ids)

    def generate() -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=output_len,
                eos_token_id=None,
                pad_token_id=0,
                **options,
            )
        return out[:, ids.shape[1] :].tolist()

    return generate


def wait_until_quiet(most_seconds: float) -> float:
    """The load average of the last minute, waited for until this process alone could have caused it."""
    end = time.monotonic() + most_seconds
    while os.getloadavg()[0] > QUIET_LOAD and time.monotonic() < end:
        time.sleep(5)
    return os.getloadavg()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu" / "tiny_vs_transformers.json")
    parser.add_argument("--quiet-seconds", type=float, default=300, help="the longest wait for an idle machine")
    given = parser.parse_args()
    workload = Workload("batch", given.batch, given.input_len, given.output_len)
    prompts = [list(r.prompt_token_ids) for r in workload.requests(512, (1,))]
    with tempfile.TemporaryDirectory() as folder:
        write_config(MODEL, Path(folder))
        write_checkpoint(MODEL, Path(folder), seed=0)
        engines = {
            "fastkernels": ours(prompts, given.output_len),
            "transformers": transformers(Path(folder), prompts, given.output_len),
            "transformers_compiled": transformers(Path(folder), prompts, given.output_len, is_compiled=True),
        }
        answers = {name: generate() for name, generate in engines.items()}  # and a warm-up
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        load = [wait_until_quiet(given.quiet_seconds)]
        for number in range(given.repeats):
            for name in sorted(engines, reverse=bool(number % 2)):
                started = time.perf_counter()
                engines[name]()
                seconds[name].append(time.perf_counter() - started)
        load.append(os.getloadavg()[0])
    num_tokens = given.batch * given.output_len
    speed = ratio(seconds["transformers"], seconds["fastkernels"])
    speed_compiled = ratio(seconds["transformers_compiled"], seconds["fastkernels"])
    record: dict[str, Any] = {
        "benchmark": "tiny_vs_transformers",
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "settings": {
            "model": MODEL,
            "batch": given.batch,
            "input_len": given.input_len,
            "output_len": given.output_len,
        },
        "num_threads": torch.get_num_threads(),
        "load_average_before_and_after": load,
        "environment": environment("cpu"),
        **{
            name: {
                "seconds": values,
                "median_seconds": median(values),
                "output_tokens_per_s": num_tokens / median(values),
                "digest": digest(answers[name]),
            }
            for name, values in seconds.items()
        },
        "ratio": speed,
        "ratio_transformers_compiled": speed_compiled,
        "bar": BAR,
        "is_bar_met": speed["ratio"] >= BAR,
        "agreement": agreement(answers["transformers"], answers["fastkernels"]).to_json(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    for name in engines:
        print(f"{name:21} {record[name]['median_seconds']:.3f} s, {record[name]['output_tokens_per_s']:,.0f} tokens/s")
    print(
        f"ratio {speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}], bar {BAR}, "
        f"compiled {speed_compiled['ratio']:.2f}, equal tokens {record['agreement']['share_equal']:.1%}, "
        f"{record['num_threads']} threads, load {load[0]:.1f} to {load[1]:.1f}"
    )


if __name__ == "__main__":
    main()
