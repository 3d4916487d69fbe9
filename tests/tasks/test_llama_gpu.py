"""Llama 3.1 8B in bf16 on a GPU against transformers with the same weights."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers
from paged_batches import PagedRun
from test_weights import published
from torch.nn.functional import cosine_similarity

from fastkernels.tasks.baseline.L4.llama import LlamaForCausalLM
from fastkernels.tasks.configs.llama import LlamaConfig
from fastkernels.weights import random_weights

pytestmark = pytest.mark.gpu

LENGTHS = (1, 300, 2049)
NUM_DECODED = 4


@pytest.fixture(scope="module")
def models() -> Iterator[tuple[LlamaForCausalLM, transformers.LlamaForCausalLM]]:
    if not torch.cuda.is_available():
        pytest.skip("No GPU.")
    with torch.device("meta"):
        ours = LlamaForCausalLM(LlamaConfig.llama_3_1_8b()).bfloat16()
    ours.to_empty(device="cuda")
    random_weights(ours, 0)
    config = transformers.LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
        rms_norm_eps=1e-5,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    with torch.device("cuda"):
        theirs = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    theirs.load_state_dict(published(ours))
    yield ours, theirs
    del ours, theirs
    torch.cuda.empty_cache()


def test_last_token_logits_of_8b_point_where_those_of_transformers_do(
    models: tuple[LlamaForCausalLM, transformers.LlamaForCausalLM],
) -> None:
    """Prefill in one batch, then a mixed batch, then decode batches; every step's last logits are compared."""
    ours, theirs = models
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(128256, (n + NUM_DECODED + 8,), generator=generator).tolist() for n in LENGTHS]
    run = PagedRun(ours, sequences, max(LENGTHS) + NUM_DECODED + 8, seed=1)
    last = {}
    batches = [dict(enumerate(LENGTHS)), {0: 1, 1: 8, 2: 1}, *[dict.fromkeys(range(3), 1)] * NUM_DECODED]
    for new in batches:
        for i, logits in run.step(new).items():
            last[i, run.num_computed[i] - 1] = logits[-1]
    with torch.no_grad():
        expected = [theirs(torch.tensor([s], device="cuda")).logits[0] for s in sequences]
    cosines = {place: float(cosine_similarity(row.float(), expected[place[0]][place[1]].float(), dim=0))
               for place, row in last.items()}  # fmt: skip
    print(f"smallest cosine {min(cosines.values()):.6f} of {len(cosines)}")
    assert len(cosines) == 3 * len(batches)
    assert min(cosines.values()) >= 0.999, cosines
