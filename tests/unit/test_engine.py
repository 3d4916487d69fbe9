"""The engine on a CPU with tiny Llama: the same tokens however they are batched, chunked or preempted."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from commands import called
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.context import ForwardContext, Phase, set_forward_context
from fastkernels.engine.graphs import GraphPool
from fastkernels.engine.llm import LLM
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import CheckpointError, EnvironmentProblem, UnknownNameError, UnsupportedError, UsageError
from fastkernels.tasks.configs.llama import LlamaConfig
from fastkernels.workloads import byte_tokenizer, prompts

ROOT = Path(__file__).parents[2]
NEW_TOKENS = 12
PROMPTS = [*sorted(prompts(), key=len)[:10:2], prompts()[4]]
GREEDY = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
DRAWN = [
    SamplingParams(temperature=0.8, top_k=k, top_p=p, seed=s, max_tokens=NEW_TOKENS)
    for s, (k, p) in enumerate([(0, 1), (20, 1), (0, 0.8)] * 2)
]


def make_llm(**changes: object) -> LLM:
    return LLM("tiny-llama", device="cpu", **{"num_pages": 64, **changes})  # type: ignore[arg-type]


def tokens_of(llm: LLM, params: SamplingParams | list[SamplingParams]) -> list[list[int]]:
    outputs = llm.generate(PROMPTS, params)
    llm.core.scheduler.check_invariants()
    assert llm.core.cache.num_free_pages == llm.core.info.num_pages
    return [output.outputs[0].token_ids for output in outputs]


def recomputed(llm: LLM, prompt: str, num_tokens: int) -> list[int]:
    """Greedy decoding without a cache: the whole sequence again for each token."""
    tokens = list(byte_tokenizer().encode(prompt).ids)
    model = llm.core.executor.model
    for layer in model.modules():
        if hasattr(layer, "kv_cache"):
            layer.kv_cache = None
    for _ in range(num_tokens):
        n = len(tokens)
        context = ForwardContext(
            query_start_loc=torch.tensor([0, n], dtype=torch.int32),
            seq_lens=torch.tensor([n], dtype=torch.int32),
            block_table=torch.full((1, 1), -1, dtype=torch.int32),
            slot_mapping=torch.full((n,), -1),
            max_query_len=n,
            max_seq_len=n,
            phase=Phase.PREFILL,
        )
        with torch.inference_mode(), set_forward_context(context):
            hidden = model(torch.tensor(tokens), torch.arange(n))
            tokens.append(int(model.compute_logits(hidden[-1:]).argmax()))  # type: ignore[operator]
    return tokens[-num_tokens:]


@cache
def expected() -> list[list[int]]:
    llm = make_llm()
    return [recomputed(llm, prompt, NEW_TOKENS) for prompt in PROMPTS]


@cache
def drawn_alone() -> list[list[int]]:
    llm = make_llm()
    return [llm.generate([p], d)[0].outputs[0].token_ids for p, d in zip(PROMPTS, DRAWN, strict=True)]


def test_tokens_alone_equal_a_full_recompute() -> None:
    llm = make_llm()
    assert [llm.generate(p, GREEDY)[0].outputs[0].token_ids for p in PROMPTS] == expected()
    assert len({tuple(tokens) for tokens in expected()}) == len(PROMPTS)


@pytest.mark.parametrize("chunk", [1, 7, 64, 8192])
def test_tokens_batched_and_chunked_equal_a_full_recompute(chunk: int) -> None:
    llm = make_llm(max_num_batched_tokens=chunk)
    assert tokens_of(llm, GREEDY) == expected()


@pytest.mark.parametrize("chunk", [7, 64, 8192])
def test_tokens_after_preemption_equal_a_full_recompute(chunk: int) -> None:
    llm = make_llm(num_pages=14, page_size=4, max_num_batched_tokens=chunk)
    outputs = llm.generate(PROMPTS[:-1], GREEDY)
    assert [o.outputs[0].token_ids for o in outputs] == expected()[:-1]
    assert sum(o.num_preemptions for o in outputs) >= 1
    assert llm.core.cache.num_free_pages == 14


@pytest.mark.parametrize("chunk", [1, 7, 8192])
def test_drawn_tokens_depend_on_the_seed_and_not_on_the_batch(chunk: int) -> None:
    assert tokens_of(make_llm(max_num_batched_tokens=chunk), DRAWN) == drawn_alone()
    assert tokens_of(make_llm(num_pages=26, page_size=4), DRAWN) == drawn_alone()
    other = [SamplingParams(temperature=0.8, seed=99, max_tokens=NEW_TOKENS)] * len(PROMPTS)
    assert tokens_of(make_llm(), other) != drawn_alone()


def test_greedy_rows_stay_greedy_beside_drawn_ones() -> None:
    mixed = [GREEDY, *DRAWN[1:]]
    assert tokens_of(make_llm(), mixed)[0] == expected()[0]


@settings(max_examples=15, deadline=None)
@given(
    chosen=st.lists(st.tuples(st.integers(0, 5), st.integers(1, NEW_TOKENS)), min_size=1, max_size=6),
    num_pages=st.integers(26, 40),
    chunk=st.integers(1, 100),
    max_num_seqs=st.integers(1, 5),
)
def test_random_schedules_give_the_same_tokens(
    chosen: list[tuple[int, int]], num_pages: int, chunk: int, max_num_seqs: int
) -> None:
    llm = make_llm(num_pages=num_pages, page_size=4, max_num_batched_tokens=chunk, max_num_seqs=max_num_seqs)
    params = [SamplingParams(temperature=0, max_tokens=n) for _, n in chosen]
    outputs = llm.generate([PROMPTS[i] for i, _ in chosen], params)
    assert [o.outputs[0].token_ids for o in outputs] == [expected()[i][:n] for i, n in chosen]
    llm.core.scheduler.check_invariants()
    assert llm.core.cache.num_free_pages == num_pages


def test_warm_engine_gives_the_same_tokens_from_untouched_pages() -> None:
    llm = make_llm(warm="full", max_num_batched_tokens=64, enforce_eager=True)
    assert not any(bool(layer.kv_cache.any()) for layer in cached_layers(llm.core.executor.model))
    assert tokens_of(llm, GREEDY) == expected()


def test_steps_begin_when_the_device_has_built_what_they_read(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = make_llm(warm="full", enforce_eager=True).core.executor
    seen: list[str] = []
    executor.device = torch.device("cuda:1")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: seen.append(str(device)))
    monkeypatch.setattr(executor, "_warm_up", lambda: seen.append("warm"))
    executor._make_ready()
    assert seen == ["cuda:1", "warm"]


def test_an_engine_warms_up_on_the_stream_of_its_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch freed on another stream is not there for a step."""
    executor = make_llm(max_num_batched_tokens=64, enforce_eager=True).core.executor
    streams: list[object] = [None]
    seen: set[object] = set()

    @contextmanager
    def stream(given: object) -> Iterator[None]:
        streams.append(given)
        yield
        streams.pop()

    executor.runner.stream = "steps"
    monkeypatch.setattr(torch.cuda, "stream", stream)
    compute, warm_up = executor.model.compute_logits, executor.runner.sampler.warm_up
    monkeypatch.setattr(executor.model, "compute_logits", lambda x: (seen.add(streams[-1]), compute(x))[1])
    monkeypatch.setattr(executor.runner.sampler, "warm_up", lambda x: (seen.add(streams[-1]), warm_up(x))[1])
    executor._warm_up()
    assert seen == {"steps"}


