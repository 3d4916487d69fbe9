"""The offline API as users of vLLM 0.26 know it: what its quickstart does, and what it refuses."""

from __future__ import annotations

import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from fastkernels import LLM, SamplingParams
from fastkernels.engine import llm as llm_module
from fastkernels.engine.bad_words import MAX_BAD_WORDS, BadWords, bad_word_tokens
from fastkernels.engine.chat import find_chat_template
from fastkernels.engine.config import EngineConfig
from fastkernels.engine.messages import media_of
from fastkernels.engine.model_source import find_model
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.sampling_params import SamplingParamsError, StructuredOutputsParams
from fastkernels.errors import UnknownNameError, UnsupportedError, UsageError
from fastkernels.workloads import byte_tokenizer

PROMPTS = ["Hello, my name is", "The capital of France is", "The future of AI is"]
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
DRAWN = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True)
CONVERSATION = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]


@cache
def make_llm() -> LLM:
    return LLM(model="tiny-llama", device="cpu")


@cache
def make_embedder() -> LLM:
    return LLM(model="tiny-bge_m3", device="cpu")


def tokens_of(llm: LLM, prompts: Any, *params: Any, **named: Any) -> list[list[int]]:
    return [output.outputs[0].token_ids for output in llm.generate(prompts, *params, **named)]


def test_the_quickstart() -> None:
    llm = LLM(model="tiny-llama", device="cpu", dtype="auto", trust_remote_code=False, max_num_seqs=8, seed=0)
    sampling_params = SamplingParams(temperature=0.8, top_p=0.95)
    outputs = llm.generate(PROMPTS, sampling_params=sampling_params, use_tqdm=False)
    assert [output.prompt for output in outputs] == PROMPTS
    assert [output.request_id for output in outputs] == ["0", "1", "2"]
    for output in outputs:
        assert output.finished
        assert output.prompt_token_ids == byte_tokenizer().encode(output.prompt or "").ids
        [answer] = output.outputs
        assert isinstance(answer.text, str)
        assert len(answer.token_ids) == 16
        assert (answer.index, answer.finish_reason, answer.stop_reason) == (0, "length", None)
        assert answer.cumulative_logprob is answer.logprobs is output.prompt_logprobs is None
        assert len(output.prompt_token_ids + answer.token_ids) == len(output.prompt_token_ids) + 16


def test_sampling_params_are_given_by_name_by_place_one_or_one_each() -> None:
    each = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in (2, 3, 4)]
    wanted = tokens_of(make_llm(), PROMPTS, GREEDY)
    assert tokens_of(make_llm(), PROMPTS, sampling_params=GREEDY, use_tqdm=True) == wanted
    assert tokens_of(make_llm(), PROMPTS, sampling_params=each) == [t[:n] for t, n in zip(wanted, (2, 3, 4))]  # noqa: B905
    assert len(tokens_of(make_llm(), PROMPTS[0])[0]) <= 16
    with pytest.raises(UsageError, match="3 prompts came with 2 SamplingParams"):
        make_llm().generate(PROMPTS, each[:2])
    with pytest.raises(UsageError, match="holds 5; it is a SamplingParams"):
        make_llm().generate(PROMPTS, 5)


def test_every_form_of_a_prompt_says_the_same() -> None:
    ids = byte_tokenizer().encode(PROMPTS[0]).ids
    [wanted] = tokens_of(make_llm(), PROMPTS[0], GREEDY)
    forms: list[Any] = [ids, tuple(ids), np.array(ids), torch.tensor(ids), {"prompt": PROMPTS[0]}]
    forms += [{"prompt_token_ids": ids}]
    for form in forms:
        assert tokens_of(make_llm(), form, GREEDY) == [wanted], form
    assert tokens_of(make_llm(), forms, GREEDY) == [wanted] * len(forms)
    assert make_llm().generate([], GREEDY) == []


@pytest.mark.parametrize("prompts", [5, b"Hi", [5.0], [[5.0]], [["Hi"]], [None], [True], {"text": "Hi"}, {}])
def test_what_is_no_prompt_is_refused(prompts: Any) -> None:
    with pytest.raises(UsageError, match=r"prompt_token_ids"):
        make_llm().generate(prompts, GREEDY)


