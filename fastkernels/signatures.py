"""The signatures that a replacement must have: the baseline's from its text, a class's from the class."""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from inspect import Parameter
from typing import Any

from fastkernels.registry import OpEntry
from fastkernels.source import SourceModule, find_base, modules

_REQUIRED = object()


@dataclass(frozen=True, eq=False)
class Argument:
    """One parameter. Two are equal when name, kind and default are; unlike defaults only count when both are plain."""

    name: str
    kind: Any
    default: Any = _REQUIRED
    default_text: str = ""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Argument) or (self.name, self.kind) != (other.name, other.kind):
            return False
        if _REQUIRED in (self.default, other.default):
            return self.default is other.default
        values = (self.default, other.default)
        is_plain = all(v is None or isinstance(v, (bool, int, float, str)) for v in values)
        return not is_plain or (type(values[0]) is type(values[1]) and values[0] == values[1])

    def __str__(self) -> str:
        stars = {Parameter.VAR_POSITIONAL: "*", Parameter.VAR_KEYWORD: "**"}.get(self.kind, "")
        return f"{stars}{self.name}{f'={self.default_text}' if self.default_text else ''}"


@dataclass(frozen=True)
class Signature:
    """The parameters after self."""

    arguments: tuple[Argument, ...] = ()

    def __str__(self) -> str:
        parts: list[str] = ["self"]
        kinds = [a.kind for a in self.arguments]
        for i, argument in enumerate(self.arguments):
            opens_keywords = argument.kind is Parameter.KEYWORD_ONLY and Parameter.KEYWORD_ONLY not in kinds[:i]
            if opens_keywords and Parameter.VAR_POSITIONAL not in kinds:
                parts.append("*")
            parts.append(str(argument))
            if argument.kind is Parameter.POSITIONAL_ONLY and Parameter.POSITIONAL_ONLY not in kinds[i + 1 :]:
                parts.append("/")
        return f"({', '.join(parts)})"


def class_signature(cls: type, method: str) -> Signature | str:
    """Of a class that exists; a text that says why when Python cannot tell."""
    from torch import nn  # here: stubs need none of it

    function = getattr(cls, method, None)
    if method == "__init__" and function is nn.Module.__init__:
        return Signature()
    if method == "forward" and function is nn.Module.forward:
        return " is missing"
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        return f" has no signature that Python can read: {error}"
    return Signature(
        tuple(
            Argument(p.name, p.kind)
            if p.default is Parameter.empty
            else Argument(p.name, p.kind, p.default, repr(p.default))
            for p in parameters
        )
    )


def method_definition(entry: OpEntry, method: str) -> tuple[SourceModule, ast.FunctionDef] | None:
    """Where the baseline defines a method of an op, in its class or in a base; None when no base does."""
    place: tuple[str, str] | None = (entry.module, entry.class_name)
    while place is not None:
        module = modules()[place[0]]
        node = module.definitions[place[1]]
        assert isinstance(node, ast.ClassDef)
        for statement in node.body:
            if isinstance(statement, ast.FunctionDef) and statement.name == method:
                return module, statement
        place = find_base(module, node)
    return None


def baseline_signature(entry: OpEntry, method: str) -> Signature:
    """Of the baseline's class, read from its file: no task is imported."""
    found = method_definition(entry, method)
    return Signature() if found is None else _from_text(found[1].args)


def _from_text(args: ast.arguments) -> Signature:
    positional: list[tuple[ast.arg, Any]] = [(a, Parameter.POSITIONAL_ONLY) for a in args.posonlyargs]
    positional += [(a, Parameter.POSITIONAL_OR_KEYWORD) for a in args.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(args.defaults))
    defaults += args.defaults
    found = [_argument(a.arg, kind, default) for (a, kind), default in zip(positional, defaults, strict=True)][1:]
    if args.vararg:
        found.append(Argument(args.vararg.arg, Parameter.VAR_POSITIONAL))
    found += [
        _argument(a.arg, Parameter.KEYWORD_ONLY, default)
        for a, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
    ]
    if args.kwarg:
        found.append(Argument(args.kwarg.arg, Parameter.VAR_KEYWORD))
    return Signature(tuple(found))


def _argument(name: str, kind: Any, default: ast.expr | None) -> Argument:
    if default is None:
        return Argument(name, kind)
    text = ast.unparse(default)
    try:
        return Argument(name, kind, ast.literal_eval(default), text)
    except ValueError:  # a name: whatever a candidate's default is, it cannot be compared without importing
        return Argument(name, kind, object(), text)