def test_prompt_logprobs_are_whole_after_a_preemption_in_the_prompt() -> None:
    """The first request's tokens take the pages of the second while its prompt is computed one token a step."""
    prompts_ = [[5, 9, 17], [(7 * i) % 500 + 2 for i in range(28)]]
    params = [
        SamplingParams(temperature=0, max_tokens=42, ignore_eos=True),
        SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1, ignore_eos=True),
    ]
    sizes = {"page_size": 4, "max_num_batched_tokens": 2}
    alone = make_llm(**sizes).generate([prompts_[1]], params[1])[0].prompt_logprobs
    found = make_llm(num_pages=12, **sizes).generate(prompts_, params)[1]
    assert found.num_preemptions == 1
    assert alone is not None
    assert found.prompt_logprobs is not None
    assert [next(iter(place or {None})) for place in found.prompt_logprobs] == [None, *prompts_[1][1:]]
    values = [[p.logprob for place in told for p in (place or {}).values()] for told in (found.prompt_logprobs, alone)]
    assert values[0] == pytest.approx(values[1], abs=1e-4)


def test_stop_token_ends_a_request_and_frees_its_pages() -> None:
    llm = make_llm()
    stop = expected()[0][3]
    first = expected()[0].index(stop)
    output = llm.generate(PROMPTS[0], SamplingParams(temperature=0, max_tokens=NEW_TOKENS, stop_token_ids=(stop,)))[0]
    assert output.outputs[0].token_ids == expected()[0][: first + 1]
    assert output.outputs[0].finish_reason == "stop"
    assert llm.core.cache.num_free_pages == llm.core.info.num_pages