@pytest.mark.parametrize("word", [{"lora_request": object()}, {"priority": [1]}])
def test_words_of_generate_that_mean_nothing_here_are_named(word: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedError, match=f"{next(iter(word))} is .* Leave it out"):
        make_llm().generate(PROMPTS[0], GREEDY, **word)
    assert make_llm().generate([], lora_request=None, priority=[0]) == []


def test_a_bar_counts_requests_on_a_terminal_and_only_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal, use_tqdm in ((True, True), (True, False), (False, True)):
        shown = io.StringIO()
        console = Console(file=shown, force_terminal=is_terminal, width=100)
        monkeypatch.setattr(llm_module, "Console", lambda console=console, **_: console)
        make_llm().generate(PROMPTS, GREEDY, use_tqdm=use_tqdm)
        make_embedder().embed(PROMPTS, use_tqdm=use_tqdm)
        assert ("Processed prompts" in shown.getvalue()) is (is_terminal and use_tqdm)
        assert ("3/3" in shown.getvalue()) is (is_terminal and use_tqdm)


def test_calls_draw_other_tokens_and_a_new_engine_repeats_the_series() -> None:
    first, again, other = (LLM("tiny-llama", device="cpu", seed=0) for _ in range(3))
    series = [tokens_of(first, ["Hello", "Hello"], DRAWN) for _ in range(3)]
    assert len({tuple(tokens) for call in series for tokens in call}) == 6
    assert [tokens_of(again, ["Hello", "Hello"], DRAWN) for _ in range(3)] == series
    assert [output.request_id for output in first.generate(["Hello", "Hello"], DRAWN)] == ["6", "7"]
    seeded = SamplingParams(temperature=1.0, max_tokens=8, ignore_eos=True, seed=7)
    assert tokens_of(other, "Hello", seeded) == tokens_of(other, "Hello", seeded) == tokens_of(first, "Hello", seeded)


def test_n_answers_are_outputs_of_one_request() -> None:
    [output] = make_llm().generate("Hello", SamplingParams(temperature=1.0, n=3, max_tokens=8))
    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3


def test_logprobs_are_dicts_by_token_id() -> None:
    params = SamplingParams(temperature=1.0, max_tokens=6, logprobs=2, prompt_logprobs=1, seed=3, ignore_eos=True)
    [output] = make_llm().generate("Hello", params)
    [answer] = output.outputs
    assert answer.logprobs is not None
    assert output.prompt_logprobs is not None
    assert output.prompt_logprobs[0] is None
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)
    places = [*zip(output.prompt_token_ids[1:], output.prompt_logprobs[1:], [1] * 99)]  # noqa: B905
    places += [*zip(answer.token_ids, answer.logprobs, [2] * 99)]  # noqa: B905
    tokenizer = make_llm().get_tokenizer()
    for token, place, num in places:
        assert place is not None
        assert next(iter(place)) == token
        likeliest = [one for one in place.values() if one.rank <= num]
        assert sorted(one.rank for one in likeliest) == list(range(1, num + 1))
        assert len(place) == num + (place[token].rank > num)
        assert all(one.decoded_token == tokenizer.decode([t]) for t, one in place.items())
        assert place[token].logprob <= max(one.logprob for one in likeliest) <= 0
    drawn = sum(place[token].logprob for token, place in zip(answer.token_ids, answer.logprobs, strict=True))
    assert answer.cumulative_logprob == pytest.approx(drawn)


def test_an_answer_without_max_tokens_takes_the_room_there_is() -> None:
    whole = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    [output] = make_llm().generate("Hello", whole)
    assert len(output.prompt_token_ids + output.outputs[0].token_ids) == make_llm().core.info.max_model_len
    tight = LLM("tiny-llama", device="cpu", num_pages=3, block_size=16)
    [output] = tight.generate("Hello", whole)
    # The token that is made last is never written to the cache.
    assert len(output.prompt_token_ids + output.outputs[0].token_ids) == 3 * 16 + 1
    assert output.outputs[0].finish_reason == "length"
    with pytest.raises(UnsupportedError, match="max_model_len is 512"):
        make_llm().generate([[5] * 512], whole)


