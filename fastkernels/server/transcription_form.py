"""What a transcription is asked with: a form with the recording as a file or by URL, or JSON with its URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from typing import Any

from pydantic import ValidationError

from fastkernels.server.errors import ApiError, check_unicode, from_validation
from fastkernels.server.multipart import Part, read_form
from fastkernels.server.protocol import TranscriptionBody

_FORMATS = ("json", "text", "verbose_json")
_TEXTS = ("model", "url", "language", "prompt", "response_format")
_SEVERAL = ("timestamp_granularities", "include")
_HOW = "send the recording as a file of a form, or its http, https or data URL as url"
_PROPERTIES: dict[str, Any] = {
    **{name: {"type": "string"} for name in ("model", "url", "language", "prompt")},
    "response_format": {"type": "string", "enum": list(_FORMATS)},
    "temperature": {"type": "number", "minimum": 0, "maximum": 1},
    "max_completion_tokens": {"type": "integer", "minimum": 1},
}
SCHEMA: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"file": {"type": "string", "format": "binary"}, **_PROPERTIES}}
        },
        "application/json": {"schema": {"type": "object", "required": ["url"], "properties": _PROPERTIES}},
    },
}
"""Of the body, as OpenAPI has it."""


@dataclass(frozen=True)
class TranscriptionForm:
    """The fields of a request, as OpenAI's API names them. file: the recording itself; else it is at body.url."""

    body: TranscriptionBody
    file: bytes | None = None

    @property
    def source_field(self) -> str:
        return "url" if self.file is None else "file"

    @property
    def response_format(self) -> str:
        return self.body.response_format or "json"

    @property
    def temperature(self) -> float:
        return self.body.temperature or 0.0

    @classmethod
    def read(cls, content_type: str, body: bytes) -> TranscriptionForm:
        """Errors: ApiError names the field that is missing, off or not known here."""
        message = Message()
        message["Content-Type"] = content_type
        if message.get_content_type() == "application/json":
            form = cls(_of_json(body))
        else:
            form = _of_form(read_form(content_type, body))
        form._check()
        return form

    def _check(self) -> None:
        body = self.body
        if self.file is None and not body.url:
            raise ApiError(400, f"file is missing: {_HOW}.", "file")
        if self.file is not None and body.url:
            raise ApiError(400, f"file and url are given; one is heard: {_HOW}.", "url")
        for name in _TEXTS:
            check_unicode(getattr(body, name) or "", name)
        if self.response_format not in _FORMATS:
            shown = self.response_format[:60]
            raise ApiError(400, f"response_format is {shown!r}; it is {', '.join(_FORMATS)}.", "response_format")
        if not 0 <= self.temperature <= 1:
            raise _not_a_temperature(f"{self.temperature:g}")
        if body.max_completion_tokens is not None and body.max_completion_tokens < 1:
            raise _not_a_count(str(body.max_completion_tokens))
        if any(one != "segment" for one in body.timestamp_granularities or ()):
            raise ApiError(
                400, "timestamp_granularities may hold 'segment': words are not timed.", "timestamp_granularities"
            )
        if body.stream:
            raise ApiError(400, "stream is true; a transcription comes at once.", "stream")


def _of_json(content: bytes) -> TranscriptionBody:
    try:
        return TranscriptionBody.model_validate_json(content)
    except ValidationError as error:
        raise from_validation(error.errors()) from error


def _of_form(form: Mapping[str, Sequence[Part]]) -> TranscriptionForm:
    parts = {name.removesuffix("[]"): many for name, many in form.items()}
    for name, many in parts.items():
        if len(many) > 1 and name not in _SEVERAL:
            raise ApiError(400, f"{name} comes {len(many)} times in the form.", name)
    if "file" in parts and parts["file"][0].filename is None:
        raise ApiError(400, f"file is no file of the form, it has no filename: {_HOW}.", "file")
    given: dict[str, Any] = {name: parts[name][0].text(name) or None for name in _TEXTS if name in parts}
    if "temperature" in parts:
        given["temperature"] = _number(parts, "temperature", float, _not_a_temperature)
    if "max_completion_tokens" in parts:
        given["max_completion_tokens"] = _number(parts, "max_completion_tokens", int, _not_a_count)
    granularities = parts.get("timestamp_granularities", ())
    given["timestamp_granularities"] = [part.text("timestamp_granularities") for part in granularities]
    given["stream"] = parts.get("stream", [Part(b"")])[0].content.lower() in (b"true", b"1")
    return TranscriptionForm(TranscriptionBody(**given), parts["file"][0].content if "file" in parts else None)


def _number(
    parts: Mapping[str, Sequence[Part]], name: str, kind: Callable[[str], float], refusal: Callable[[str], ApiError]
) -> float:
    text = parts[name][0].text(name)
    try:
        return kind(text)
    except ValueError as error:
        raise refusal(repr(text[:60])) from error


def _not_a_temperature(shown: str) -> ApiError:
    return ApiError(400, f"temperature is {shown}; it is a number in [0, 1].", "temperature")


def _not_a_count(shown: str) -> ApiError:
    name = "max_completion_tokens"
    return ApiError(400, f"{name} is {shown}; it is a whole number, at least 1.", name)
