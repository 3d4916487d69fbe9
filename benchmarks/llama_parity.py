"""Llama 3.1 8B in bf16 on a GPU beside transformers with the same (random) weights: cosines of last-token logits.

    python benchmarks/llama_parity.py --out benchmarks/results/h200/llama_parity.json

Three sequences grow through scattered pages: prefill in one batch, then a mixed batch, then decode batches; after
every step the logits of each sequence's last token are held against those that transformers computes of the whole
sequence at once. tests/tasks/test_llama_gpu.py asks for a cosine of 0.999 of each.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers
from torch.nn.functional import cosine_similarity

from fastkernels.bench.environment import environment
from fastkernels.tasks.baseline.L4.llama import LlamaForCausalLM
from fastkernels.tasks.configs.llama import LlamaConfig
from fastkernels.weights import random_weights

sys.path.append(str(Path(__file__).parents[1] / "tests" / "tasks"))

from paged_batches import PagedRun
from test_weights import published

LENGTHS = (1, 300, 2049)
NUM_DECODED = 4
LEAST_COSINE = 0.999
CONFIG: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
"""As published with Llama 3.1 8B, for transformers; ours has them from LlamaConfig."""


@dataclass(frozen=True)
class Row:
    """The last token of one sequence after one step."""

    step: int
    phase: str
    sequence: int
    position: int
    cosine: float
    is_same_argmax: bool


def build_models(seed: int = 0) -> tuple[LlamaForCausalLM, transformers.LlamaForCausalLM]:
    """Ours with random weights by seed, and transformers' with the same ones."""
    with torch.device("meta"):
        ours = LlamaForCausalLM(LlamaConfig.llama_3_1_8b()).bfloat16()
    ours.to_empty(device="cuda")
    random_weights(ours, seed)
    with torch.device("cuda"):
        config = transformers.LlamaConfig(**CONFIG)
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    theirs.load_state_dict(published(ours))
    return ours, theirs


def compare(ours: LlamaForCausalLM, theirs: transformers.LlamaForCausalLM) -> list[Row]:
    """Every step's last logits."""
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(128256, (n + NUM_DECODED + 8,), generator=generator).tolist() for n in LENGTHS]
    run = PagedRun(ours, sequences, max(LENGTHS) + NUM_DECODED + 8, seed=1)
    with torch.no_grad():
        expected = [theirs(torch.tensor([s], device="cuda")).logits[0] for s in sequences]
    batches = [
        ("prefill", dict(enumerate(LENGTHS))),
        ("mixed", {0: 1, 1: 8, 2: 1}),
        *[("decode", dict.fromkeys(range(len(LENGTHS)), 1))] * NUM_DECODED,
    ]
    rows = []
    for step, (phase, new) in enumerate(batches):
        for i, logits in run.step(new).items():
            position = run.num_computed[i] - 1
            given, wanted = logits[-1].float(), expected[i][position].float()
            cosine = float(cosine_similarity(given, wanted, dim=0))
            rows.append(Row(step, phase, i, position, cosine, bool(given.argmax() == wanted.argmax())))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    started = time.monotonic()
    rows = compare(*build_models())
    record = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment("cuda"),
        "config": CONFIG,
        "prompt_lengths": LENGTHS,
        "smallest_cosine": min(row.cosine for row in rows),
        "same_argmax": sum(row.is_same_argmax for row in rows),
        "rows": [asdict(row) for row in rows],
        "seconds": round(time.monotonic() - started, 1),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(f"smallest cosine {record['smallest_cosine']:.6f}, same argmax {record['same_argmax']} of {len(rows)}")


if __name__ == "__main__":
    main()
