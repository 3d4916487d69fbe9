"""The engine on a GPU: graphs, runs ahead of the host, and ranks give the tokens of eager steps."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from torch.nn.functional import linear

from fastkernels import LLM, SamplingParams
from fastkernels.engine.runners.replay import State, capture
from fastkernels.workloads import prompts

pytestmark = pytest.mark.gpu
PROMPTS = sorted(prompts(), key=len)[:24]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.8, top_p=0.9, seed=5, max_tokens=40, ignore_eos=True)


def make_llm(model: str = "tiny-llama", **changes: object) -> LLM:
    options: dict[str, object] = {"num_pages": 1024, "dtype": "float32", **changes}
    return LLM(model, device="cuda", **options)


def tokens_of(llm: LLM, params: SamplingParams) -> list[tuple[int, ...]]:
    return [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]


@cache
def eager(name: str) -> list[tuple[int, ...]]:
    return tokens_of(make_llm(enforce_eager=True), {"greedy": GREEDY, "drawn": DRAWN}[name])


@pytest.fixture(autouse=True)
def full_precision() -> Iterator[None]:
    """TF32 off, so that the batch's size changes no token."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize("params", ["greedy", "drawn"])
@pytest.mark.parametrize("chunk", [64, 8192])
def test_graph_steps_give_the_tokens_of_eager_steps(params: str, chunk: int) -> None:
    llm = make_llm(max_num_batched_tokens=chunk)
    wanted = {"greedy": GREEDY, "drawn": DRAWN}[params]
    assert tokens_of(llm, wanted) == eager(params)
    assert tokens_of(llm, wanted) == eager(params), "Again, over shared prefixes and captured graphs."
    assert llm.core.stats().num_graph_steps > 30


def test_chunks_of_a_long_prompt_keep_their_own_inputs_where_the_host_is_far_ahead() -> None:
    """Nobody waits for a step that samples nothing."""
    prompt = [(7 * i) % 250 + 2 for i in range(300)]
    [wanted] = make_llm(enforce_eager=True).generate([prompt], GREEDY)
    llm = make_llm(enforce_eager=True, max_num_batched_tokens=16)
    with torch.cuda.stream(llm.core.runner.stream):
        torch.cuda._sleep(1 << 30)
    [given] = llm.generate([prompt], GREEDY)
    assert given.outputs[0].token_ids == wanted.outputs[0].token_ids


def test_tokens_on_the_gpu_equal_those_on_a_cpu() -> None:
    cpu = LLM("tiny-llama", device="cpu", num_pages=1024)
    on_cpu = [o.outputs[0].token_ids for o in cpu.generate(PROMPTS, GREEDY)]
    same = sum(a == b for a, b in zip(on_cpu, eager("greedy"), strict=True))
    assert same >= len(PROMPTS) - 1, "fp32 sums differ in order: a tie may fall to the other side."


def test_a_graph_outlives_the_workspaces_that_cublas_had() -> None:
    """torch.compile with graphs frees them; what is freed may be unmapped, or another's."""
    weight = torch.randn(256, 16384, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(4, 16384, device="cuda", dtype=torch.bfloat16)

    def forward(state: State) -> State:
        return {"y": linear(state["x"], weight)}  # split along its long side, so that partial sums need a workspace

    with torch.inference_mode():
        captured = capture(forward, {"x": x}, x.device)
        wanted = forward({"x": x})["y"].clone()
        torch._C._cuda_clearCublasWorkspaces()
        torch.cuda.empty_cache()
        others = torch.zeros(64 << 20, dtype=torch.uint8, device="cuda")
        captured.graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured.outputs["y"], wanted)
        assert not others.any()


def test_a_dropped_engine_gives_its_memory_back() -> None:
    gc.collect()
    before = torch.cuda.memory_allocated()
    llm = make_llm()
    tokens_of(llm, GREEDY)
    held, num_bytes = torch.cuda.memory_allocated() - before, llm.core.info.weight_bytes + llm.core.info.cache_bytes
    assert held > num_bytes
    gc.disable()
    try:
        llm.close()
        del llm
        assert torch.cuda.memory_allocated() - before < held - num_bytes
    finally:
        gc.enable()


def test_preempted_requests_give_the_same_tokens() -> None:
    llm = make_llm(num_pages=40)
    assert tokens_of(llm, GREEDY) == eager("greedy")
    assert llm.core.stats().num_preemptions > 0