def test_progress_counts_up_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    make_llm().generate(PROMPTS, GREEDY, progress=lambda done, most: seen.append((done, most)))
    assert seen[-1] == (NEW_TOKENS * len(PROMPTS), NEW_TOKENS * len(PROMPTS))
    assert seen == sorted(seen)


def test_refused_batch_runs_nothing_and_the_next_one_works() -> None:
    llm = make_llm()
    with pytest.raises(UnsupportedError, match="max_model_len is 512"):
        llm.generate([[1, 2, 3], [4] * 600], GREEDY)
    assert llm.core.stats().num_steps == 0
    assert llm.generate(PROMPTS[0], GREEDY)[0].outputs[0].token_ids == expected()[0]


def test_interrupted_run_gives_its_pages_back() -> None:
    llm = make_llm()

    def interrupt(done: int, most: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY, progress=interrupt)
    assert llm.core.cache.num_free_pages == llm.core.info.num_pages
    assert tokens_of(llm, GREEDY) == expected()


def test_an_engine_with_graphs_is_gone_when_it_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next one in its process finds its memory free, without a collection of garbage."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    llm = make_llm()
    tokens_of(llm, GREEDY)
    runner, model = llm.core.executor.runner, weakref.ref(llm.core.executor.model)
    runner.limits = replace(runner.limits, graph_sizes=(1, 2))
    runner.graphs = GraphPool(runner, [CacheKind.FULL])
    gc.disable()
    try:
        llm.close()
        del llm, runner
        assert model() is None
    finally:
        gc.enable()


def test_text_is_that_of_the_tokens() -> None:
    output = make_llm().generate([list(byte_tokenizer().encode("Hello").ids)], GREEDY)[0]
    assert output.prompt is None
    assert output.outputs[0].text == byte_tokenizer().decode(list(output.outputs[0].token_ids))
    assert len(output.outputs[0].token_ids) == NEW_TOKENS


