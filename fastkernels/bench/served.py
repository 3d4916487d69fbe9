"""What a model says in a process of its own, with or without implementations in the place of its ops.

    python -m fastkernels.bench.served REQUEST.json RESULT.json

A process of its own, because replacements must be in place before the model is imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastkernels.errors import FastKernelsError


@dataclass(frozen=True)
class ServeRequest:
    """model, workload by name; candidates: sets by name or folder."""

    model: str
    workload: str
    candidates: tuple[str, ...] = ()
    device: str = "cpu"
    seed: int = 0


def serve(request: ServeRequest) -> dict[str, Any]:
    """{token_ids, texts, seconds, candidates: the overlay's report} from a fresh process.

    Errors: FastKernelsError with the process's last words when it failed.
    """
    with tempfile.TemporaryDirectory(prefix="fastkernels-") as folder:
        asked, answered = Path(folder) / "request.json", Path(folder) / "result.json"
        asked.write_text(json.dumps(asdict(request)))
        command = [sys.executable, "-m", "fastkernels.bench.served", str(asked), str(answered)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not answered.exists():
            raise FastKernelsError(
                f"{request.model} with {', '.join(request.candidates) or 'the baseline'} ended with exit code "
                f"{done.returncode}: {done.stderr.strip()[-1500:]}"
            )
        return json.loads(answered.read_text())


def _run(request: ServeRequest) -> dict[str, Any]:
    from fastkernels.engine.llm import LLM
    from fastkernels.engine.sampling_params import SamplingParams
    from fastkernels.workloads import find_workload

    workload = find_workload(request.workload)
    llm = LLM(request.model, device=request.device, seed=request.seed, num_pages=4096, candidates=request.candidates)
    prompts = workload.token_ids(llm.tokenizer)
    params = SamplingParams(temperature=0, max_tokens=workload.output_len, ignore_eos=True)
    started = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    return {
        "seconds": time.perf_counter() - started,
        "token_ids": [list(output.outputs[0].token_ids) for output in outputs],
        "texts": [output.outputs[0].text for output in outputs],
        "candidates": llm.replacements(),
    }


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_text())
    given["candidates"] = tuple(given["candidates"])
    Path(sys.argv[2]).write_text(json.dumps(_run(ServeRequest(**given))))
