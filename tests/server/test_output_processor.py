"""What steps mean: answers, their ends, and what a caller is told when."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models

from fastkernels.engine.output_processor import OutputKind, OutputProcessor
from fastkernels.engine.outputs import FinishReason, StepOutput, TokenLogprobs
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError
from fastkernels.workloads import byte_tokenizer

TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


def run(text: str, params: SamplingParams, end: FinishReason = FinishReason.LENGTH) -> tuple[OutputProcessor, list]:
    processor = OutputProcessor(TOKENIZER)
    processor.add("r", "p", [5], params)
    tokens, outputs, aborted = ids(text), [], []
    for i, token in enumerate(tokens):
        changed, to_abort = processor.process([StepOutput("r", (token,), end if i == len(tokens) - 1 else None)])
        outputs += changed
        aborted += to_abort
    return processor, [outputs, aborted]


def test_outputs_grow_and_the_last_says_why_it_ended() -> None:
    processor, (outputs, aborted) = run("one two three", SamplingParams(max_tokens=50))
    texts = [output.outputs[0].text for output in outputs]
    assert texts == sorted(texts, key=len)
    assert texts[-1] == "one two three"
    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    assert outputs[-1].outputs[0].finish_reason is FinishReason.LENGTH
    assert (aborted, len(processor)) == ([], 0)


def test_n_answers_are_n_engine_requests_with_seeds_in_a_row() -> None:
    processor = OutputProcessor(TOKENIZER)
    requests = processor.add("r", None, [5, 6], SamplingParams(n=3, seed=2**63 - 2, prompt_logprobs=1))
    assert len({request.request_id for request in requests}) == 3
    assert [request.params.seed for request in requests] == [2**63 - 2, 2**63 - 1, 0]
    assert {request.params.n for request in requests} == {1}
    assert [request.params.prompt_logprobs for request in requests] == [1, None, None]
    done = [StepOutput(request.request_id, (70,), FinishReason.LENGTH) for request in requests]
    (first,), _ = processor.process(done[:1])
    assert not first.finished
    (last,), _ = processor.process(done[1:])
    assert last.finished
    assert [answer.index for answer in last.outputs] == [0, 1, 2]


def test_a_stop_text_ends_the_answer_and_names_the_request_to_abort() -> None:
    processor, (outputs, aborted) = run("alpha beta gamma", SamplingParams(max_tokens=50, stop="eta"))
    answer = outputs[-1].outputs[0]
    assert (answer.text, answer.finish_reason, answer.stop_reason) == ("alpha b", FinishReason.STOP, "eta")
    assert aborted == ["r"]
    assert len(processor) == 0
    assert TOKENIZER.decode(list(answer.token_ids)).startswith("alpha beta")


def test_a_stop_text_in_the_last_token_needs_no_abort() -> None:
    _, (outputs, aborted) = run("alpha beta", SamplingParams(max_tokens=50, stop=("zz", "eta")))
    assert outputs[-1].outputs[0].finish_reason is FinishReason.STOP
    assert aborted == []


def test_include_stop_keeps_it() -> None:
    params = SamplingParams(max_tokens=50, stop="eta", include_stop_str_in_output=True)
    assert run("alpha beta gamma", params)[1][0][-1].outputs[0].text == "alpha beta"


def test_min_tokens_puts_a_stop_text_off() -> None:
    count = len(ids("beta x "))
    params = SamplingParams(max_tokens=50, stop="beta", min_tokens=count)
    assert run("beta x beta y", params)[1][0][-1].outputs[0].text == "beta x "


def test_tokens_of_one_step_behind_the_stop_text_are_dropped_with_their_logprobs() -> None:
    processor = OutputProcessor(TOKENIZER)
    processor.add("r", None, [5], SamplingParams(max_tokens=50, stop="b", logprobs=0))
    tokens = tuple(i for c in "abcd" for i in ids(c))
    logprobs = tuple(TokenLogprobs((t,), (-1.0,), 1) for t in tokens)
    (output,), aborted = processor.process([StepOutput("r", tokens, None, logprobs)])
    answer = output.outputs[0]
    assert (answer.text, answer.token_ids, aborted) == ("a", tokens[:2], ["r"])
    assert answer.logprobs == logprobs[:2]


def test_the_blank_between_prompt_and_answer_is_told_and_can_be_stopped_at() -> None:
    """Of a tokenizer whose decoder strips the blank before a text."""
    tokenizer = Tokenizer(models.BPE(vocab={"<unk>": 0, "▁is": 1, "▁Paris": 2}, merges=[]))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    for stop, text in ((None, " Paris is"), (" Paris", ""), (" is", " Paris")):
        processor = OutputProcessor(tokenizer)
        processor.add("r", None, [1], SamplingParams(max_tokens=2, stop=stop))
        (output,), _ = processor.process([StepOutput("r", (2, 1), FinishReason.LENGTH)])
        assert output.outputs[0].text == text


@pytest.mark.parametrize(("include", "text"), [(False, "ab"), (True, "abc")])
def test_a_stop_token_is_kept_as_token_and_not_as_text(include: bool, text: str) -> None:
    tokens = ids("a") + ids("b") + ids("c")
    params = SamplingParams(max_tokens=9, stop_token_ids=(tokens[2],), include_stop_str_in_output=include)
    processor = OutputProcessor(TOKENIZER)
    processor.add("r", None, [5], params)
    (output,), _ = processor.process([StepOutput("r", tuple(tokens), FinishReason.STOP)])
    answer = output.outputs[0]
    assert (answer.text, answer.token_ids, answer.stop_reason) == (text, tuple(tokens), tokens[2])


def test_deltas_together_are_the_whole() -> None:
    processor = OutputProcessor(TOKENIZER)
    processor.add("r", None, [5], SamplingParams(max_tokens=50, logprobs=0, stop="zz"))
    state, text, tokens, logprobs = processor.state("r"), "", [], []
    all_ids = ids("naïve 你好 zebra")
    for i, token in enumerate(all_ids):
        reason = FinishReason.LENGTH if i == len(all_ids) - 1 else None
        processor.update([StepOutput("r", (token,), reason, (TokenLogprobs((token,), (-1.0,), 1),))])
        if i % 3 == 0 or reason:
            (answer,) = state.output(OutputKind.DELTA).outputs
            text += answer.text
            tokens += answer.token_ids
            logprobs += answer.logprobs
    assert (text, tokens) == ("naïve 你好 zebra", all_ids)
    assert [said.token_ids[0] for said in logprobs] == all_ids
    assert state.output(OutputKind.DELTA).outputs == ()


def test_abort_ends_what_is_open_and_later_steps_are_ignored() -> None:
    processor = OutputProcessor(TOKENIZER)
    requests = processor.add("r", None, [5], SamplingParams(n=2))
    state = processor.state("r")
    processor.process([StepOutput(requests[0].request_id, (70,), FinishReason.LENGTH)])
    assert processor.abort("r") == [requests[1].request_id]
    assert processor.process([StepOutput(requests[1].request_id, (70,))]) == ([], [])
    assert [a.finish_reason for a in state.output().outputs] == [FinishReason.LENGTH, FinishReason.ABORT]
    assert processor.abort("r") == processor.abort("unknown") == []


def test_an_id_in_use_is_refused() -> None:
    processor = OutputProcessor(TOKENIZER)
    processor.add("r", None, [5], SamplingParams())
    with pytest.raises(SamplingParamsError, match="'r' is in use"):
        processor.add("r", None, [5], SamplingParams())


def test_only_finished_spares_what_goes_on() -> None:
    processor = OutputProcessor(TOKENIZER)
    for name in "ab":
        processor.add(name, None, [5], SamplingParams(max_tokens=2))
    steps = [StepOutput("a", (70,)), StepOutput("b", (71,), FinishReason.LENGTH)]
    outputs, _ = processor.process(steps, only_finished=True)
    assert [output.request_id for output in outputs] == ["b"]
