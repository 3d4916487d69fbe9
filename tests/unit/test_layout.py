"""What holds for every file of the project, and no linter says."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fastkernels import registry, source

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "fastkernels"
FILES = sorted(PACKAGE.rglob("*.py"))
READS_ENVIRONMENT = {
    *("env.py", "bench/eval/nursery.py"),
    *("harness/worker.py", "harness/sandbox.py", "harness/nursery.py", "harness/workers.py"),
}
"""env.py, and the sandboxes that clear a worker's environment."""


def relative(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_reads_the_environment_only_in_env(path: Path) -> None:
    if relative(path) in READS_ENVIRONMENT:
        return
    attributes = [n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)]
    assert not {"environ", "getenv", "putenv"} & set(attributes)


@pytest.mark.parametrize("path", [p for p in FILES if p.read_text().strip()], ids=relative)
def test_a_file_says_what_it_is(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text, f"{relative(path)} has no docstring"
    assert "\n" not in text.partition("\n\n")[0] or text[0].isupper()


def test_no_file_is_named_utils_and_none_is_over_500_lines() -> None:
    assert [relative(p) for p in FILES if p.stem in ("utils", "helpers", "misc")] == []
    limits = {relative(p): 600 if p.parent.name == "kernels" else 500 for p in FILES}
    assert [relative(p) for p in FILES if len(p.read_text().splitlines()) > limits[relative(p)]] == []


def test_the_package_never_reads_the_shared_folder() -> None:
    assert [relative(p) for p in FILES if "/shared/" in p.read_text()] == []


@pytest.mark.parametrize("entry", registry.ops().values(), ids=lambda entry: entry.name)
def test_an_op_has_the_docstring_lines(entry: registry.OpEntry) -> None:
    node = source.modules()[entry.module].definitions[entry.class_name]
    assert isinstance(node, ast.ClassDef)
    text = ast.get_docstring(node) or ""
    assert all(f"\n{line}:" in text for line in ("Shapes", "Returns", "Source")), text


def test_constraints_pin_one_build_of_torch_and_name_no_host() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    assert all(line.count("==") == 1 and "/" not in line and "@" not in line for line in lines)
    assert len({line.split("==")[0].lower() for line in lines}) == len(lines)


def test_constraints_cover_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(d for name in ("cuda", "track", "oracles", "dev") for d in extras[name])]
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    names = {d.split(">")[0].split("[")[0].strip().lower() for d in wanted} - {"fastkernels"}
    assert names <= pinned


def test_import_contracts_refuse_a_task_that_imports_the_harness(tmp_path: Path) -> None:
    """The contracts of pyproject.toml, run on a copy with one bad import in it."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    for path in FILES:
        copy = tmp_path / "fastkernels" / relative(path)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    bad = {
        "tasks/baseline/L1/rms_norm.py": "import fastkernels.harness\n",
        "tasks/baseline/L2/llama_mlp.py": "import fastkernels.tasks.baseline.L3.llama_decoder\n",
        "scoring/__init__.py": "import fastkernels.errors\n",
        "engine/__init__.py": "import fastkernels.tasks.baseline.L4.llama\n",
    }
    for place, line in bad.items():
        path = tmp_path / "fastkernels" / place
        path.write_text(path.read_text() + "\n" + line)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    script = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    broken = [line for line in done.stdout.splitlines() if line.endswith("BROKEN")]
    assert len(broken) == len(bad) == len(config["contracts"]), done.stdout