def test_stop_texts_and_stop_tokens_are_told() -> None:
    [free] = make_llm().generate("Hello", GREEDY)
    tokens, text = free.outputs[0].token_ids, free.outputs[0].text
    stop = next(c for c in text if text.index(c))
    [cut] = make_llm().generate("Hello", SamplingParams(temperature=0, max_tokens=8, stop=[stop], ignore_eos=True))
    assert (cut.outputs[0].finish_reason, cut.outputs[0].stop_reason) == ("stop", stop)
    assert cut.outputs[0].text == text[: text.index(stop)]
    [cut] = make_llm().generate("Hello", SamplingParams(temperature=0, stop_token_ids=[tokens[0]], ignore_eos=True))
    assert (cut.outputs[0].token_ids, cut.outputs[0].stop_reason) == (tokens[:1], tokens[0])


def test_without_detokenize_there_are_tokens_alone() -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, detokenize=False, logprobs=1)
    [output] = make_llm().generate("Hello", params)
    assert output.outputs[0].token_ids == tokens_of(make_llm(), "Hello", GREEDY)[0]
    assert output.outputs[0].text == ""
    assert output.outputs[0].logprobs is not None
    assert {one.decoded_token for place in output.outputs[0].logprobs for one in place.values()} == {None}


def test_vllms_defaults_are_ours_in_other_words() -> None:
    given = SamplingParams(
        logit_bias=None, stop=None, stop_token_ids=None, bad_words=None, allowed_token_ids=None, seed=None,
        top_k=-1, spaces_between_special_tokens=True, skip_special_tokens=True, detokenize=True,
    )  # fmt: skip
    assert given == SamplingParams()
    assert SamplingParams(stop="a", stop_token_ids=[3], bad_words=["b"]).stop == ("a",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("stop", value) for value in (5, [5], [""], {"a": 1}, b"a")),
        *(("stop_token_ids", value) for value in (5, "12", [1.5], [True])),
        *(("bad_words", value) for value in (5, [5], [""])),
        *(("logit_bias", value) for value in (5, {"5": 1}, {5: "1"}, {5: math.nan})),
        *(("allowed_token_ids", value) for value in (5, [], "1")),
        *(("max_tokens", value) for value in (0, "5", 1.5)),
        *(("min_tokens", value) for value in (None, -1, 17, "1")),
        *((name, None) for name in ("n", "temperature", "top_p", "top_k", "min_p", "presence_penalty")),
        ("temperature", "hot"),
        ("structured_outputs", {"regex": "a"}),
    ],
)
def test_a_wrong_value_of_a_sampling_parameter_is_named(name: str, value: Any) -> None:
    with pytest.raises(SamplingParamsError, match=f"^{name} is ") as refused:
        SamplingParams(**{name: value})
    assert refused.value.parameter == name


@pytest.mark.parametrize(
    "given", [{"choice": 5}, {"choice": "ab"}, {"choice": [1]}, {"regex": 5}, {"json": 5}, {"json_object": 5}]
)
def test_a_wrong_structure_is_named(given: dict[str, Any]) -> None:
    with pytest.raises(SamplingParamsError, match=next(iter(given))):
        StructuredOutputsParams(**given)


def test_stop_texts_need_text() -> None:
    with pytest.raises(SamplingParamsError, match="detokenize = False"):
        SamplingParams(stop=["a"], detokenize=False)


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("num_seqs", [1, 4])
def test_a_bad_word_does_not_come_and_all_before_it_does(length: int, num_seqs: int) -> None:
    """The word is tokens of the greedy answer, which are its own way to be written."""
    llm, tokenizer = LLM("tiny-llama", device="cpu", max_num_seqs=num_seqs), byte_tokenizer()
    free = tokens_of(llm, PROMPTS, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
    for prompt, tokens in zip(PROMPTS, free, strict=True):
        runs = [tokens[i : i + length] for i in range(1, len(tokens) - length)]
        words = [tokenizer.decode(run, skip_special_tokens=False) for run in runs]
        word, run = next((w, run) for w, run in zip(words, runs, strict=True) if own_way(w) == tuple(run))
        first = next(i for i in range(len(tokens)) if tokens[i : i + length] == run) + length - 1
        barred = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True, bad_words=[word])
        found, *others = tokens_of(llm, [prompt, *PROMPTS], [barred, *[GREEDY] * 3])
        assert found[:first] == tokens[:first]
        assert found[first] != tokens[first]
        for way in bad_word_tokens([word], tokenizer):
            assert way not in {tuple(found[i : i + len(way)]) for i in range(len(found))}
        assert others == [t[:8] for t in free]


