"""From messages to a prompt: the checkpoint's own chat template, or the shipped one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fastkernels.errors import CheckpointError, EnvironmentProblem, InputFileError, UsageError

_DEFAULT = "chat_template.jinja"
Messages = Sequence[Mapping[str, Any]]


class ChatTemplateError(UsageError):
    """The template refuses these messages."""


class ChatTemplate:
    """Renders in a sandbox: a template comes with a checkpoint and may read its arguments only."""

    takes_parts = False
    """Whether a message's content may be a list of parts, as templates of models that see have it."""

    def __init__(self, source: str) -> None:
        self.takes_parts = _takes_parts(source)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
        environment.globals["raise_exception"] = _raise
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
        return self._template.render(messages=messages, tools=tools, **options)


class _TokenizerTemplate(ChatTemplate):
    """The checkpoint's, through transformers, which knows what such templates expect."""

    def __init__(self, tokenizer: _HasTemplate) -> None:
        self._tokenizer = tokenizer
        self.takes_parts = _takes_parts(str(getattr(tokenizer, "chat_template", None) or ""))

    def _render(self, messages: Messages, tools: Sequence[Any] | None, options: dict[str, Any]) -> str:
        return str(self._tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False, **options))


class _HasTemplate(Protocol):
    def apply_chat_template(self, conversation: list[Any], **options: Any) -> Any: ...


def find_chat_template(model: str, file: Path | None = None) -> ChatTemplate:
    """`file`, else the template of the checkpoint directory `model`, else the shipped one."""
    if file is not None:
        if not file.is_file():
            raise UsageError(f"--chat-template {file} does not exist.")
        try:
            return ChatTemplate(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise UsageError(f"--chat-template {file} is no UTF-8 text: {error}.") from error
    folder = Path(model)
    if folder.is_dir() and _has_template(folder):
        return _TokenizerTemplate(_load_tokenizer(folder))
    return ChatTemplate(files("fastkernels.engine").joinpath(_DEFAULT).read_text(encoding="utf-8"))


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
            f"{folder} has a chat template; to use it, install transformers: pip install 'fastkernels[server]'."
        ) from error
    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the library raises many kinds
        raise CheckpointError(f"The tokenizer of {folder} cannot be loaded: {error}.") from error


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