def test_seed_decides_random_weights() -> None:
    first, again, other = (make_llm(seed=s).core.executor.model.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize(
    ("name", "config"), [("tiny-llama", LlamaConfig.tiny()), ("llama-3.1-8b", LlamaConfig.llama_3_1_8b())]
)
def test_preset_is_the_configuration_of_that_name(name: str, config: LlamaConfig) -> None:
    assert build_config(find_model(name)) == config


def test_config_file_is_a_model(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(find_model("tiny-llama").hf_config))
    llm = LLM(path, device="cpu", num_pages=64)
    assert tokens_of(llm, GREEDY) == expected()


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2_vl", "tiny-whisper", "tiny-mamba2"])
@pytest.mark.parametrize(("given", "wanted"), [(7, (7,)), ([7, 9], (7, 9)), (None, None)])
def test_a_checkpoints_generation_config_says_which_tokens_end(
    tmp_path: Path, name: str, given: object, wanted: tuple[int, ...] | None
) -> None:
    config = find_model(name).hf_config
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = build_config(find_model(tmp_path)).eos_token_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": given, "temperature": 0.5}))
    assert build_config(find_model(tmp_path)).eos_token_ids == (wanted or before)


def test_any_of_several_end_tokens_ends_an_answer(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(find_model("tiny-llama").hf_config))
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    made = LLM(tmp_path, device="fake").generate(PROMPTS[0], params)[0].outputs[0].token_ids
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, made[4]]}))
    (ended,) = LLM(tmp_path, device="fake").generate(PROMPTS[0], SamplingParams(max_tokens=8))[0].outputs
    assert ended.token_ids == made[: made.index(made[4]) + 1]
    assert ended.finish_reason == "stop"
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": ["</s>"]}')
    with pytest.raises(CheckpointError, match="eos_token_id is \\['</s>'\\]"):
        LLM(tmp_path, device="fake")


def test_model_that_is_nothing_suggests_a_preset() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean tiny-llama"):
        LLM("tiny-lama")


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "cannot be read as JSON"), ("[]", "holds a list, not an object"), ('{"architectures": ["GPT9"]}', "GPT9")],
)
def test_bad_config_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises((CheckpointError, UnknownNameError), match=message):
        LLM(tmp_path)


def test_sizes_that_do_not_fit_are_one_message(tmp_path: Path) -> None:
    config = {**find_model("tiny-llama").hf_config, "num_attention_heads": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no multiple"):
        LLM(tmp_path / "config.json")


def test_wrong_device_dtype_and_counts_are_named() -> None:
    with pytest.raises(UsageError, match="'gpu' is not a device"):
        LLM("tiny-llama", device="gpu")
    with pytest.raises(EnvironmentProblem, match="GPUs are visible"):
        LLM("tiny-llama", device="cuda:99")
    with pytest.raises(UnknownNameError, match="float16"):
        LLM("tiny-llama", device="cpu", dtype="float61")
    with pytest.raises(UsageError, match="page_size is 0"):
        make_llm(page_size=0)
    with pytest.raises(UsageError, match="6 prompts came with 2"):
        make_llm().generate(PROMPTS, [GREEDY, GREEDY])


def test_candidate_replaces_an_op_in_the_model(tmp_path: Path) -> None:
    """A set whose RMSNorm is the baseline's gives the same tokens and counts its calls; no name is of a model."""
    folder = tmp_path / "mine" / "L1"
    folder.mkdir(parents=True)
    baseline = (ROOT / "fastkernels" / "tasks" / "baseline" / "L1" / "rms_norm.py").read_text()
    (folder / "rms_norm.py").write_text(baseline)
    command = [sys.executable, "-m", "fastkernels", "generate", "--model", "tiny-llama", "--device", "cpu", "--json"]
    command += ["--prompt", PROMPTS[0], "--max-tokens", str(NEW_TOKENS), "--candidates", str(tmp_path / "mine")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    result = json.loads(done.stdout)
    assert result["outputs"][0]["outputs"][0]["token_ids"] == expected()[0]
    assert [(r["op"], r["status"], r["num_calls"]) for r in result["candidates"]] == [
        ("rms_norm", "REPLACED", 5 * NEW_TOKENS)
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "tiny-lama", "--prompt", "a"], 2, "Did you mean tiny-llama"),
        (
            ["--model", "tiny-llama"],
            2,
            "Nothing is given: --prompt or --prompts-file; of a model without tokens --input",
        ),
        (["--model", "tiny-llama", "--prompt", "a", "--max-tokens", "600"], 4, "max_model_len is 512"),
        (["--model", "tiny-llama", "--prompt", "a", "--temperature", "-1"], 2, "temperature is -1.0"),
        (["--model", "tiny-llama", "--prompt", "a", "--candidates", "nowhere"], 2, "nowhere"),
    ],
)
def test_generate_command_says_what_is_wrong(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    done = called(capsys, "generate", *arguments)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
