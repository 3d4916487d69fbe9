"""What an architecture's file says of its inputs: the command lines run, the names are the pipeline's own."""

from __future__ import annotations

import ast
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import called
from PIL import Image

from fastkernels.engine.llm import LLM
from fastkernels.pipelines.splat_scene import generate_scene, save_scene
from fastkernels.registry import ARCHITECTURES, Architecture, Kind

ROOT = Path(__file__).parents[2]
EXAMPLES = [(architecture, line) for architecture in ARCHITECTURES for line in architecture.examples]
OTHERS = [a for a in ARCHITECTURES if a.kind is not Kind.AUTOREGRESSIVE]
MAKE_TOKENS = [a for a in ARCHITECTURES if a.kind is Kind.AUTOREGRESSIVE]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files are that examples name, beside the package's own."""
    random = np.random.default_rng(0)
    frames = [Image.fromarray(random.integers(0, 256, (40, 56, 3), dtype=np.uint8)) for _ in range(5)]
    frames[0].save(tmp_path / "photo.png")
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=100)
    save_scene(generate_scene(50, 1, 0), tmp_path / "scene.ply")
    (tmp_path / "fastkernels").symlink_to(ROOT / "fastkernels")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.name)
def test_an_architecture_says_what_goes_in_and_what_comes_out(architecture: Architecture) -> None:
    assert architecture.inputs
    assert architecture.gives
    assert architecture.examples


@pytest.mark.parametrize(("architecture", "line"), EXAMPLES, ids=[line.split()[3] for _, line in EXAMPLES])
def test_an_example_runs_and_takes_inputs_that_are_told(
    architecture: Architecture, line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *words = shlex.split(line)
    assert (program, words[:2], words[2]) == ("fastkernels", ["generate", "--model"], f"tiny-{architecture.name}")
    if architecture.kind is Kind.AUTOREGRESSIVE:
        taken = {word for word in words if word.startswith("--")} - {"--model", "--max-tokens", "--temperature"}
    else:
        taken = {words[i + 1].partition("=")[0] for i, word in enumerate(words) if word == "--input"}
    assert taken
    assert taken <= set(architecture.inputs)
    done = called(capsys, *words, "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    if "--out" in words:
        out = folder / words[words.index("--out") + 1]
        assert out.stat().st_size > 0
        assert out.suffix in architecture.gives


@pytest.mark.parametrize("module", sorted({a.pipeline.partition(":")[0] for a in OTHERS}))
def test_the_inputs_that_are_told_are_those_that_the_pipeline_reads(module: str) -> None:
    told = {name for a in OTHERS if a.pipeline.startswith(f"{module}:") for name in a.inputs}
    pipeline = import_module(module)
    tree = ast.parse(Path(str(pipeline.__file__)).read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    assert told <= texts
    assert {name for node in ast.walk(tree) for name in _names_asked_of_inputs(node)} <= told
    if hasattr(pipeline, "_KNOWN"):
        assert told == pipeline._KNOWN


def _names_asked_of_inputs(node: ast.AST) -> list[str]:
    """Of `inputs["x"]`, `inputs.get("x")`, `"x" in inputs` and `f(inputs, "x")`."""
    nodes: list[Any] = []
    if isinstance(node, ast.Subscript):
        nodes = [node.value, node.slice]
    elif isinstance(node, ast.Compare):
        nodes = [node.left, *node.comparators]
    elif isinstance(node, ast.Call):
        holder = node.func.value if isinstance(node.func, ast.Attribute) and node.func.attr == "get" else None
        nodes = [holder, *node.args[:2]]
    if not any(isinstance(one, ast.Name) and one.id == "inputs" for one in nodes):
        return []
    return [one.value for one in nodes if isinstance(one, ast.Constant) and isinstance(one.value, str)]


@pytest.mark.parametrize("architecture", MAKE_TOKENS, ids=lambda a: a.name)
def test_a_model_that_shares_no_prefixes_says_so(architecture: Architecture) -> None:
    cache: Any = LLM(f"tiny-{architecture.name}", device="cpu", num_pages=8).core.cache
    says_so = any(line.startswith("a prefix cache: ") for line in architecture.not_supported)
    assert cache.shares_prefixes is not says_so
