"""Structured output on the byte tokenizer: whatever the logits, the text is what was asked for."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from fastkernels.engine.config import EngineConfig
from fastkernels.engine.core import EngineCore
from fastkernels.engine.outputs import EngineRequest, FinishReason, StepOutput
from fastkernels.engine.sampler import Sampler
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError, StructuredOutputsParams
from fastkernels.engine.structured import GrammarError, Grammars, mask_of, num_mask_words
from fastkernels.workloads.tokenizer import BEGIN_TOKEN, END_TOKEN, VOCAB_SIZE, byte_tokenizer

pytest.importorskip("xgrammar")
TOKENIZER = byte_tokenizer()
EOS = TOKENIZER.token_to_id(END_TOKEN)
CPU = torch.device("cpu")
NOTHING = r"[^\s\S]"
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
        "ok": {"type": "boolean"},
    },
    "required": ["name", "age", "ok"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(TOKENIZER, VOCAB_SIZE, {EOS})


def structured(**fields: Any) -> StructuredOutputsParams:
    return StructuredOutputsParams(**fields)


def generate(
    grammars: Grammars, wanted: StructuredOutputsParams, seed: int, num: int = 400, **fields: Any
) -> tuple[str, bool, list[int]]:
    """(text, whether it ended, tokens) of random logits, as the engine would: draw, accept, draw."""
    params = SamplingParams(structured_outputs=wanted, max_tokens=num, **fields)
    sampler = Sampler(VOCAB_SIZE, CPU, 3, eos_token_ids=(EOS,), grammars=grammars)
    sampler.add(2, params, seed, [1])
    sampler.add(0, SamplingParams(temperature=0), seed, [1])
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    assert sampler.needs_tokens(2)
    assert not sampler.needs_tokens(0)
    for step in range(num):
        logits = torch.randn(2, VOCAB_SIZE, generator=generator).bfloat16() * 2
        out = sampler(logits, [0, 2], torch.tensor([0, 2]), torch.tensor([1, 1]) + step)
        assert int(out.token_ids[0]) == int(logits[0].argmax())
        token = int(out.token_ids[1])
        sampler.accept(2, token)
        if token == EOS:
            return TOKENIZER.decode(tokens), True, tokens
        tokens.append(token)
    return TOKENIZER.decode(tokens), False, tokens


@pytest.mark.parametrize("seed", range(20))
def test_a_json_schema_gives_text_that_parses_and_fits(grammars: Grammars, seed: int) -> None:
    text, ended, _ = generate(grammars, structured(json=SCHEMA), seed)
    assert ended, text
    value = json.loads(text)
    assert set(value) <= set(SCHEMA["properties"])  # type: ignore[call-overload]
    assert set(value) >= {"name", "age", "ok"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 6
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 150
    assert type(value["ok"]) is bool
    assert len(value.get("tags", [])) <= 3
    assert set(value.get("tags", [])) <= {"red", "blue"}


@pytest.mark.parametrize("seed", range(20))
def test_a_regex_is_matched(grammars: Grammars, seed: int) -> None:
    pattern = r"[A-Z][a-z]{2,8}-\d{3}(\.(jpg|png))?"
    text, ended, _ = generate(grammars, structured(regex=pattern), seed)
    assert ended
    assert re.fullmatch(pattern, text), text


def test_a_choice_is_one_of_the_choices(grammars: Grammars) -> None:
    choices = ("yes", "no", 'he said "maybe"', "na\\ïve\n", "😀")
    texts = {generate(grammars, structured(choice=choices), seed)[0] for seed in range(60)}
    assert texts == set(choices)


@pytest.mark.parametrize("seed", range(5))
def test_a_grammar_and_any_json_object_are_followed(grammars: Grammars, seed: int) -> None:
    sums = structured(grammar='root ::= num ("+" num){1,3}\nnum ::= [1-9] [0-9]{0,2}')
    text, ended, _ = generate(grammars, sums, seed)
    assert ended
    assert re.fullmatch(r"[1-9]\d{0,2}(\+[1-9]\d{0,2}){1,3}", text)
    text, ended, _ = generate(grammars, structured(json_object=True), seed, num=600)
    assert text.lstrip().startswith("{")
    assert not ended or isinstance(json.loads(text), dict)


def test_the_end_token_is_allowed_only_when_the_grammar_is_complete(grammars: Grammars) -> None:
    grammar = grammars.start(structured(regex="ab?"))
    mask = np.empty(num_mask_words(VOCAB_SIZE), dtype=np.int32)

    def allowed() -> set[str]:
        grammar.fill(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:VOCAB_SIZE]
        return {TOKENIZER.id_to_token(int(t)) for t in bits.nonzero()[0]}

    assert allowed() <= {"a", "ab"}
    assert "a" in allowed()
    grammar.accept(TOKENIZER.token_to_id("a"))
    assert allowed() == {"b", END_TOKEN}
    with pytest.raises(GrammarError, match="place 1"):
        grammar.accept(TOKENIZER.token_to_id("a"))
    grammar.accept(TOKENIZER.token_to_id("b"))
    assert allowed() == {END_TOKEN}
    grammar.accept(EOS)
    assert allowed() == {END_TOKEN}
    grammar.accept(EOS)


def test_special_tokens_are_no_text_of_a_string(grammars: Grammars) -> None:
    grammar = grammars.start(structured(json={"type": "string"}))
    for character in '"x':
        grammar.accept(TOKENIZER.token_to_id(character))
    mask = np.empty(num_mask_words(VOCAB_SIZE), dtype=np.int32)
    grammar.fill(mask)
    for token in (TOKENIZER.token_to_id(BEGIN_TOKEN), EOS):
        assert not mask[token // 32] >> (token % 32) & 1


def test_min_tokens_hold_while_the_grammar_can_go_on(grammars: Grammars) -> None:
    for seed in range(10):
        text, ended, tokens = generate(grammars, structured(regex="a{1,40}"), seed, min_tokens=12)
        assert ended
        assert len(tokens) >= 12 or text == "a" * 40
        assert generate(grammars, structured(regex="ab"), seed, min_tokens=12)[0] == "ab"


def test_allowed_tokens_hold_where_they_leave_a_token(grammars: Grammars) -> None:
    b_and_end = (*TOKENIZER.encode("b").ids, EOS)
    for seed in range(5):
        text, ended, _ = generate(grammars, structured(regex="x[ab]{3}"), seed, allowed_token_ids=b_and_end)
        assert (text, ended) == ("xbbb", True)


def test_a_preempted_answer_goes_on_in_its_grammar(grammars: Grammars) -> None:
    *_, tokens = generate(grammars, structured(json=SCHEMA), 3)
    whole, half = grammars.start(structured(json=SCHEMA)), len(tokens) // 2
    masks = np.empty((2, num_mask_words(VOCAB_SIZE)), dtype=np.int32)
    for token in tokens[:half]:
        whole.accept(token)
    sampler = Sampler(VOCAB_SIZE, CPU, 2, eos_token_ids=(EOS,), grammars=grammars)
    sampler.add(1, SamplingParams(structured_outputs=structured(json=SCHEMA)), 0, [1], tokens[:half])
    whole.fill(masks[0])
    masks[1] = sampler._followers[1].mask()
    assert np.array_equal(*masks)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"json": '{"type": '}, "json"),
        ({"json": {"type": "objekt"}}, "json"),
        ({"regex": "[a-"}, "regex"),
        ({"regex": "(a"}, "regex"),
        ({"choice": ()}, "choice"),
        ({"grammar": "start ::= nothing"}, "grammar"),
        ({"grammar": "root ::= missing"}, "grammar"),
        ({"regex": NOTHING}, "regex"),
        ({"json": {"$ref": "#"}}, "json"),
    ],
)
def test_what_cannot_be_compiled_or_matches_nothing_is_refused_by_name(
    grammars: Grammars, fields: dict[str, Any], name: str
) -> None:
    sampler = Sampler(VOCAB_SIZE, CPU, 1, eos_token_ids=(EOS,), grammars=grammars)
    with pytest.raises(SamplingParamsError, match=name) as refused:
        sampler.check(SamplingParams(structured_outputs=structured(**fields)))
    assert refused.value.parameter == f"structured_outputs.{name}"


def chained(num: int) -> dict[str, Any]:
    """A schema of `num` definitions that each lead to the next."""
    chain = {f"d{i}": {"type": "array", "items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(num - 1)}
    return {"$ref": "#/$defs/d0", "$defs": {**chain, f"d{num - 1}": {"type": "integer"}}}


def nested(num: int) -> str:
    return '{"type":"array","items":' * (num - 1) + '{"type":"integer"}' + "}" * (num - 1)


def grouped(num: int) -> str:
    """A regex of `num` groups in each other, among brackets that are characters."""
    return r"[()]\(\)" * 300 + "(a|" * num + "b" + ")" * num


SIZES: list[tuple[str, Any, int, int, str]] = [
    ("json", lambda n: {"type": "string", "pattern": grouped(n)}, 200, 5000, "nests 5000 brackets; at most 200"),
    ("json", lambda n: {"type": "object", "patternProperties": {grouped(n): {}}}, 200, 201, "201 brackets"),
    ("json", lambda n: json.dumps({"propertyNames": {"pattern": grouped(n)}}), 200, 201, "201 brackets"),
    ("json", lambda n: f'{{"type":"string","pattern":"a","pattern":"{"(" * n + ")" * n}"}}', 200, 201, "201 brackets"),
    ("json", nested, 200, 201, "nested 201 levels deep; at most 200"),
    ("json", nested, 200, 5000, "too deeply to be read; at most 200"),
    ("json", chained, 495, 20_000, "at most 131072"),
    ("json", chained, 495, 600, "through its 600 references; at most 1000"),
    ("regex", grouped, 200, 201, "regex nests 201 brackets; at most 200"),
    ("regex", lambda n: "a|" * (n // 2), 2**15, 2**15 + 2, "has 32770 characters; at most 32768"),
    ("grammar", lambda n: 'root ::= "a"'.ljust(n), 2**17, 2**17 + 1, "has 131073 characters; at most 131072"),
    ("choice", lambda n: ("a" * 1024,) * (n // 1024), 2**10, 2**17 + 1024, "has 132096 characters; at most 131072"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make", "most", "too_many", "says"), SIZES)
def test_what_is_too_deep_or_too_long_is_refused_before_it_is_compiled(
    grammars: Grammars, name: str, make: Any, most: int, too_many: int, says: str
) -> None:
    grammars.check(structured(**{name: make(most)}))
    with pytest.raises(SamplingParamsError, match=says) as refused:
        structured(**{name: make(too_many)})
    assert refused.value.parameter == f"structured_outputs.{name}"


def test_the_second_of_two_values_of_a_key_holds(grammars: Grammars) -> None:
    text, *_ = generate(grammars, structured(json='{"const":"one","const":"two"}'), 0)
    assert text == '"two"'


def test_a_model_without_an_end_token_is_refused() -> None:
    with pytest.raises(SamplingParamsError, match="need an end token"):
        Grammars(TOKENIZER, VOCAB_SIZE, ()).check(structured(regex="a"))


def test_without_xgrammar_the_request_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "xgrammar", None)
    with pytest.raises(SamplingParamsError, match=r"pip install 'fastkernels\[structured\]'"):
        Grammars(TOKENIZER, VOCAB_SIZE, {EOS}).check(structured(regex="a"))


def stepped(core: EngineCore, *requests: EngineRequest) -> dict[str, list[StepOutput]]:
    """What the engine said of each request until none was left."""
    said: dict[str, list[StepOutput]] = {request.request_id: [] for request in requests}
    for request in requests:
        core.add(request)
    while core.has_unfinished:
        for news in core.step():
            said[news.request_id].append(news)
    core.scheduler.check_invariants()
    return said


@pytest.fixture(scope="module")
def core() -> EngineCore:
    return EngineCore(EngineConfig("tiny-llama", device="cpu", num_pages=64))


def test_an_answer_that_can_neither_go_on_nor_end_fails_alone(core: EngineCore) -> None:
    """Where there is room behind the place, and where it is the answer's last."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": NOTHING}}, "required": ["a"]}
    wanted = structured(json=schema)
    innocent = EngineRequest("innocent", (8, 9), SamplingParams(max_tokens=30, seed=3, ignore_eos=True))
    alone = stepped(core, innocent)["innocent"]
    max_tokens = 60
    for _ in range(2):
        params = SamplingParams(structured_outputs=wanted, max_tokens=max_tokens, seed=1)
        said = stepped(core, EngineRequest("stuck", (5, 6, 7), params), innocent)
        assert [news.token_ids for news in said["innocent"]] == [news.token_ids for news in alone]
        *tokens, last = said["stuck"]
        assert (last.finish_reason, last.token_ids) == (FinishReason.ERROR, ())
        assert "can neither go on nor end" in (last.error or "")
        assert core.cache.num_free_pages == core.info.num_pages
        assert len(tokens) < max_tokens
        max_tokens = len(tokens) + 1


