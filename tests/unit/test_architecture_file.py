"""A mistake in an architecture's file is told with the file, the key and what is allowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fastkernels import registry
from fastkernels.errors import UsageError
from fastkernels.op import Op

LLAMA = Path(registry.__file__).with_name("architectures") / "llama.json"


def write(folder: Path, **changes: Any) -> Path:
    """Llama's file with other values; None takes a key away."""
    body = {**json.loads(LLAMA.read_text()), **changes}
    path = folder / "mine.json"
    path.write_text(json.dumps({key: value for key, value in body.items() if value is not None}))
    return path


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"kind": "recurrent"}, "'kind' is 'recurrent'; it is one of autoregressive, single_pass, iterative"),
        ({"kind": None}, "'kind' is missing; kind, module, class_name, config must be there"),
        ({"hf_architectures": "LlamaForCausalLM"}, "'hf_architectures' is 'LlamaForCausalLM'; it is a list of texts"),
        ({"colour": "red"}, "'colour' is not known; allowed are kind, module"),
        ({"config": "tasks.configs.llama"}, "'config' is 'tasks.configs.llama'; it is 'module:class'"),
        ({"module": "tasks.baseline.L4.lama"}, "'module' is 'tasks.baseline.L4.lama'; there is no "),
        ({"class_name": "LlamaForCasualLM"}, "'class_name' is 'LlamaForCasualLM'; "),
        ({"config_patterns": {"a": "("}}, "it is an object of regular expressions"),
        ({"published": []}, "'published' is []; it is an object"),
        ({"inputs": {"text": 1}}, "'inputs' is {'text': 1}; it is an object of texts"),
        ({"stand_ins": ["a"]}, "'stand_ins' is ['a']; it is an object of texts"),
    ],
)
def test_a_mistake_names_file_key_and_what_is_allowed(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(UsageError) as error:
        registry._read_architecture(path)
    assert str(error.value).startswith(f"{path}: ")
    assert says in str(error.value)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_what_is_no_object_is_told_with_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"mine\.json (is no JSON|holds no JSON object)"):
        registry._read_architecture(path)


def test_a_right_file_is_read_as_the_shipped_one(tmp_path: Path) -> None:
    assert (
        registry._read_architecture(write(tmp_path)).hf_architectures == registry.architecture("llama").hf_architectures
    )


def test_a_class_that_is_no_op_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, module="tasks.configs.llama", class_name="LlamaConfig")
    monkeypatch.setattr(registry, "ARCHITECTURES", (registry._read_architecture(path),))
    with pytest.raises(UsageError, match=r"mine.json: 'class_name' is 'LlamaConfig' in .*, which is no op"):
        registry.ops_of_architecture("mine")


def test_an_op_without_a_spec_is_told_what_it_lacks() -> None:
    class Bare(Op):
        pass

    with pytest.raises(UsageError, match=r"Bare in .* has no `spec`, the contract"):
        _ = Bare.spec
    assert not hasattr(Bare, "spec")
