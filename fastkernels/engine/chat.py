"""From messages to a prompt: the checkpoint's own chat template, or the shipped one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from fastkernels.errors import CheckpointError, EnvironmentProblem, InputFileError, UsageError
from fastkernels.workloads.tokenizer import BEGIN_TOKEN, END_TOKEN

_DEFAULT = "chat_template.jinja"
_BYTE_TOKENS = {"bos_token": BEGIN_TOKEN, "eos_token": END_TOKEN}
"""Of the tokenizer that a model without its own has."""
Messages = Sequence[Mapping[str, Any]]


class ChatTemplateError(UsageError):
    """The template refuses these messages."""


class ChatTemplate:
    """Renders in a sandbox: a template comes with a checkpoint and may read its arguments only.

    What it finds beside them is as in transformers: `special_tokens` by name, raise_exception, strftime_now, tojson
    (which escapes nothing), loop controls, generation blocks.
    https://huggingface.co/docs/transformers/chat_templating_writing
    """

    takes_parts = False
    """Whether a message's content may be a list of parts, as templates of models that see have it."""

    def __init__(self, source: str, special_tokens: Mapping[str, str] | None = None) -> None:
        self.takes_parts = _takes_parts(source)
        extensions = [loopcontrols, _GenerationBlocks]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _strftime_now, **(special_tokens or {})}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise InputFileError(f"The chat template cannot be parsed: {error}.") from error

    def render(self, messages: Messages, tools: Sequence[Any] | None = None, **options: Any) -> str:
        """The prompt. Errors: ChatTemplateError when the template refuses the messages."""
        try:
            return self._render(messages, tools, {"add_generation_prompt": True, **options})
        except (jinja2.TemplateError, TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            raise ChatTemplateError(f"The chat template refuses these messages: {error}.") from error

    def _render(self, messages: Messages, tools: Sequence[Any] | None, options: dict[str, Any]) -> str:
        told = [{name: value for name, value in message.items() if value is not None} for message in messages]
        return self._template.render(messages=told, tools=tools, **options)


class _TokenizerTemplate(ChatTemplate):
    """The checkpoint's, or `source` in its place, through transformers, which knows what such templates expect."""

    def __init__(self, tokenizer: _HasTemplate, source: str | None = None) -> None:
        self._tokenizer, self._source = tokenizer, source
        self.takes_parts = _takes_parts(source or str(getattr(tokenizer, "chat_template", None) or ""))

    def _render(self, messages: Messages, tools: Sequence[Any] | None, options: dict[str, Any]) -> str:
        given = {**options, "tools": tools, "chat_template": self._source, "tokenize": False}
        return str(self._tokenizer.apply_chat_template(list(messages), **given))


class _HasTemplate(Protocol):
    def apply_chat_template(self, conversation: list[Any], **options: Any) -> Any: ...


def find_chat_template(model: str, file: Path | None = None) -> ChatTemplate:
    """`file`, else the template of the checkpoint directory `model`, else the shipped one."""
    if file is not None:
        if not file.is_file():
            raise UsageError(f"--chat-template {file} does not exist.")
        try:
            source = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"--chat-template {file} is no UTF-8 text: {error}.") from error
        return chat_template_of(model, source)
    folder = Path(model)
    if folder.is_dir() and _has_template(folder):
        return _TokenizerTemplate(_load_tokenizer(folder))
    return ChatTemplate(_shipped_template())


def chat_template_of(model: str, source: str) -> ChatTemplate:
    """`source` with the special tokens of the checkpoint directory `model`."""
    folder = Path(model)
    template = ChatTemplate(source, {} if (folder / "tokenizer.json").is_file() else _BYTE_TOKENS)
    if (folder / "tokenizer_config.json").is_file():
        return _TokenizerTemplate(_load_tokenizer(folder), source)
    return template


def transformers_tokenizer(model: str, tokenizer: Tokenizer) -> Any:
    """transformers' own of the checkpoint directory `model`; where that has none, `tokenizer` in its form.

    Errors: EnvironmentProblem when transformers is not installed.
    """
    folder = Path(model)
    if (folder / "tokenizer_config.json").is_file():
        return _load_tokenizer(folder)
    try:
        from transformers import PreTrainedTokenizerFast
    except ImportError as error:
        raise EnvironmentProblem(
            "get_tokenizer gives a tokenizer of transformers, which is not installed: "
            "pip install 'fastkernels[server]'. llm.tokenizer needs nothing."
        ) from error
    names = {} if (folder / "tokenizer.json").is_file() else _BYTE_TOKENS
    found = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **names)
    found.chat_template = _shipped_template()
    return found


def _shipped_template() -> str:
    return files("fastkernels.engine").joinpath(_DEFAULT).read_text(encoding="utf-8")


def _takes_parts(source: str) -> bool:
    """Templates that do look at a part's type."""
    return any(text in source for text in ("['type']", '["type"]', ".type ==", "'image' in", '"image" in'))


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = folder / "tokenizer_config.json"
    return config.is_file() and '"chat_template"' in config.read_text(encoding="utf-8")


def _load_tokenizer(folder: Path) -> Any:
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise EnvironmentProblem(
            f"{folder} has a tokenizer of transformers; for its chat template, install that: "
            "pip install 'fastkernels[server]'."
        ) from error
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds
        raise CheckpointError(f"The tokenizer of {folder} cannot be loaded: {error}.") from error


class _GenerationBlocks(Extension):
    """{% generation %}, which marks for training what the assistant says: it renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
