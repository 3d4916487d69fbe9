"""Sampling on a GPU: kernels at the vocabulary of Llama 3 against definitions, the sampler against the CPU's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from fastkernels.engine.logprobs import logprobs
from fastkernels.engine.sampler import Sampler
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.tasks.baseline.L1.apply_logit_bias import ApplyLogitBias
from fastkernels.tasks.baseline.L1.apply_penalties import ApplyPenalties
from fastkernels.tasks.baseline.L1.apply_token_bitmask import ApplyTokenBitmask
from fastkernels.tasks.baseline.L1.draw_seeds import DrawSeeds
from fastkernels.tasks.baseline.L1.greedy_sample import GreedySample
from fastkernels.tasks.baseline.L1.min_p import MinP
from fastkernels.tasks.baseline.L1.top_k_top_p_sample import TopKTopPSample
from fastkernels.tasks.baseline.L1.top_logprobs import TopLogprobs

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
VOCAB_SIZE, EOS = 128_256, 128_001
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
INF = float("inf")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def no_sync() -> Iterator[Callable[[str], None]]:
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


def randn(num_rows: int, dtype: torch.dtype, vocab_size: int = VOCAB_SIZE) -> Tensor:
    return (torch.randn(num_rows, vocab_size + 40, device="cuda") * 3).to(dtype)[:, 8:-32]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [1, 8, 64, 512])
def test_greedy_is_the_first_of_the_largest(num_rows: int, dtype: torch.dtype) -> None:
    logits = randn(num_rows, dtype)
    logits[0, 5:] = logits[0].max() + 1  # many equals
    logits[-1] = -INF
    best = logits.float().amax(-1, keepdim=True)
    first = torch.where(logits.float() == best, torch.arange(VOCAB_SIZE, device="cuda"), VOCAB_SIZE).amin(-1)
    assert GreedySample()(logits).equal(first)
    logits[0, 9] = float("nan")
    assert int(GreedySample()(logits)[0]) == (9 if num_rows > 1 else int(logits[0].argmax()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("vocab_size", [VOCAB_SIZE, 1021])
def test_edits_of_logits_equal_their_definitions(vocab_size: int, dtype: torch.dtype) -> None:
    logits = randn(33, dtype, vocab_size)
    rows = torch.randperm(40, device="cuda")[:33]
    counts = torch.randint(0, 9, (40, vocab_size), device="cuda", dtype=torch.int32)
    counts *= torch.rand(40, vocab_size, device="cuda") < 0.1
    penalties = torch.tensor([0.0, 0.5, -1.5], device="cuda")[torch.randint(0, 3, (2, 33), device="cuda")]
    repetition = torch.tensor([1.0, 1.3, 0.8], device="cuda")[torch.randint(0, 3, (33,), device="cuda")]
    ids, biases = torch.randint(0, 500, (33, 300), device="cuda"), torch.randn(33, 300, device="cuda")
    masks = torch.randint(-(2**31), 2**31, (5, vocab_size // 32 + 1), device="cuda").int()
    index = torch.randint(-1, 5, (33,), device="cuda", dtype=torch.int32)
    temperature, p = torch.rand(2, 33, device="cuda")
    p[::4] = 0
    cases: list[tuple[Any, tuple[Tensor, ...], bool]] = [
        (ApplyPenalties(), (rows, counts, repetition, penalties[0], penalties[1]), False),
        (ApplyLogitBias(), (ids, biases), False),
        (ApplyTokenBitmask(), (masks, index), True),
        (MinP(), (temperature, p), True),
    ]
    for op, arguments, is_exact in cases:
        wide = torch.full((33, vocab_size + 16), float("nan"), device="cuda", dtype=dtype)
        got = wide[:, :-16]
        got.copy_(logits)
        expected = logits.double()
        op(got, *arguments)
        op.reference(expected, *arguments)
        assert wide[:, -16:].isnan().all(), type(op).__name__
        if is_exact:
            assert got.double().equal(expected), type(op).__name__
        else:
            eps = torch.finfo(dtype).eps
            torch.testing.assert_close(got.double(), expected, rtol=eps, atol=8 * 2.0**-20, msg=type(op).__name__)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num", [0, 5, 20])
def test_logprobs_are_log_softmax_with_exact_ids_and_ranks(num: int, dtype: torch.dtype) -> None:
    logits = randn(77, dtype)
    logits[1] = 2.0
    token_ids = torch.randint(0, VOCAB_SIZE, (77,), device="cuda")
    token_ids[0] = logits[0].argmax()
    got = logprobs(logits, token_ids, num)
    exact = TopLogprobs(num).reference(logits.double(), token_ids)
    assert got.top_ids.equal(exact[0])
    assert got.ranks.equal(exact[3])
    torch.testing.assert_close(got.top_logprobs.double(), exact[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(got.chosen.double(), exact[2], rtol=0, atol=1e-5)


def a_request(rng: random.Random) -> dict[str, Any]:
    def maybe(value: Any, default: Any) -> Any:
        return value if rng.random() < 0.3 else default

    params = SamplingParams(
        temperature=rng.choice([0.0, 0.7, 1.3]),
        top_k=maybe(rng.randint(1, 200), 0),
        top_p=maybe(rng.uniform(0.5, 1), 1.0),
        min_p=maybe(rng.uniform(0.01, 0.5), 0.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2), 1.0),
        logit_bias=maybe({rng.randrange(VOCAB_SIZE): rng.uniform(-9, 9) for _ in range(rng.randint(1, 90))}, {}),
        allowed_token_ids=maybe(tuple(rng.sample(range(VOCAB_SIZE), 5000)), None),
        min_tokens=maybe(8, 0),
        logprobs=maybe(rng.randint(0, 20), None),
    )
    prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 900))]
    return {"params": params, "seed": rng.randrange(2**63), "prompt": prompt}


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_the_sampler_gives_the_tokens_of_the_cpu_without_a_sync(no_sync: Callable[[str], None]) -> None:
    rng = random.Random(0)
    num_rows, max_rows = 48, 64
    both = [Sampler(VOCAB_SIZE, torch.device(d), max_rows, eos_token_ids=(EOS,)) for d in ("cpu", "cuda")]
    rows = rng.sample(range(max_rows), num_rows)
    both[1].warm_up(torch.bfloat16)
    differ = 0
    for step in range(4):
        for row in rows if step == 0 else rows[step::5]:
            request = a_request(rng)
            for sampler in both:
                sampler.add(row, request["params"], request["seed"], request["prompt"])
        logits = (torch.randn(num_rows, VOCAB_SIZE) * 3).bfloat16()
        given = logits.cuda()
        index, positions = torch.tensor(rows), torch.full((num_rows,), 900 + step)
        index_, positions_ = index.cuda(), positions.cuda()
        no_sync("error")
        on_gpu = both[1](given, rows, index_, positions_)
        no_sync("default")
        on_cpu = both[0](logits, rows, index, positions)
        assert given.cpu().equal(logits)
        is_other = on_gpu.token_ids.cpu() != on_cpu.token_ids
        differ += int(is_other.sum())
        with torch.inference_mode():
            both[1]._counts.counts.copy_(both[0]._counts.counts)  # type: ignore[union-attr, arg-type]
        assert (on_gpu.logprobs is None) == (on_cpu.logprobs is None)
        if on_gpu.logprobs is not None and on_cpu.logprobs is not None:
            assert on_gpu.logprobs.top_ids.cpu().equal(on_cpu.logprobs.top_ids)
    # The GPU's noise is in float32: two scores that differ by less may change places.
    assert differ <= 1


def test_tokens_do_not_depend_on_the_batch() -> None:
    rng = random.Random(1)
    requests = [a_request(rng) for _ in range(24)]
    logits = randn(24, torch.bfloat16)

    def tokens(chosen: list[int]) -> list[int]:
        sampler = Sampler(VOCAB_SIZE, torch.device("cuda"), 32, eos_token_ids=(EOS,))
        rows = rng.sample(range(32), len(chosen))
        for row, i in zip(rows, chosen, strict=True):
            sampler.add(row, requests[i]["params"], requests[i]["seed"], requests[i]["prompt"])
        positions = torch.tensor([900 + i for i in chosen], device="cuda")
        return sampler(logits[chosen], rows, torch.tensor(rows, device="cuda"), positions).token_ids.tolist()

    whole = tokens(list(range(24)))
    for size in (1, 1, 5, 17):
        chosen = rng.sample(range(24), size)
        assert tokens(chosen) == [whole[i] for i in chosen]


def test_ops_are_captured_and_replayed_on_new_logits() -> None:
    logits = randn(16, torch.bfloat16).contiguous()
    greedy, draw, draw_seeds, top = GreedySample(), TopKTopPSample(), DrawSeeds(), TopLogprobs(5)
    rows, positions = torch.arange(16, device="cuda"), torch.arange(16, device="cuda") + 50
    seeds = torch.arange(16, device="cuda") * 7919
    temperature, top_p = torch.full((2, 16), 0.9, device="cuda")
    top_k = torch.full((16,), 40, device="cuda", dtype=torch.int32)

    def run() -> tuple[Tensor, ...]:
        ids = draw(logits, temperature, top_k, top_p, draw_seeds(seeds, rows, positions))
        return greedy(logits), ids, *top(logits, ids)

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for _ in range(3):
        logits.copy_(randn(16, torch.bfloat16))
        positions += 1
        graph.replay()
        for one, other in zip(captured, run(), strict=True):
            assert one.equal(other)
