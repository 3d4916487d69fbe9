"""One engine for every kind of model: the same tokens however requests are batched, chunked or preempted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_models as toys
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.context import Phase
from fastkernels.engine.batch import StepInputs
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.core import EngineCore
from fastkernels.engine.dummy_steps import prompts_step, run_dummy_step
from fastkernels.engine.executor import ModelExecutor, load_model, small_caches
from fastkernels.engine.outputs import EngineRequest
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UnsupportedError
from fastkernels.server.metrics import Metrics
from fastkernels.server.service import ServerConfig, Service

NUM_REQUESTS = 5
KINDS: dict[str, Callable[[], nn.Module]] = {
    "full": lambda: toys.ToyDecoder([toys.PagedAttention(CacheKind.FULL)]),
    "window": lambda: toys.ToyDecoder([toys.PagedAttention(CacheKind.WINDOW, window=5)]),
    "full and window": lambda: toys.ToyDecoder(
        [toys.PagedAttention(CacheKind.FULL), toys.PagedAttention(CacheKind.WINDOW, window=6)]
    ),
    "latent": lambda: toys.ToyDecoder([toys.LatentAttention(), toys.LatentAttention()]),
    "state alone": lambda: toys.ToyDecoder([toys.RecurrentLayer()]),
    "hybrid": lambda: toys.ToyDecoder([toys.RecurrentLayer(), toys.PagedAttention(CacheKind.FULL)]),
    "encoder-decoder": lambda: toys.ToyEncoderDecoder(
        [toys.PagedAttention(CacheKind.FULL), toys.PagedAttention(CacheKind.CROSS)]
    ),
}


def make_core(model: nn.Module, **changes: int) -> EngineCore:
    sizes = {"num_pages": 64, "page_size": 4, "max_num_seqs": 4, "max_num_batched_tokens": 64, **changes}
    config = EngineConfig("toy", device="cpu", **sizes)
    return EngineCore(config, ModelExecutor(config, toys.loaded(model)))


def make_requests(kind: str, num: int = 5, max_tokens: int = 10) -> list[EngineRequest]:
    rng = np.random.default_rng(3)
    requests = []
    for i in range(num):
        prompt = tuple(int(t) for t in rng.integers(2, toys.VOCAB, rng.integers(1, 18)))
        frames = (
            rng.normal(size=(int(rng.integers(1, 14)), 3)).astype(np.float32) if kind == "encoder-decoder" else None
        )
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        requests.append(EngineRequest(str(i), prompt, params, encoder_input=frames))
    return requests


def run(core: EngineCore, requests: list[EngineRequest]) -> list[list[int]]:
    for request in requests:
        core.add(request)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    for _ in range(5000):
        if not core.has_unfinished:
            break
        for output in core.step():
            tokens[output.request_id] += output.token_ids
        core.scheduler.check_invariants()
    assert not core.has_unfinished
    assert core.cache.num_free_pages == core.info.num_pages or not core.cache.groups
    return list(tokens.values())


@pytest.mark.parametrize("kind", KINDS)
def test_batched_chunked_and_preempted_tokens_equal_those_alone(kind: str) -> None:
    requests = make_requests(kind)
    alone = [run(make_core(KINDS[kind]()), [request])[0] for request in requests]
    assert all(len(tokens) == 10 for tokens in alone)
    assert len({tuple(tokens) for tokens in alone}) > 1
    assert run(make_core(KINDS[kind]()), requests) == alone
    for chunk in (1, 3, 7):
        assert run(make_core(KINDS[kind](), max_num_batched_tokens=chunk), requests) == alone
    tight = make_core(KINDS[kind](), num_pages=9)
    assert run(tight, requests) == alone
    if kind in ("full", "hybrid", "full and window", "latent"):
        assert tight.stats().num_preemptions > 0


@st.composite
def schedules(draw: st.DrawFn) -> list[tuple[str, int]]:
    """Requests that come between the steps of others, and some that are given up, in any order."""
    steps = st.tuples(st.just("step"), st.integers(1, 4))
    aborts = st.tuples(st.just("abort"), st.integers(0, NUM_REQUESTS - 1))
    between = [draw(st.lists(st.one_of(steps, steps, aborts), max_size=4)) for _ in range(NUM_REQUESTS)]
    return [action for i, actions in enumerate(between) for action in (("add", i), *actions)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedule=schedules(), chunk=st.integers(1, 24), num_pages=st.integers(9, 24))
def test_requests_that_come_late_or_are_given_up_leave_the_others_tokens(
    kind: str, schedule: list[tuple[str, int]], chunk: int, num_pages: int
) -> None:
    requests = make_requests(kind, NUM_REQUESTS)
    core = make_core(_model(kind), max_num_batched_tokens=chunk, num_pages=num_pages)
    tokens: dict[str, list[int]] = {request.request_id: [] for request in requests}
    given_up = set()

    def step() -> None:
        for output in core.step():
            tokens[output.request_id] += output.token_ids
        core.scheduler.check_invariants()

    for action, number in [*schedule, ("step", 5000)]:
        if action == "add":
            core.add(requests[number])
        elif action == "abort":
            core.abort(str(number))
            given_up.add(number)
        for _ in range(number if action == "step" else 0):
            if not core.has_unfinished:
                break
            step()
    assert not core.has_unfinished
    assert core.cache.num_free_pages == core.info.num_pages or not core.cache.groups
    for number, request in enumerate(requests):
        said, alone = tokens[request.request_id], _alone(kind)[number]
        assert said == alone[: len(said)]
        assert len(said) == len(alone) or number in given_up


@cache
def _model(kind: str) -> nn.Module:
    return KINDS[kind]()


@cache
def _alone(kind: str) -> list[list[int]]:
    return [run(make_core(KINDS[kind]()), [request])[0] for request in make_requests(kind, NUM_REQUESTS)]


def test_a_model_without_pages_is_limited_by_its_positions_alone() -> None:
    core = make_core(KINDS["state alone"](), num_pages=4)
    prompt = tuple(range(2, 52)) * 2
    params = SamplingParams(temperature=0, max_tokens=toys.POSITIONS - len(prompt), ignore_eos=True)
    (tokens,) = run(core, [EngineRequest("long", prompt, params)])
    assert len(tokens) == params.max_tokens
    service = Service(core.config, ServerConfig())
    service._engine = SimpleNamespace(info=core.info)  # type: ignore[assignment]
    assert service.room(len(prompt), "prompt") == params.max_tokens
    told = Metrics().render(core.info, core.stats()).decode()
    assert "fastkernels_num_pages 0.0\n" in told
    assert "fastkernels_kv_cache_usage_ratio 0.0\n" in told


def test_states_and_pages_are_as_new_for_the_next_request() -> None:
    core = make_core(KINDS["hybrid"](), max_num_seqs=1)
    requests = make_requests("hybrid")
    assert run(core, requests) == [run(make_core(KINDS["hybrid"]()), [request])[0] for request in requests]


def test_encoder_input_changes_the_tokens() -> None:
    kind = "encoder-decoder"
    request, other = make_requests(kind)[:2]
    changed = EngineRequest(request.request_id, request.prompt_token_ids, request.params, False, other.encoder_input)
    assert run(make_core(KINDS[kind]()), [request]) != run(make_core(KINDS[kind]()), [changed])


def test_a_step_that_stores_encoder_states_is_no_uniform_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though all its prompts be of one token: a replayed graph writes no encoder states."""
    core = make_core(KINDS["encoder-decoder"]())
    launched: list[StepInputs] = []
    launch = core.runner.launch
    monkeypatch.setattr(core.runner, "launch", lambda inputs: (launched.append(inputs), launch(inputs))[1])
    first, second = make_requests("encoder-decoder")[:2]
    core.add(replace(first, prompt_token_ids=(3, 4)))
    core.step()
    core.step()
    core.add(replace(second, prompt_token_ids=(5,)))
    core.step()
    core.step()
    assert [inputs.phase for inputs in launched] == [Phase.PREFILL, *[Phase.DECODE] * 3]
    assert [inputs.num_seqs for inputs in launched] == [1, 1, 2, 2]
    assert [inputs.is_uniform_decode for inputs in launched] == [False, True, False, True]


