"""What a file of fastkernels/architectures may say, and what is wrong with one that does not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastkernels.errors import UsageError

PLACES = ("module", "config", "pipeline", "oracle")
TUPLES = ("hf_architectures", "model_types", "not_supported", "answers", "examples")
_TEXTS_BY_NAME = ("stand_ins", "count_notes", "inputs")
_MAPPINGS = ("published", "config_patterns", *_TEXTS_BY_NAME)
_TEXTS = ("class_name", "family", "gives")
_REQUIRED = ("kind", "module", "class_name", "config")
_HAS_CLASS = ("config", "pipeline")
_PACKAGE = Path(__file__).parent


def read_architecture_file(path: Path, kinds: Sequence[str]) -> dict[str, Any]:
    """Its JSON, held against what is allowed; whether its class is an op, `registry.ops` knows.

    Errors: UsageError names the file, the key, and what is allowed.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is no JSON in UTF-8: {error}.") from None
    if not isinstance(body, dict):
        raise UsageError(f"{path} holds no JSON object; CONTRIBUTING.md says what an architecture's file has.")
    known = ("kind", *PLACES, *TUPLES, *_MAPPINGS, *_TEXTS)
    for key in _REQUIRED:
        if key not in body:
            raise UsageError(f"{path}: {key!r} is missing; {', '.join(_REQUIRED)} must be there.")
    for key, value in body.items():
        if key not in known:
            raise UsageError(f"{path}: {key!r} is not known; allowed are {', '.join(known)}.")
        if fault := _fault(key, value, kinds):
            raise UsageError(f"{path}: {key!r} is {value!r}; {fault}.")
    source = _file_of(body["module"])
    if not re.search(rf"^class {re.escape(body['class_name'])}\b", source.read_text(encoding="utf-8"), re.MULTILINE):
        raise UsageError(f"{path}: 'class_name' is {body['class_name']!r}; {source} has no such class.")
    return body


def _fault(key: str, value: Any, kinds: Sequence[str]) -> str:
    """What is wrong with a value; "" when nothing is."""
    if key == "kind":
        return "" if value in kinds else f"it is one of {', '.join(kinds)}"
    is_right, wanted = _FORMS[key]
    if not is_right(value):
        return f"it is {wanted}"
    if key in PLACES and not _file_of(value.partition(":")[0]).is_file():
        return f"there is no {_file_of(value.partition(':')[0])}"
    return ""


def _file_of(module: str) -> Path:
    """tasks.baseline.L4.llama: a module from the package on."""
    return _PACKAGE.joinpath(*module.split(".")).with_suffix(".py")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)*", value) is not None


def _is_class_place(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"\w+(\.\w+)*:\w+", value) is not None


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _are_texts_by_name(value: Any) -> bool:
    return isinstance(value, Mapping) and all(map(_is_text, value.values()))


def _are_patterns(value: Any) -> bool:
    try:
        return isinstance(value, Mapping) and all(re.compile(pattern) for pattern in value.values())
    except (re.error, TypeError):
        return False


_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(_TEXTS, (_is_text, "a text")),
    **dict.fromkeys(TUPLES, (_is_texts, "a list of texts")),
    **dict.fromkeys(PLACES, (_is_place, "a module from the package on, such as 'tasks.baseline.L4.llama'")),
    **dict.fromkeys(_HAS_CLASS, (_is_class_place, "'module:class', such as 'tasks.configs.llama:LlamaConfig'")),
    **dict.fromkeys(_TEXTS_BY_NAME, (_are_texts_by_name, "an object of texts")),
    "published": (_is_mapping, "an object"),
    "config_patterns": (_are_patterns, "an object of regular expressions"),
}
