"""The engine and the recording on a GPU: the same tokens however batched, cases that replay bit for bit, no leak."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastkernels.capture.digest import case_digest
from fastkernels.capture.record import recapture
from fastkernels.capture.replay import build_op, call_op, case_inputs, replay
from fastkernels.capture.run import capture
from fastkernels.context import Phase
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.registry import ops
from fastkernels.workloads import Workload, find_workload

pytestmark = pytest.mark.gpu
WORKLOAD = Workload("mixture", num_requests=6, input_len=40, output_len=6)


@pytest.fixture(autouse=True)
def _needs_a_gpu() -> Iterator[None]:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    yield
    torch.cuda.empty_cache()


def tokens(temperature: float = 0.0, **changes: int) -> list[tuple[int, ...]]:
    llm = LLM("tiny-llama", device="cuda", **{"num_pages": 64, **changes})  # type: ignore[arg-type]
    params = SamplingParams(temperature=temperature, top_p=0.9, seed=3, max_tokens=24, ignore_eos=True)
    outputs = llm.generate(WORKLOAD.token_ids(llm.tokenizer), params)
    assert llm.core.cache.num_free_pages == llm.core.info.num_pages
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_do_not_depend_on_chunks_or_preemption(temperature: float) -> None:
    expected = tokens(temperature)
    assert tokens(temperature, max_num_batched_tokens=7) == expected
    assert tokens(temperature, num_pages=40, page_size=4) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_case_replays_bit_for_bit(dtype: str) -> None:
    cases, _, _ = capture("tiny-llama", WORKLOAD, dtype=dtype, device="cuda", max_num_batched_tokens=64)
    assert {(ops()[c.op].level, c.phase) for c in cases} == {(n, p) for n in (1, 2, 3, 4) for p in Phase}
    wrong = [f"{c.op} {c.phase} {c.shapes()}" for c in cases if replay(c, "cuda").digest != c.outputs_digest]
    assert wrong == []
    again = [f"{c.op} {c.phase}" for c in cases if case_digest(recapture(c, "cuda")) != case_digest(c)]
    assert again == []


def test_capture_changes_no_token() -> None:
    _, _, outputs = capture("tiny-llama", WORKLOAD, device="cuda", max_num_batched_tokens=64)
    llm = LLM("tiny-llama", device="cuda", num_pages=64, max_num_batched_tokens=64)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    plain = llm.generate(WORKLOAD.token_ids(llm.tokenizer), params)
    assert [o.outputs[0].token_ids for o in outputs] == [o.outputs[0].token_ids for o in plain]


@pytest.mark.slow
def test_capture_of_8b_keeps_no_device_memory_and_replays() -> None:
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    workload = find_workload("batch32").scaled(1 / 8)
    cases, calls, _ = capture("llama-3.1-8b", workload, device="cuda", budget_mb=256, max_num_batched_tokens=1024)
    assert torch.cuda.memory_allocated() - before < 64 << 20
    assert calls["rms_norm", Phase.DECODE] == 65 * calls["llama_for_causal_lm", Phase.DECODE]
    assert any(case.moments for case in cases.records)
    for op in ("rms_norm", "silu_and_mul", "linear", "flash_attn_decode", "store_kvcache"):
        case = cases.filter(op=op)[0]
        outputs = call_op(build_op(case, "cuda"), case, case_inputs(case, "cuda"))
        assert all(out.isfinite().all() for out in outputs)
