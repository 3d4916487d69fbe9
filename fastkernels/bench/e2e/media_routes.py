"""What a load sends to a model that takes pictures, videos or sounds: chats with them, and recordings."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping
from typing import Any

from fastkernels.bench.e2e.http import Endpoint, HttpError, post
from fastkernels.bench.e2e.load import RequestRecord
from fastkernels.bench.e2e.media import MediaFile, MediaRequest
from fastkernels.bench.e2e.streamed import Json, Streamed

_BOUNDARY = uuid.uuid4().hex


class Chats(Streamed):
    """A message of pictures and videos, then words. The prompt's length is the server's word: the template's tokens and
    those of the media are in it."""

    path = "/v1/chat/completions"

    def body(self, model: str, request: MediaRequest) -> Json:
        parts: list[Json] = [_part(file) for file in request.files]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": request.words}]}]
        return {"model": model, "messages": messages, "max_tokens": request.output_len, **self.options}

    def record(self, index: int, request: MediaRequest, start_s: float) -> RequestRecord:
        return RequestRecord(index, 0, request.output_len, start_s)

    def text(self, choice: Json) -> str:
        return (choice.get("delta") or {}).get("content") or ""


def _part(file: MediaFile) -> Json:
    """video_url is vLLM's."""
    name = f"{file.modality}_url"
    return {"type": name, name: {"url": f"data:{file.kind};base64,{base64.b64encode(file.content).decode()}"}}


class Transcriptions:
    """A form with the recording. verbose_json tells the tokens of each segment; max_completion_tokens is vLLM's."""

    path = "/v1/audio/transcriptions"
    is_streamed = False

    def content(self, model: str, request: MediaRequest) -> bytes:
        fields = {
            "model": model,
            "response_format": "verbose_json",
            "temperature": "0",
            "max_completion_tokens": str(request.output_len),
        }
        (file,) = request.files
        parts = [_form_part(f'name="{name}"', value.encode()) for name, value in fields.items()]
        parts.append(_form_part('name="file"; filename="example.wav"', file.content, file.kind))
        return b"".join(parts) + f"--{_BOUNDARY}--\r\n".encode()

    def record(self, index: int, request: MediaRequest, start_s: float) -> RequestRecord:
        return RequestRecord(index, 0, request.output_len, start_s)

    async def read(self, endpoint: Endpoint, body: bytes, record: RequestRecord, started: float) -> None:
        answer: Mapping[str, Any] = await post(endpoint, self.path, body, f"multipart/form-data; boundary={_BOUNDARY}")
        ended = time.perf_counter()
        record.text = answer["text"]
        record.token_ids = [token for segment in answer["segments"] for token in segment["tokens"]]
        if not record.token_ids:
            raise HttpError(0, "The transcription had no token.")
        record.output_len = len(record.token_ids)
        record.e2e_s = ended - started


def _form_part(disposition: str, content: bytes, kind: str | None = None) -> bytes:
    lines = [f"--{_BOUNDARY}", f"Content-Disposition: form-data; {disposition}"]
    lines += [f"Content-Type: {kind}"] if kind else []
    return "\r\n".join([*lines, "", ""]).encode() + content + b"\r\n"
