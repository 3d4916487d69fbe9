"""Llama 3.1 8B in bf16 on a GPU against transformers with the same weights."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.gpu

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "llama_parity.py"


def test_last_token_logits_of_8b_point_where_those_of_transformers_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefill in one batch, then a mixed batch, then decode batches; every step's last logits are compared."""
    spec = importlib.util.spec_from_file_location("llama_parity", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    llama_parity = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "llama_parity", llama_parity)  # its dataclass looks itself up
    spec.loader.exec_module(llama_parity)
    rows = llama_parity.compare(*llama_parity.build_models())
    print(f"smallest cosine {min(row.cosine for row in rows):.6f} of {len(rows)}")
    assert {row.phase for row in rows} == {"prefill", "mixed", "decode"}
    assert len(rows) == len(llama_parity.LENGTHS) * (2 + llama_parity.NUM_DECODED)
    assert min(row.cosine for row in rows) >= llama_parity.LEAST_COSINE, rows
    torch.cuda.empty_cache()