def test_every_graph_is_captured_before_the_first_request_when_asked() -> None:
    llm = make_llm(warm="full", max_num_seqs=32)
    captured = llm.core.stats().num_compilations
    assert captured == 7, "1, 2, 4, 8, 16, 24, 32."
    assert tokens_of(llm, GREEDY) == eager("greedy")
    assert llm.core.stats().num_compilations == captured


WARMED = """
from fastkernels import LLM, SamplingParams
from fastkernels.workloads import prompts

llm = LLM("tiny-llama", device="cuda", num_pages=1024, warm="full")
before = llm.core.stats().num_kernels_made
for drawn in ({"temperature": 0}, {"top_k": 20, "top_p": 0.9, "seed": 1}):
    llm.generate(prompts(), SamplingParams(max_tokens=40, **drawn))
print(before, llm.core.stats().num_kernels_made)
"""


def test_no_step_waits_for_a_kernel_once_all_is_warmed_up() -> None:
    """In a process of its own: kernels of other tests are ready here."""
    done = subprocess.run([sys.executable, "-c", WARMED], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split()[-2:])
    assert before > 10
    assert after == before


COLD = """
import logging, time
from triton import knobs
from fastkernels import LLM

logging.basicConfig(level=logging.INFO)
hits, compiled = 0, []

def note(*, src, cache_hit, **_):
    global hits
    hits += cache_hit
    if not cache_hit:
        compiled.append(f"{src.fn.__name__} {src.signature} {src.constants}")

knobs.compilation.listener = note
started = time.perf_counter()
LLM("llama-3.1-8b", device="cuda", warm="full").close()
print(*compiled, f"ready in {time.perf_counter() - started:.1f} s", hits, len(compiled), sep="\\n")
"""


@pytest.mark.slow
def test_a_start_with_an_empty_cache_finds_its_kernels_compiled(tmp_path: Path) -> None:
    """Also that the next one needs no helper: it says nothing of one."""
    command = [sys.executable, "-c", COLD]
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    first, again = (
        subprocess.run(command, capture_output=True, text=True, check=True, env=environment) for _ in range(2)
    )
    told = f"{first.stdout}\n{first.stderr}\n{again.stdout}"
    hits, num_compiled = map(int, first.stdout.split()[-2:])
    assert hits > 30, told
    assert num_compiled <= hits // 10, told
    assert "kernels compiled by up to" in first.stderr
    assert "kernels compiled by up to" not in again.stderr
    assert int(again.stdout.split()[-1]) == 0, told


@pytest.mark.slow
def test_pool_takes_most_of_what_is_free() -> None:
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    llm = LLM("llama-3.1-8b", device="cuda")
    assert llm.core.info.cache_bytes >= 0.9 * (free - llm.core.info.weight_bytes)


def test_decode_steps_allocate_nothing() -> None:
    llm = make_llm(warm="full", max_num_seqs=8)
    llm.generate(PROMPTS[:8], GREEDY)
    before = torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.memory_reserved()
    llm.generate(PROMPTS[:8], GREEDY)
    assert (torch.cuda.memory_stats()["num_alloc_retries"], torch.cuda.memory_reserved()) == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_give_the_tokens_of_one() -> None:
    expected = eager("greedy")
    llm = make_llm(tensor_parallel_size=2)
    try:
        found = tokens_of(llm, GREEDY)
        assert llm.core.stats().num_graph_steps > 30
    finally:
        started = time.monotonic()
        llm.close()
    assert time.monotonic() - started < 5, "NCCL waits for graphs that hold its collectives."
    assert not torch.distributed.is_initialized()
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same >= len(PROMPTS) - 1, "Partial sums are added in another order: a tie may fall to the other side."


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("model", ["tiny-mixtral", "tiny-gpt-oss", "tiny-qwen3_next"])
def test_whole_experts_on_two_gpus_give_the_tokens_of_one(model: str) -> None:
    """Which slots a rank leaves out is another in every step of a graph."""
    expected = tokens_of(make_llm(model, enforce_eager=True), GREEDY)
    llm = make_llm(model, tensor_parallel_size=2, enable_expert_parallel=True)
    try:
        found = tokens_of(llm, GREEDY)
        assert llm.core.stats().num_graph_steps > 30
    finally:
        llm.close()
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    assert same >= len(PROMPTS) - 1, "Partial sums are added in another order: a tie may fall to the other side."
