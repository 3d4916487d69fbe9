"""Conversations in OpenAI's form: as templates read them, and the pictures, videos and sounds in them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastkernels.engine.chat import ChatTemplate
from fastkernels.engine.multimodal import Processor
from fastkernels.errors import UsageError

MAX_DEPTH = 64
Message = Mapping[str, Any]
_MEDIA = {
    "image_url": "image",
    "image_pil": "image",
    "video_url": "video",
    "audio_url": "audio",
    "input_audio": "audio",
}
_OURS = ("messages", "conversation", "tools", "tokenize", "chat_template", "add_generation_prompt")
"""Not for a caller's options to say."""


def render_chat(
    template: ChatTemplate,
    messages: Sequence[Message],
    processor: Processor | None = None,
    tools: Sequence[Any] | None = None,
    add_generation_prompt: bool = True,
    options: Mapping[str, Any] | None = None,
) -> str:
    """The prompt of a conversation. options: what else the template reads.

    Errors: UsageError for parts that the model does not take, ChatTemplateError when the template refuses them.
    """
    told = [for_template(message, processor, template.takes_parts) for message in messages]
    others = {name: value for name, value in (options or {}).items() if name not in _OURS}
    return template.render(told, tools, add_generation_prompt=add_generation_prompt, **others)


def for_template(message: Message, processor: Processor | None = None, takes_parts: bool = False) -> dict[str, Any]:
    """As templates expect it: content is one text, with the processor's placeholders for pictures and videos; or,
    where there are any and the template takes parts, the parts in order. Arguments of tool calls are objects.

    Errors: UsageError for what is no message, for parts that the model does not take, and for arguments that are no
    JSON object.
    """
    given: dict[str, Any] = {"content": None, **_checked(message)}
    if given.get("tool_calls"):
        given["tool_calls"] = [_with_parsed_arguments(call) for call in given["tool_calls"]]
    if not isinstance(given["content"], list | tuple):
        return given
    kinds = [(part, _modality(part)) for part in given["content"]]
    taken = ("text", *(processor.modalities if processor is not None else ()))
    for part, modality in kinds:
        if modality is not None and modality not in taken:
            raise UsageError(f"messages hold a part of type {part['type']!r}; this model takes {', '.join(taken)}.")
    if takes_parts and any(modality for _, modality in kinds):
        given["content"] = [
            {"type": "text", "text": part["text"]} if modality is None else {"type": modality}
            for part, modality in kinds
        ]
    else:
        given["content"] = "".join(
            part["text"] if modality is None or processor is None else processor.placeholder(modality)
            for part, modality in kinds
        )
    return given


def media_of(message: Message) -> list[tuple[str, Any]]:
    """Modality and source (a URL, or a picture itself) of each part that is not a text, in order.

    Errors: UsageError for what is no message, and for parts of no known type.
    """
    content = _checked(message).get("content")
    found = []
    for part in content if isinstance(content, list | tuple) else ():
        modality = _modality(part)
        if modality is not None:
            found.append((modality, _source(part["type"], part[part["type"]])))
    return found


def _source(kind: str, given: Any) -> Any:
    """Errors: UsageError for a map that holds none."""
    if not isinstance(given, Mapping):
        return given
    names = ("data", "format") if kind == "input_audio" else ("url",)
    if not all(isinstance(given.get(name), str) for name in names):
        raise UsageError(f"messages hold a part of type {kind!r} without {' or '.join(names)}.")
    return given["url"] if kind != "input_audio" else f"data:audio/{given['format']};base64,{given['data']}"


def _checked(message: Message) -> Message:
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise UsageError(f'A message is {{"role": ..., "content": ...}}, got {str(message)[:80]!r}.')
    content = message.get("content")
    if not isinstance(content, str | list | tuple | None):
        raise UsageError(f"messages hold content of type {type(content).__name__}; it is a text or a list of parts.")
    return message


def _modality(part: Any) -> str | None:
    """Of a part that is not a text. Errors: UsageError for a part of no known type, or without its content."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return None
    if kind in _MEDIA and part.get(kind) is not None:
        return _MEDIA[kind]
    lacks = f" without {kind}" if kind in ("text", *_MEDIA) else ""
    raise UsageError(f"messages hold a part of type {kind!r}{lacks}.")


def _with_parsed_arguments(call: Mapping[str, Any]) -> Mapping[str, Any]:
    """A tool call whose arguments, a JSON text in OpenAI's API, are an object: templates write JSON themselves."""
    function = call.get("function")
    if not isinstance(function, Mapping):
        return call
    given = function.get("arguments")
    try:
        arguments = check_depth(json.loads(given)) if isinstance(given, str) and given else given or {}
    except (ValueError, RecursionError) as error:
        raise _bad_arguments(given, str(error)) from error
    if not isinstance(arguments, Mapping):
        raise _bad_arguments(given, f"it is of type {type(arguments).__name__}")
    return {**call, "function": {**function, "arguments": arguments}}


def _bad_arguments(given: Any, reason: str) -> UsageError:
    return UsageError(
        f"messages hold a tool call with arguments {str(given)[:80]!r}: {reason}; they must be a JSON object."
    )


def check_depth(value: Any) -> Any:
    """The value. Errors: ValueError when its lists and objects are nested deeper than MAX_DEPTH."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return value
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