def own_way(word: str) -> tuple[int, ...]:
    return bad_word_tokens([word], byte_tokenizer())[0] if word.strip() else ()


def test_bad_words_hold_beside_a_grammar_and_after_a_preemption() -> None:
    grammar = StructuredOutputsParams(regex="[ab]{12}")
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=12, structured_outputs=grammar, bad_words=["aa", "bb"])
    [output] = make_llm().generate("Hello", params)
    tokens = output.outputs[0].token_ids
    ways = set(bad_word_tokens(["aa", "bb"], byte_tokenizer()))
    assert not ways & {tuple(tokens[i : i + n]) for n in (1, 2) for i in range(len(tokens))}
    free = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, bad_words=["the", "a", "e"])
    wanted = tokens_of(make_llm(), PROMPTS, free)
    tight = LLM("tiny-llama", device="cpu", num_pages=26, block_size=4)
    assert tokens_of(tight, PROMPTS, free) == wanted
    assert tight.core.stats().num_preemptions > 0


def test_ways_to_write_a_bad_word() -> None:
    tokenizer = byte_tokenizer()
    bare, blank = bad_word_tokens(["the"], tokenizer)
    assert tokenizer.decode(list(bare)) == "the"
    assert tokenizer.decode(list(blank)) == " the"
    assert bad_word_tokens([" the", "the", "  the"], tokenizer) == [bare, blank]
    assert tokenizer.decode(list(bad_word_tokens(["\n"], tokenizer)[0])) == "\n"
    with pytest.raises(SamplingParamsError, match="which has no tokens"):
        bad_word_tokens(["  "], tokenizer)
    with pytest.raises(SamplingParamsError, match=f"at most {MAX_BAD_WORDS}"):
        bad_word_tokens([f"w{i}" for i in range(MAX_BAD_WORDS + 1)], tokenizer)
    with pytest.raises(UsageError, match="bad_words holds a lone surrogate"):
        make_llm().generate("Hello", SamplingParams(bad_words=["\udcff"]))
    with pytest.raises(UnsupportedError, match="has no bad_words"):
        LLM("tiny-llama", device="fake").generate("Hello", SamplingParams(bad_words=["a"]))


def test_a_mask_that_bad_words_would_empty_stays() -> None:
    words = BadWords([(3,), (5, 40), (6, 41), (99,)], vocab_size=64)
    mask = np.array([1 << 3 | 1 << 4, 1 << 8 | 1 << 9], dtype=np.int32)
    words.accept(5)
    words.bar(mask)
    assert mask.tolist() == [1 << 4, 1 << 9], "40 follows 5, 41 does not follow 6, 99 is none of the model's"
    only = np.array([1 << 3, 0], dtype=np.int32)
    words.bar(only)
    assert only.tolist() == [1 << 3, 0]