def test_encoder_input_for_a_model_without_an_encoder_is_refused() -> None:
    core = make_core(KINDS["full"]())
    with pytest.raises(UnsupportedError, match="toy has no encoder"):
        core.add(EngineRequest("0", (3,), SamplingParams(), encoder_input=np.zeros((2, 3), np.float32)))


def test_unlike_windows_are_refused_by_name() -> None:
    layers = [toys.PagedAttention(CacheKind.WINDOW, window=n) for n in (4, 8)]
    with pytest.raises(UnsupportedError, match=r"windows of \[4, 8\] tokens"):
        make_core(toys.ToyDecoder(layers))


def test_prefixes_are_shared_by_caches_of_every_token_alone() -> None:
    shares = {kind: make_core(build()).cache.shares_prefixes for kind, build in KINDS.items()}
    assert [kind for kind, does in shares.items() if does] == ["full", "latent"]


def test_encoder_only_model_embeds_whole_prompts_in_one_step() -> None:
    core = make_core(toys.ToyEncoder(), max_num_batched_tokens=20)
    prompts = [tuple(range(2, 2 + n)) for n in (5, 18, 1, 12)]
    requests = [EngineRequest(str(i), p, SamplingParams(), is_embedding=True) for i, p in enumerate(prompts)]
    for request in requests:
        core.add(request)
    found = {}
    while core.has_unfinished:
        for output in core.step():
            assert output.embedding is not None
            found[output.request_id] = output.embedding
    assert core.stats().num_steps == 3, "5 | 18 + 1 | 12 tokens of at most 20, in order."
    model = core.executor.model  # type: ignore[attr-defined]
    for request in requests:
        alone = make_core(model, max_num_batched_tokens=20)
        alone.add(request)
        outputs = [output for _ in range(4) for output in alone.step()]
        assert outputs[0].embedding == pytest.approx(found[request.request_id], abs=1e-6)
    with pytest.raises(UnsupportedError, match="takes them in one step; max_num_batched_tokens is 20"):
        core.add(EngineRequest("long", tuple([3] * 21), SamplingParams(), is_embedding=True))


@pytest.mark.parametrize("preset", ["tiny-llama", "tiny-gpt-oss", "tiny-qwen3_next", "tiny-mamba2"])
def test_the_largest_step_runs_before_there_are_caches(preset: str) -> None:
    """By it the number of pages is found."""
    config = EngineConfig(preset, device="cpu", max_num_seqs=4)
    loaded = load_model(config, torch.device("cpu"))
    rows, positions = config.max_num_seqs, loaded.config.max_position_embeddings
    with small_caches(loaded.model, config, loaded.dtype, torch.device("cpu")):
        run_dummy_step(loaded.model, prompts_step(64, rows), config.page_size, rows, positions, torch.device("cpu"))
    assert [layer.kv_cache for layer in cached_layers(loaded.model)] == [None] * len(cached_layers(loaded.model))
