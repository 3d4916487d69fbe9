"""benchmarks/plan.toml says what made every committed result, and reproduce.py makes them as it says."""

from __future__ import annotations

import fnmatch
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def _module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce", BENCHMARKS / "reproduce.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module
    spec.loader.exec_module(module)
    return module


reproduce = _module()
PLAN = reproduce.read_plan()
SINGLE = [one for entry in PLAN for one in entry.one_by_one()]


def test_every_committed_result_is_of_one_entry_and_the_table_is_the_plans() -> None:
    results = BENCHMARKS / "results"
    for path in results.rglob("*.json"):
        name = str(path.relative_to(results))
        of = [e.file for e in SINGLE if fnmatch.fnmatch(name, e.file) and name.count("/") == e.file.count("/")]
        assert len(of) == 1, f"{name} is of {of or 'no entry'} of plan.toml."
    text = (BENCHMARKS / "README.md").read_text()
    assert reproduce.with_table(text, reproduce.table(PLAN)) == text, "python benchmarks/reproduce.py --readme"


def test_every_architecture_is_measured_beside_its_library() -> None:
    architectures = {path.stem for path in (BENCHMARKS.parent / "fastkernels/architectures").glob("*.json")}
    (entry,) = [entry for entry in PLAN if entry.file == "h200/{each}.json"]
    assert set(entry.each) == architectures


def test_every_group_of_kernels_is_measured() -> None:
    groups = {path.stem for path in (BENCHMARKS / "op_groups").glob("*.py") if "\ndef rows(" in path.read_text()}
    (entry,) = [entry for entry in PLAN if entry.file == "h200/op_kernels/{each}.json"]
    assert set(entry.each) == groups


@pytest.mark.parametrize("step", [step for entry in PLAN for step in entry.steps])
def test_a_step_uses_options_that_its_script_has(step: str) -> None:
    program, script, *words = shlex.split(step)
    if program == "cp":
        return
    root = BENCHMARKS.parent
    if program == "fastkernels":
        path = root / f"fastkernels/cli/{script}.py"
    else:
        assert program == "python"
        path = root / (f"{words[0].replace('.', '/')}.py" if script == "-m" else script)
    known = path.read_text()
    options = [word.removeprefix("--") for word in words if word.startswith("--")]
    lacking = [
        name for name in options if f'"--{name}"' not in known and f"{name.replace('-', '_')}: Annotated[" not in known
    ]
    assert not lacking, f"{path.name} has no --{lacking[0]}."


def _plan(folder: Path, *entries: tuple[str, str, float]) -> Path:
    rows = [
        f"[[result]]\nfile = {json.dumps(file)}\nwhat = ''\nsteps = [{json.dumps(step)}]\nseconds = [{seconds}]\n"
        for file, step, seconds in entries
    ]
    path = folder / "plan.toml"
    path.write_text("\n".join(rows))
    return path


def _step(code: str) -> str:
    return f"python -c {shlex.quote(code)} {{out}}"


WRITES = "import os, sys; open(sys.argv[1], 'w').write(os.environ.get('CUDA_VISIBLE_DEVICES', 'none'))"
COUNTS = "import sys; open(sys.argv[1], 'a').write('x')"
FAILS = "import sys; print('no such thing'); sys.exit(3)"
SLEEPS = "import time; time.sleep(60)"


def test_gpus_work_beside_each_other_and_done_steps_are_not_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meets = (
        "import os, sys, time, pathlib\n"
        "me = pathlib.Path(sys.argv[1])\n"
        "me.write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        "while len(list(me.parent.glob('meets*'))) < 2: time.sleep(0.01)"
    )
    plan = _plan(
        tmp_path,
        ("h200/meets1.json", _step(meets), 1),
        ("h200/meets2.json", _step(meets), 1),
        ("cpu/counts.json", _step(COUNTS), 1),
        ("cpu/fails.json", _step(FAILS), 1),
    )
    words = ["--plan", str(plan), "--out", str(tmp_path / "out"), "--gpus", "4", "5"]
    assert reproduce.main(words) == 1
    results = tmp_path / "out" / "results"
    assert {(results / f"h200/meets{i}.json").read_text() for i in (1, 2)} == {"4", "5"}
    state = json.loads((tmp_path / "out/state.json").read_text())
    assert [facts["status"] for facts in state.values()].count("done") == 3
    assert state["cpu/fails.json: " + _step(FAILS)]["code"] == 3
    assert "no such thing" in (tmp_path / "out" / state["cpu/fails.json: " + _step(FAILS)]["log"]).read_text()
    assert "exit code 3" in capsys.readouterr().out
    assert reproduce.main(words) == 1
    assert (results / "cpu/counts.json").read_text() == "x"
    assert reproduce.main(["cpu/counts.json", *words]) == 0


def test_the_deadline_interrupts_and_nothing_begins_that_would_not_end(tmp_path: Path) -> None:
    keeps = "import sys, time\ntry: time.sleep(60)\nexcept KeyboardInterrupt: open(sys.argv[1], 'w').write('kept')"
    plan = _plan(tmp_path, ("cpu/keeps.json", _step(keeps), 1), ("cpu/long.json", _step(WRITES), 30))
    started = time.monotonic()
    assert reproduce.main(["--plan", str(plan), "--out", str(tmp_path), "--deadline", "2.5"]) == 1
    assert time.monotonic() - started < 2.5 + reproduce.GRACE_SECONDS
    assert (tmp_path / "results/cpu/keeps.json").read_text() == "kept"
    state = json.loads((tmp_path / "state.json").read_text())
    assert [facts["status"] for facts in state.values()] == ["ended at its time"]


def test_what_the_machine_lacks_is_left_out_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = _plan(tmp_path, ("h200/two.json", _step(WRITES), 1))
    plan.write_text(plan.read_text() + "gpus = 2\n" + 'needs = ["vllm"]\n')
    assert reproduce.main(["--plan", str(plan), "--out", str(tmp_path), "--gpus", "0"]) == 1
    assert "h200/two.json is left out: it needs 2 --gpus" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        reproduce.main(["--plan", str(plan), "--out", str(tmp_path), "h100/*"])
    assert "The plan makes no h100/*" in capsys.readouterr().err
    plan.write_text(plan.read_text().replace("seconds = [1]", "seconds = [1, 2]"))
    with pytest.raises(ValueError, match=re.escape("h200/two.json has 1 steps and the seconds of 2.")):
        reproduce.read_plan(plan)


def test_an_interrupt_ends_the_steps_and_keeps_what_was_done(tmp_path: Path) -> None:
    says = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
    plan = _plan(tmp_path, ("cpu/first.json", _step(COUNTS), 1), ("cpu/says.json", _step(says), 1))
    process = subprocess.Popen(
        [sys.executable, str(BENCHMARKS / "reproduce.py"), "--plan", str(plan), "--out", str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    told = tmp_path / "results/cpu/says.json"
    end = time.monotonic() + 30
    while time.monotonic() < end and not (told.is_file() and told.read_text()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130, out
    with pytest.raises(ProcessLookupError):
        os.kill(int(told.read_text()), 0)
    assert json.loads((tmp_path / "state.json").read_text())["cpu/first.json: " + _step(COUNTS)]["status"] == "done"