def test_chat_renders_as_the_server_does() -> None:
    tools = [{"type": "function", "function": {"name": "weather"}}]
    template = find_chat_template("tiny-llama")
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    outputs = make_llm().chat([CONVERSATION, parts], GREEDY, tools=tools)
    assert [output.prompt for output in outputs] == [
        template.render(CONVERSATION, tools),
        template.render([{"role": "user", "content": "Hi"}], tools),
    ]
    [output] = make_llm().chat(CONVERSATION, sampling_params=GREEDY, use_tqdm=False, add_generation_prompt=False)
    assert output.prompt == template.render(CONVERSATION, add_generation_prompt=False)
    assert output.outputs[0].token_ids == tokens_of(make_llm(), output.prompt, GREEDY)[0]
    own = "{{ greeting }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    words: dict[str, Any] = {"chat_template": own, "chat_template_kwargs": {"greeting": "Hey"}}
    assert make_llm().chat(CONVERSATION, GREEDY, **words)[0].prompt == "Hey<system>Be short.<user>Hi"


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([], "at least one message"),
        ("Hi", "at least one message"),
        ([[]], "at least one message"),
        ([{"content": "Hi"}], "A message is"),
        ([{"role": "user", "content": 5}], "content of type int"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "this model takes text"),
        ([{"role": "user", "content": [{"type": "smell"}]}], "part of type 'smell'"),
        ([{"role": "user", "content": "\udcff"}], "lone surrogate"),
    ],
)
def test_what_is_no_conversation_is_refused(messages: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        make_llm().chat(messages, GREEDY)


def test_media_of_a_message_come_in_order_by_their_urls() -> None:
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": "a.png"}},
        {"type": "text", "text": "x"},
        {"type": "video_url", "video_url": "b.mp4"},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
    ]
    found = media_of({"role": "user", "content": parts})
    assert found == [("image", "a.png"), ("video", "b.mp4"), ("audio", "data:audio/wav;base64,AAAA")]
    for kind, given in (("image_url", {"href": "x"}), ("input_audio", {"data": "AAAA"})):
        with pytest.raises(UsageError, match=f"part of type '{kind}' without"):
            media_of({"role": "user", "content": [{"type": kind, kind: given}]})


def test_pictures_of_a_conversation_are_seen() -> None:
    from PIL import Image

    llm = LLM("tiny-qwen2_vl", device="cpu")
    answers = []
    for colour in ("red", "blue"):
        part = {"type": "image_pil", "image_pil": Image.new("RGB", (56, 56), colour)}
        text = {"type": "text", "text": "What is this?"}
        [output] = llm.chat([{"role": "user", "content": [part, text]}], GREEDY)
        assert "<|image_pad|><|vision_end|>What is this?" in (output.prompt or "")
        [told] = llm.generate({"prompt": output.prompt, "multi_modal_data": {"image": part["image_pil"]}}, GREEDY)
        assert told.outputs[0].token_ids == output.outputs[0].token_ids
        answers.append(tuple(output.outputs[0].token_ids))
    assert answers[0] != answers[1]


def test_embeddings_are_those_of_the_pipeline() -> None:
    texts = ["A lighthouse.", "A longer text about a lighthouse."]
    found = make_embedder().embed(texts)
    wanted = Pipeline("tiny-bge_m3", device="cpu").run([{"text": text} for text in texts])
    for output, result in zip(found, wanted, strict=True):
        assert output.finished
        assert output.outputs.embedding == pytest.approx(result.tensors["dense_vecs"].tolist(), abs=1e-6)
        assert output.outputs.hidden_size == len(output.outputs.embedding)
        assert sum(x * x for x in output.outputs.embedding) == pytest.approx(1, abs=1e-4)
    again = make_embedder().embed([output.prompt_token_ids for output in found])
    assert [one.outputs.embedding for one in again] == [pytest.approx(one.outputs.embedding, abs=1e-6) for one in found]
    assert len({output.request_id for output in [*found, *again]}) == 4


def test_a_model_that_makes_tokens_embeds_by_its_last_state() -> None:
    one, other = make_llm().embed(PROMPTS[:2])
    assert one.prompt_token_ids == byte_tokenizer().encode(PROMPTS[0]).ids
    assert sum(x * x for x in one.outputs.embedding) == pytest.approx(1)
    assert one.outputs.embedding != other.outputs.embedding
    assert make_llm().embed(PROMPTS[0])[0].outputs.embedding == pytest.approx(one.outputs.embedding, abs=1e-6)


def test_each_kind_of_model_says_what_it_does() -> None:
    for call in (make_embedder().generate, make_embedder().chat):
        with pytest.raises(UnsupportedError, match=r"makes embeddings, no tokens: use LLM\.embed"):
            call("Hello")
    with pytest.raises(UnsupportedError, match="makes no tokens; use Pipeline"):
        LLM("tiny-sdxl", device="cpu")
    with pytest.raises(UsageError, match="prompt holds a lone surrogate"):
        make_embedder().embed("\udcff")


