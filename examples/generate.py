"""Continue the shipped prompts with a model: `python examples/generate.py [MODEL]`."""

from __future__ import annotations

import sys
import time

from fastkernels import LLM, SamplingParams
from fastkernels.workloads import prompts


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny-llama"
    llm = LLM(model, num_pages=1024)
    start = time.perf_counter()
    outputs = llm.generate(prompts(), SamplingParams(temperature=0.7, top_p=0.9, seed=1, max_tokens=32))
    seconds = time.perf_counter() - start
    for output in outputs[:4]:
        print(f"{output.prompt!r}\n -> {output.outputs[0].text!r}\n")
    num_tokens = sum(len(output.outputs[0].token_ids) for output in outputs)
    stats, device = llm.core.stats(), llm.core.info.device
    print(f"{len(outputs)} requests, {num_tokens} tokens in {seconds:.2f} s, {stats.num_steps} steps on {device}")


if __name__ == "__main__":
    main()
