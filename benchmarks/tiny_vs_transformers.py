"""The tiny Llama on a CPU: FastKernels' engine and transformers' generate decode the same batch from the same weights.

    OMP_NUM_THREADS=2 python benchmarks/tiny_vs_transformers.py

Greedy, the same token ids, the same number of tokens; passes alternate. Writes results/cpu/tiny_vs_transformers.json.
"""

from __future__ import annotations

import argparse
import json
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


def ours(prompts: list[list[int]], output_len: int) -> Callable[[], list[list[int]]]:
    llm = LLM(MODEL, device="cpu", enable_prefix_caching=False)
    params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
    return lambda: [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]


def transformers(folder: Path, prompts: list[list[int]], output_len: int) -> Callable[[], list[list[int]]]:
    from transformers import AutoModelForCausalLM

    write_config(MODEL, folder)
    write_checkpoint(MODEL, folder, seed=0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.tensor(prompts)
    mask = torch.ones_like(ids)

    def generate() -> list[list[int]]:
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=output_len, eos_token_id=None, pad_token_id=0
            )
        return out[:, ids.shape[1] :].tolist()

    return generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--input-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "cpu" / "tiny_vs_transformers.json")
    given = parser.parse_args()
    workload = Workload("batch", given.batch, given.input_len, given.output_len)
    prompts = [list(r.prompt_token_ids) for r in workload.requests(512, (1,))]
    with tempfile.TemporaryDirectory() as folder:
        engines = {
            "fastkernels": ours(prompts, given.output_len),
            "transformers": transformers(Path(folder), prompts, given.output_len),
        }
        answers = {name: generate() for name, generate in engines.items()}  # and a warm-up
        seconds: dict[str, list[float]] = {name: [] for name in engines}
        for number in range(given.repeats):
            for name in sorted(engines, reverse=bool(number % 2)):
                started = time.perf_counter()
                engines[name]()
                seconds[name].append(time.perf_counter() - started)
    num_tokens = given.batch * given.output_len
    speed = ratio(seconds["transformers"], seconds["fastkernels"])
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
        "bar": BAR,
        "is_bar_met": speed["ratio"] >= BAR,
        "agreement": agreement(answers["transformers"], answers["fastkernels"]).to_json(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(record, indent=1) + "\n")
    for name in engines:
        print(f"{name:13} {record[name]['median_seconds']:.3f} s, {record[name]['output_tokens_per_s']:,.0f} tokens/s")
    print(
        f"ratio {speed['ratio']:.2f} [{speed['low']:.2f}, {speed['high']:.2f}], bar {BAR}, "
        f"equal tokens {record['agreement']['share_equal']:.1%}, {record['num_threads']} threads"
    )


if __name__ == "__main__":
    main()