def test_the_tokenizer_is_transformers_own_form() -> None:
    tokenizer = make_llm().get_tokenizer()
    assert tokenizer.encode("Hello") == byte_tokenizer().encode("Hello").ids
    assert tokenizer.decode(tokenizer.encode(" it's")) == " it's"
    text = tokenizer.apply_chat_template(CONVERSATION, tokenize=False, add_generation_prompt=True)
    assert text == make_llm().chat(CONVERSATION, GREEDY)[0].prompt
    assert tokenizer.eos_token_id in make_llm().core.info.eos_token_ids


def test_vllms_words_of_the_constructor() -> None:
    llm = LLM(
        model="tiny-llama", tokenizer=None, tokenizer_mode="auto", trust_remote_code=False, tensor_parallel_size=1,
        dtype=torch.float32, quantization=None, seed=None, gpu_memory_utilization=0.9, enforce_eager=True, device="cpu",
        max_model_len=128, max_num_seqs=4, max_num_batched_tokens=64, enable_prefix_caching=False, block_size=8,
        num_gpu_blocks_override=33, load_format="auto", disable_log_stats=True, enable_chunked_prefill=True,
    )  # fmt: skip
    info = llm.core.info
    assert (info.dtype, info.page_size, info.num_pages) == ("float32", 8, 33)
    assert (info.max_model_len, info.max_num_seqs, info.max_num_batched_tokens) == (128, 4, 64)
    assert llm.get_default_sampling_params() == SamplingParams()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ({"trust_remote_code": True}, "trust_remote_code is True; it can only be False: no code of a checkpoint"),
        ({"disable_log_stats": False}, "disable_log_stats is False"),
        ({"quantization": "awq"}, "quantization is 'awq'"),
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size is 2"),
        ({"load_format": "pt"}, "load_format is 'pt'; it can be auto, safetensors, dummy"),
        ({"tokenizer": "/nowhere"}, "a folder with a tokenizer.json"),
        ({"block_size": 8, "page_size": 8}, "block_size is another name of page_size"),
        ({"max_num_seqs": "8"}, "max_num_seqs is '8'; it must be a whole number"),
        ({"max_model_length": 8}, "LLM has no option 'max_model_length'"),
    ],
)
def test_words_that_cannot_be_heeded_are_named(word: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        LLM(model="tiny-llama", device="cpu", **word)


@pytest.mark.parametrize(("asked", "wanted"), [("auto", None), (None, None), ("half", "float16"), ("float", "float32")])
def test_dtypes_by_vllms_names(asked: str | None, wanted: str | None) -> None:
    own = LLM("tiny-llama", device="cpu").core.info.dtype
    assert LLM("tiny-llama", device="cpu", dtype=asked).core.info.dtype == (wanted or own)
    assert EngineConfig("tiny-llama", dtype="auto") == EngineConfig("tiny-llama")
    with pytest.raises(UnknownNameError, match="no dtype named 'int8'"):
        LLM("tiny-llama", device="cpu", dtype="int8")


def test_dummy_weights_and_another_tokenizer(tmp_path: Path) -> None:
    shipped = find_model("trained-llama")
    assert shipped.checkpoint is not None
    trained, dummy, again = (
        LLM(shipped.checkpoint, device="cpu", load_format=form, seed=5) for form in ("safetensors", "dummy", "dummy")
    )
    name = "lm_head.weight"
    states = [llm.core.executor.model.state_dict()[name] for llm in (trained, dummy, again)]
    assert torch.equal(states[1], states[2])
    assert not torch.equal(states[0], states[1])
    assert dummy.tokenizer.to_str() == trained.tokenizer.to_str()

    byte_tokenizer().save(str(tmp_path / "tokenizer.json"))
    other = LLM(shipped.checkpoint, device="cpu", tokenizer=tmp_path)
    assert other.tokenizer.to_str() == byte_tokenizer().to_str()
    assert tokens_of(other, [[5, 6, 7]], GREEDY) == tokens_of(trained, [[5, 6, 7]], GREEDY)
