"""Stubs: valid candidates from the start, apart from their forward."""

from __future__ import annotations

import ast
import importlib
import inspect
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from fastkernels import registry
from fastkernels.agents.stubs import stub_text, write_stubs
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.loading import load_class
from fastkernels.sets import resolve_set

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def every_stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stubs")
    write_stubs(registry.ops().values(), folder)
    return folder


def test_stubs_pass_ruff_and_compile(every_stub: Path) -> None:
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    for command in (["check", *config], ["format", "--check", *config]):
        done = subprocess.run([sys.executable, "-m", "ruff", *command, every_stub], capture_output=True, text=True)
        baseline = subprocess.run(
            [sys.executable, "-m", "ruff", *command, ROOT / "fastkernels/tasks/baseline"], capture_output=True
        )
        assert done.returncode == 0 or baseline.returncode != 0, done.stdout
    for path in every_stub.rglob("*.py"):
        py_compile.compile(str(path), doraise=True, cfile=str(path.with_suffix(".pyc")))


def test_there_is_one_file_for_each_of_the_baseline(every_stub: Path) -> None:
    written = {str(path.relative_to(every_stub)) for path in every_stub.rglob("*.py")}
    assert written == {entry.file_name for entry in registry.ops().values()}


@pytest.mark.parametrize("entry", registry.ops().values(), ids=lambda entry: entry.name)
def test_a_stub_loads_builds_and_says_what_to_do(every_stub: Path, entry: registry.OpEntry) -> None:
    cls = load_class(entry, resolve_set(every_stub))
    baseline = getattr(importlib.import_module(entry.module), entry.class_name)
    assert cls.spec == baseline.spec
    assert inspect.getdoc(cls) == inspect.getdoc(baseline)
    assert inspect.signature(cls.forward) == inspect.signature(baseline.forward)
    built, twin = cls(**baseline.spec.examples[0]), baseline(**baseline.spec.examples[0])
    assert {n: p.shape for n, p in built.state_dict().items()} == {n: p.shape for n, p in twin.state_dict().items()}
    runs = [{n for n, m in op.named_modules() if type(m).forward is not nn.Module.forward} for op in (built, twin)]
    assert runs[0] == runs[1]  # a part that the stub copies is whole
    arguments = {name: None for name in inspect.signature(cls.forward).parameters if name != "self"}
    with pytest.raises(NotImplementedError, match=rf"{entry.class_name}\.forward has no kernel yet"):
        built.forward(**arguments)


@pytest.mark.parametrize("entry", registry.ops().values(), ids=lambda entry: entry.name)
def test_a_stub_of_one_op_offers_that_op_alone_and_imports_other_ops_at_most(
    tmp_path: Path, entry: registry.OpEntry
) -> None:
    (path,) = write_stubs([entry], tmp_path)
    found = resolve_set(tmp_path)
    assert [offered.name for offered in found.ops()] == [entry.name]
    load_class(entry, found)
    imports = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)]
    own = {alias.name for n in imports if n.module == entry.module for alias in n.names}
    assert own <= {other.class_name for other in registry.ops_of_module(entry.module)} - {entry.class_name}


def test_a_stub_drops_what_only_the_baselines_forward_needs() -> None:
    text = stub_text(registry.find_ops("rms_norm"))
    assert "fastkernels.kernels" not in text
    assert "def reference" not in text
    assert "self.weight = nn.Parameter(torch.ones(hidden_size))" in text


def test_stubs_never_overwrite_and_then_write_nothing(tmp_path: Path) -> None:
    mine = tmp_path / "L1" / "rms_norm.py"
    mine.parent.mkdir()
    mine.write_text("# mine\n")
    with pytest.raises(UsageError, match=r"never overwrite: .*L1/rms_norm\.py"):
        write_stubs(registry.find_ops("rms_norm") + registry.find_ops("silu_and_mul"), tmp_path)
    assert [path.name for path in mine.parent.iterdir()] == ["rms_norm.py"]
    assert mine.read_text() == "# mine\n"


def test_a_folder_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(EnvironmentProblem, match=r"mine cannot take the stub L1/rms_norm\.py: Not a directory"):
        write_stubs(registry.find_ops("rms_norm"), tmp_path / "mine")


def test_stubs_do_not_go_into_a_folder_named_like_a_shipped_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    norm = [registry.ops()["rms_norm"]]
    with pytest.raises(UsageError, match="--candidates torch_native is a set of that name already"):
        write_stubs(norm, Path("torch_native"))
    assert not (tmp_path / "torch_native").exists()
    monkeypatch.setenv("FASTKERNELS_CANDIDATE_DIR", "candidate")
    assert write_stubs(norm, Path("candidate")) == [Path("candidate/L1/rms_norm.py")]
