"""Scenario sets as YAML: the shipped ones by name, others by path; each mistake with its file and line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from fastkernels.bench.eval.scenarios import (
    EvalScenario,
    ScenarioSet,
    WorkloadPart,
    check_dtype,
    check_option,
    check_parts,
    check_scenarios,
)
from fastkernels.errors import FastKernelsError, InputFileError, UnknownNameError

SETS_DIR = Path(__file__).with_name("sets")
_SET_KEYS = {"num_restarts": int, "num_passes": int, "num_checked": int, "pass_seconds": float}
_SCENARIO_KEYS = {"model": str, "dtype": str, "tensor_parallel_size": int, "expert_parallel": bool}
_PART_KEYS = {"name": str, "num_requests": int, "scale": float}
_KINDS = ("throughput", "latency")
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
_TAGS = {int: ("int",), float: ("int", "float"), str: ("str",), bool: ("bool",)}
"""Of YAML's own types; what has another is not read at all."""


def scenario_sets() -> list[str]:
    """The shipped ones."""
    return sorted(path.stem for path in SETS_DIR.glob("*.yaml"))


def find_scenario_set(name_or_path: str) -> ScenarioSet:
    """A shipped set by name, or a YAML file; a name goes first.

    Errors: UnknownNameError when it is neither; InputFileError with the line of what is wrong in the file.
    """
    if name_or_path in scenario_sets():
        return read_scenario_set(SETS_DIR / f"{name_or_path}.yaml")
    path = Path(name_or_path)
    if path.is_file():
        return read_scenario_set(path)
    raise UnknownNameError("scenario set or YAML file", name_or_path, scenario_sets())


def read_scenario_set(path: Path) -> ScenarioSet:
    """Errors: InputFileError names the file, the line and what is wrong there."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"{path} cannot be read as text: {error}.") from error
    return _Reader(path).scenario_set(text)


class _Reader:
    """One file; its nodes know their lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def scenario_set(self, text: str) -> ScenarioSet:
        try:
            root = yaml.compose(text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            line = mark.line + 1 if mark else 1
            raise InputFileError(f"{self.path}:{line}: this is not YAML: {error.problem or error.context}.") from error
        except yaml.YAMLError as error:
            raise InputFileError(f"{self.path}: this is not YAML: {error}.") from error
        if root is None:
            raise InputFileError(f"{self.path} is empty; a scenario set has 'scenarios'.")
        fields = self._fields(root, "a scenario set", {*_SET_KEYS, "scenarios"}, needed=("scenarios",))
        options = {key: self._value(fields[key], key, kind) for key, kind in _SET_KEYS.items() if key in fields}
        for key, value in options.items():
            with self._placed(fields[key]):
                check_option(key, value)
        nodes = self._list(fields["scenarios"], "scenarios")
        scenarios = tuple(map(self._scenario, nodes))
        self._each(fields["scenarios"], nodes, scenarios, partial(check_scenarios, self.path.stem))
        return ScenarioSet(self.path.stem, scenarios, **options)

    def _scenario(self, node: yaml.Node) -> EvalScenario:
        keys = {*_SCENARIO_KEYS, *_KINDS}
        fields = self._fields(node, "a scenario", keys, needed=("model", "dtype", *_KINDS))
        values = {key: self._value(fields[key], key, kind) for key, kind in _SCENARIO_KEYS.items() if key in fields}
        parts = {kind: self._list(fields[kind], kind) for kind in _KINDS}
        found: dict[str, Any] = {kind: tuple(map(self._part, nodes)) for kind, nodes in parts.items()}
        with self._placed(fields["dtype"]):
            check_dtype(values["dtype"])
        for kind, nodes in parts.items():
            self._each(fields[kind], nodes, found[kind], partial(check_parts, values["model"], kind))
        with self._placed(fields.get("tensor_parallel_size", node)):
            scenario = EvalScenario(**values, **found)
        with self._placed(fields["model"]):
            _ = scenario.architecture
        with self._placed(fields.get("expert_parallel", node)):
            scenario.check_experts()
        with self._placed(fields.get("tensor_parallel_size", node)):
            scenario.check_ranks()
        for kind, nodes in parts.items():
            for part, place in zip(found[kind], nodes, strict=True):
                with self._placed(place):
                    scenario.check_part(part)
        return scenario

    def _part(self, node: yaml.Node) -> WorkloadPart:
        fields = self._fields(node, "a workload", set(_PART_KEYS), needed=("name", "num_requests"))
        return WorkloadPart(**{key: self._value(fields[key], key, _PART_KEYS[key]) for key in fields})

    def _fields(self, node: yaml.Node, what: str, known: set[str], needed: Sequence[str]) -> dict[str, yaml.Node]:
        """The values of a mapping by key. Errors: InputFileError for a key that is unknown, twice there or missing."""
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node, f"{what} is keys with values, not {_shown(node)}")
        fields: dict[str, yaml.Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._wrong(key, f"a key of {what} is a text, not {_shown(key)}")
            if key.value not in known:
                with self._placed(key):
                    raise UnknownNameError(f"key of {what}", str(key.value), known)
            if key.value in fields:
                raise self._wrong(key, f"{key.value!r} is there twice")
            fields[key.value] = value
        missing = [key for key in needed if key not in fields]
        if missing:
            raise self._wrong(node, f"{what} lacks {', '.join(map(repr, missing))}")
        return fields

    def _list(self, node: yaml.Node, what: str) -> list[yaml.Node]:
        if not isinstance(node, yaml.SequenceNode):
            raise self._wrong(node, f"{what} is a list, not {_shown(node)}")
        return list(node.value)

    def _value(self, node: yaml.Node, key: str, kind: type) -> Any:
        wrong = self._wrong(node, f"{key} is {_shown(node)}; it is {_WORDS[kind]}")
        if node.tag.removeprefix("tag:yaml.org,2002:") not in _TAGS[kind]:
            raise wrong
        try:
            return kind(yaml.constructor.SafeConstructor().construct_object(node))
        except (yaml.YAMLError, ValueError, IndexError, OverflowError):
            raise wrong from None

    def _each(
        self, whole: yaml.Node, nodes: Sequence[yaml.Node], values: Sequence[Any], check: Callable[[Any], None]
    ) -> None:
        """check: of the first so many of a list's values; what is wrong there is at the last of them, or of an empty
        list at the list."""
        for count, node in enumerate(nodes or [whole], start=1):
            with self._placed(node):
                check(values[:count])

    @contextmanager
    def _placed(self, node: yaml.Node) -> Iterator[None]:
        """What is said inside is said of this line."""
        try:
            yield
        except FastKernelsError as error:
            raise InputFileError(f"{self.path}:{node.start_mark.line + 1}: {error}") from error

    def _wrong(self, node: yaml.Node, what: str) -> InputFileError:
        return InputFileError(f"{self.path}:{node.start_mark.line + 1}: {what}.")


def _shown(node: yaml.Node) -> str:
    return repr(node.value) if isinstance(node, yaml.ScalarNode) else f"a {node.id}"
