"""/v1/chat/completions: messages answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastkernels.engine.detokenizer import Vocabulary
from fastkernels.engine.messages import render_chat
from fastkernels.engine.outputs import CompletionOutput, RequestOutput, TokenLogprobs
from fastkernels.errors import UsageError
from fastkernels.server.completions import prompt_logprobs
from fastkernels.server.errors import ApiError
from fastkernels.server.generation import Job, Prompt, usage
from fastkernels.server.protocol import ChatBody
from fastkernels.server.service import Service

_TOLD = ("finish_reason", "logprobs", "token_ids")
"""A choice of a chunk without text in which all of these are empty is left out."""


async def build_job(service: Service, body: ChatBody, request_id: str) -> Job:
    """Errors: ApiError and SamplingParamsError name the field."""
    body.check()
    tools = None if body.tool_choice == "none" else body.tools
    messages = [message.as_given() for message in body.messages]
    begins = body.add_generation_prompt is not False
    try:
        text = render_chat(service.template, messages, service.processor, tools, begins, body.chat_template_kwargs)
    except UsageError as error:
        raise ApiError(400, str(error), "messages") from error
    prompt = await _read(service, body, text)
    wanted = body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens
    max_tokens = service.max_tokens(wanted, None, len(prompt.token_ids), "messages")
    params = body.sampling_params(max_tokens, body.num_logprobs)
    return Job(request_id, body.model or service.model_names[0], [prompt], params)


async def _read(service: Service, body: ChatBody, text: str) -> Prompt:
    if not any(message.media() for message in body.messages):
        tokens = await service.encode(text, "messages", add_special_tokens=False)
        service.check_placeholders(tokens, "messages")
        return Prompt(tokens, text)
    from fastkernels.server.media import process

    processed = await process(service, body.messages, text)
    return Prompt(processed.token_ids, text, processed.media, processed.encoder_input)


class ChatShape:
    def __init__(self, body: ChatBody, job: Job, vocabulary: Vocabulary) -> None:
        self._job, self._vocabulary = job, vocabulary
        self._wants_logprobs = bool(body.logprobs)
        self._wants_token_ids = bool(body.return_token_ids)
        self._begun: set[int] = set()

    def response(self, outputs: Sequence[RequestOutput]) -> dict[str, Any]:
        (output,) = outputs
        num_output = sum(len(answer.token_ids) for answer in output.outputs)
        value = self._head("chat.completion") | {
            "choices": [
                self._choice(answer) | {"message": {"role": "assistant", "content": answer.text}}
                for answer in output.outputs
            ],
            "usage": usage(self._job.num_prompt_tokens, num_output, output.num_cached_tokens),
        }
        if output.prompt_logprobs is not None:
            value["prompt_logprobs"] = prompt_logprobs(output.prompt_logprobs, self._vocabulary)
        return value

    def chunks(self, prompt_index: int, output: RequestOutput) -> list[dict[str, Any]]:
        choices = []
        for answer in output.outputs:
            if answer.index not in self._begun:
                self._begun.add(answer.index)
                first = {"role": "assistant", "content": ""}
                choices.append({"index": answer.index, "delta": first, "logprobs": None, "finish_reason": None})
            choice = self._choice(answer)
            if answer.text or any(choice.get(name) for name in _TOLD):
                choices.append(choice | {"delta": {"content": answer.text} if answer.text else {}})
        return [self._head("chat.completion.chunk") | {"choices": [choice]} for choice in choices]

    def last_chunk(self) -> dict[str, Any]:
        return self._head("chat.completion.chunk") | {"choices": []}

    def _head(self, kind: str) -> dict[str, Any]:
        job = self._job
        return {"id": job.request_id, "object": kind, "created": job.created, "model": job.model}

    def _choice(self, answer: CompletionOutput) -> dict[str, Any]:
        logprobs = None
        if self._wants_logprobs:
            logprobs = {"content": [self._token(one) for one in answer.logprobs or ()]}
        choice = {
            "index": answer.index,
            "logprobs": logprobs,
            "finish_reason": answer.finish_reason.value if answer.finish_reason is not None else None,
            "stop_reason": answer.stop_reason,
        }
        return choice | ({"token_ids": list(answer.token_ids)} if self._wants_token_ids else {})

    def _token(self, said: TokenLogprobs) -> dict[str, Any]:
        told = [self._one(t, v) for t, v in zip(said.token_ids, said.logprobs, strict=True)]
        return told[0] | {"top_logprobs": told[1:]}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._vocabulary.token_bytes(token)
        return {"token": self._vocabulary.token_text(token), "logprob": max(logprob, -9999.0), "bytes": list(raw)}