def test_a_token_that_the_grammar_refuses_ends_its_request_alone(core: EngineCore, monkeypatch: Any) -> None:
    """As of logits that are no numbers, from which any token may come."""
    monkeypatch.setattr(core.runner.sampler, "_apply_mask", lambda logits, *_: logits.fill_(float("nan")))
    wanted = SamplingParams(structured_outputs=structured(regex="zzzz"), max_tokens=5)
    said = stepped(core, EngineRequest("nan", (5,), wanted), EngineRequest("other", (8,), SamplingParams(max_tokens=3)))
    assert (said["nan"][-1].finish_reason, said["nan"][-1].token_ids) == (FinishReason.ERROR, ())
    assert "does not allow it" in (said["nan"][-1].error or "")
    assert said["other"][-1].finish_reason is not FinishReason.ERROR


@pytest.mark.parametrize("vocab_size", [1, 31, 32, 33, 512])
def test_masks_have_one_bit_a_token(vocab_size: int) -> None:
    tokens = {0, vocab_size // 2, vocab_size - 1}
    mask = mask_of(tokens, vocab_size)
    assert mask.shape == (num_mask_words(vocab_size),)
    assert mask.dtype == np.int32
    assert {t for t in range(32 * len(mask)) if mask[t // 32] >> (t % 32) & 1} == tokens
