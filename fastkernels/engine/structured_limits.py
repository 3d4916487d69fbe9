"""How large what an answer must follow may be. xgrammar 0.2.8 recurses without a limit of its own and ends the process
where its thread's stack ends: of 8 MiB at 15000 brackets in a schema's pattern, or at 3600 objects in each other."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

MAX_LENGTH = 2**17
MAX_TEXT_LENGTH = 2**15
MAX_BRACKETS = 200
MAX_LEVELS = 200
MAX_REFERENCED_LEVELS = 1000
_NO_BRACKETS = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]", re.DOTALL)
"""Parts of a regex in which a bracket is a character: escapes and classes."""


def regex_excess(name: str, regex: str) -> str | None:
    """What is too much about a regex, as a sentence; None when nothing is."""
    if len(regex) > MAX_TEXT_LENGTH:
        return f"{name} has {len(regex)} characters; at most {MAX_TEXT_LENGTH} are taken. Shorten it."
    depth = _num_brackets(regex)
    if depth > MAX_BRACKETS:
        return f"{name} nests {depth} brackets; at most {MAX_BRACKETS} are taken. Write it with fewer groups."
    return None


def length_excess(name: str, texts: Collection[str]) -> str | None:
    """Of a grammar, or of all choices."""
    length = sum(map(len, texts))
    if length > MAX_LENGTH:
        return f"{name} has {length} characters; at most {MAX_LENGTH} are taken. Shorten it."
    return None


def schema_excess(schema: str | Mapping[str, Any]) -> str | None:
    """Of a JSON schema, as text or object. What is no JSON is for the compiler to refuse."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(dict(schema), ensure_ascii=False)
        excess = length_excess("json", [text])
        if excess is not None:
            return excess
        parsed = json.loads(text)
    except RecursionError:
        return f"json is nested too deeply to be read; at most {MAX_LEVELS} levels are taken. Flatten it."
    except (TypeError, ValueError):
        return None
    containers = _containers(parsed)
    for one in containers:
        for inner in (*one, *one.values()) if isinstance(one, dict) else one:
            excess = regex_excess("a text of json", inner) if isinstance(inner, str) else None
            if excess is not None:
                return excess
    return _levels_excess(containers)


def _levels_excess(containers: list[Any]) -> str | None:
    levels: dict[int, int] = {}
    for one in reversed(containers):
        levels[id(one)] = 1 + max((levels[id(inner)] for inner in _inner(one)), default=0)
    if not containers:
        return None
    root = containers[0]
    whole = levels[id(root)]
    if whole > MAX_LEVELS:
        return f"json is nested {whole} levels deep; at most {MAX_LEVELS} are taken. Flatten it."
    found = {one["$ref"] for one in containers if isinstance(one, dict) and isinstance(one.get("$ref"), str)}
    # Each can lead to the next, and is followed once.
    total = whole + sum(levels.get(id(_target(root, reference)), whole) for reference in found)
    if total > MAX_REFERENCED_LEVELS:
        return (
            f"json is nested {total} levels deep through its {len(found)} references; "
            f"at most {MAX_REFERENCED_LEVELS} are taken. Use fewer $ref."
        )
    return None


def _target(root: Any, reference: str) -> Any:
    """What a plain reference into the schema names; None for others, which may name anything."""
    if reference == "#" or not reference.startswith("#/") or set(reference) & set("~%"):
        return None
    found = root
    for key in reference[2:].split("/"):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _containers(value: Any) -> list[Any]:
    """The objects and lists in it, outer ones before what is in them."""
    found = [value] if isinstance(value, dict | list) else []
    for outer in found:
        found += _inner(outer)
    return found


def _inner(outer: Any) -> list[Any]:
    return [inner for inner in (outer.values() if isinstance(outer, dict) else outer) if isinstance(inner, dict | list)]


def _num_brackets(regex: str) -> int:
    """The most groups that are in each other."""
    if regex.count("(") <= MAX_BRACKETS:
        return 0
    depth = most = 0
    for character in _NO_BRACKETS.sub("", regex):
        depth += (character == "(") - (character == ")")
        most = max(most, depth)
    return most
