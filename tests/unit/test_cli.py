"""The command line as a user meets it: output, messages and exit codes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import rich.console
from commands import called

from fastkernels import cli, optional
from fastkernels.cli import common
from fastkernels.engine.chat import find_chat_template
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.workloads import byte_tokenizer

READ_ONLY = {"list", "stubs", "report", "serve", "leaderboard", "lineage", "version"}


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def fastkernels(capsys: pytest.CaptureFixture[str]) -> Call:
    """A command in this process; test_the_program_... are of one of its own."""
    return partial(called, capsys)


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "fastkernels", *arguments], capture_output=True, text=True)


def raising(error: BaseException) -> None:
    raise error


def test_list_shows_every_op_of_a_level(fastkernels: Call) -> None:
    done = fastkernels("list", "--level", "1")
    assert done.returncode == 0
    assert "RMSNorm" in done.stdout
    assert "LlamaMLP" not in done.stdout


def test_list_json_is_json_and_nothing_else(fastkernels: Call) -> None:
    found = {op["op"]: op for op in json.loads(fastkernels("list", "--json").stdout)}
    assert found["rms_norm"]["file"] == "L1/rms_norm.py"
    assert "silu_and_mul" in found["llama_mlp"]["uses"]
    assert "llama_for_causal_lm" in found["rms_norm"]["used_by"]


def test_list_map_is_the_tree_of_a_model(fastkernels: Call) -> None:
    done = fastkernels("list", "--map", "llama")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("LlamaForCausalLM")
    depth = {name: next(line.index(name) for line in lines if name in line) for name in ("LlamaMLP", "SiluAndMul")}
    assert depth["SiluAndMul"] == depth["LlamaMLP"] + 4


def test_list_map_json_nests_down_to_level_one(fastkernels: Call) -> None:
    (root,) = json.loads(fastkernels("list", "--map", "llama_mlp", "--json").stdout)
    assert {part["class"] for part in root["uses"]} >= {"SiluAndMul", "RowParallelLinear"}


def test_list_uses_reaches_the_model(fastkernels: Call) -> None:
    (found,) = json.loads(fastkernels("list", "--uses", "rms_norm", "--json").stdout)
    assert found["changes"][-1]["level"] == 4
    assert {"llama", "mixtral"} <= set(found["architectures"])


def test_list_sets_says_what_each_is(fastkernels: Call) -> None:
    found = {s["name"]: s for s in json.loads(fastkernels("list", "--sets", "--json").stdout)}
    assert found["liger"]["ops"] == ["rms_norm", "silu_and_mul"]
    assert "Liger Kernel" in fastkernels("list", "--sets").stdout


def test_list_models_says_what_needs_no_file(fastkernels: Call) -> None:
    found = {m["model"]: m for m in json.loads(fastkernels("list", "--models", "--json").stdout)}
    assert found["tiny-llama"]["architecture"] == "llama"
    assert found["trained-mixtral"]["weights"] == "trained, shipped"
    assert "llama-3.1-8b" in fastkernels("list", "--models").stdout


def test_help_lists_commands_and_exit_codes(fastkernels: Call) -> None:
    done = fastkernels("--help")
    assert done.returncode == 0
    assert "stubs" in done.stdout
    assert "6 FastKernels itself failed" in done.stdout
    assert "130 interrupted" in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.strip(" │").startswith("bench")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lst"], "No such command 'lst'"),
        (["list", "--bogus"], "No such option"),
        (["list", "--uses", "rmsnorm"], "Did you mean rms_norm"),
        (["list", "--map", "lama"], "Did you mean llama"),
        (["list", "--level", "9"], "There is no level 9"),
        (["list", "--sets", "--uses", "rms_norm"], "give one"),
        (["stubs"], "Say which: --target, --level or --architecture"),
        (["stubs", "--target", "rms_nrm"], "Did you mean rms_norm"),
        (["stubs", "--target", "rms_norm", "--level", "2"], "No op is all of this: rms_norm, level 2"),
    ],
)
def test_a_users_mistake_is_one_message_and_exit_code_two(
    fastkernels: Call, arguments: list[str], message: str
) -> None:
    done = fastkernels(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_is_no_text_is_named(fastkernels: Call, tmp_path: Path) -> None:
    (tmp_path / "bytes").write_bytes(b"\xff\x00")
    done = fastkernels("generate", "--model", "tiny-llama", "--prompts-file", str(tmp_path / "bytes"))
    assert done.returncode == 2
    assert f"--prompts-file {tmp_path / 'bytes'} is no UTF-8 text" in done.stderr
    with pytest.raises(UsageError, match=r"--chat-template .*bytes is no UTF-8 text"):
        find_chat_template("tiny-llama", tmp_path / "bytes")


@pytest.mark.parametrize(
    ("model", "given", "says"),
    [
        ("tiny-dinov3", "image=3", "The image is 3; it is a file, a URL or base64."),
        ("tiny-lightgcn", "users=abc", "users is 'abc'; it is a list of ids."),
    ],
)
def test_an_input_of_another_kind_is_named(fastkernels: Call, model: str, given: str, says: str) -> None:
    done = fastkernels("generate", "--model", model, "--device", "cpu", "--input", given)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


@pytest.mark.parametrize("text", ["1984", "null", '["a", "b"]', '"said"'])
def test_an_input_that_is_a_text_stays_as_it_was_said(fastkernels: Call, text: str) -> None:
    words = ("generate", "--model", "tiny-bge_m3", "--device", "cpu", "--json", "--input", f"text={text}")
    done = fastkernels(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_tokens"] == len(byte_tokenizer().encode(text).ids) + 2


def test_the_program_ends_with_the_code_of_its_command() -> None:
    done = program("list", "--uses", "rmsnorm")
    assert done.returncode == 2
    assert "Did you mean rms_norm" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_the_program_writes_json_and_nothing_else() -> None:
    assert "rms_norm" in {op["op"] for op in json.loads(program("list", "--json").stdout)}


def test_stubs_writes_and_then_refuses(fastkernels: Call, tmp_path: Path) -> None:
    command = ["stubs", "--target", "rms_norm", "--out", str(tmp_path)]
    done = fastkernels(*command)
    assert done.stdout.split() == [str(tmp_path / "L1" / "rms_norm.py")]
    again = fastkernels(*command)
    assert again.returncode == 2
    assert "never overwrite" in again.stderr


def test_listing_imports_neither_torch_nor_other_commands() -> None:
    script = (
        "import sys\nfrom fastkernels.cli import main\n"
        "try:\n    main(['list', '--level', '4'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([m for m in sys.modules if m == 'torch' or m == 'fastkernels.cli.stubs'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_commands_that_only_read_import_no_torch() -> None:
    """They answer in half a second; torch takes two."""
    names = [c.module for c in cli.COMMANDS if c.name in READ_ONLY]
    assert len(names) == len(READ_ONLY)
    script = f"import sys\nfor name in {names}:\n    __import__(name)\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_server_of_text_and_the_fake_device_do_without_torch() -> None:
    """The former is up in half the time and memory, and the tests of the latter are."""
    script = (
        "import sys\nimport fastkernels.server.lifecycle\nfrom fastkernels.engine.config import EngineConfig\n"
        "from fastkernels.engine.core import EngineCore\nEngineCore(EngineConfig('tiny-llama', device='fake'))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_every_command_of_the_table_that_exists_loads() -> None:
    missing = [
        c.name for c in cli.COMMANDS if not (Path(cli.__file__).parent / f"{c.function.split(':')[0]}.py").exists()
    ]
    for command in cli.COMMANDS:
        if command.name not in missing:
            assert callable(command.load())


def test_bench_is_kernels_and_kb_nano_is_the_same_program() -> None:
    functions = {command.name: command.function for command in cli.COMMANDS}
    assert functions["bench"] == functions["kernels"]
    text = (Path(cli.__file__).parents[2] / "pyproject.toml").read_text()
    assert 'fastkernels = "fastkernels.cli:main"' in text
    assert 'kb_nano = "fastkernels.cli:main"' in text


@pytest.mark.parametrize(
    ("error", "exit_code", "message"),
    [
        (UsageError("Two words [bold]and[/] more."), 2, "error: Two words [bold]and[/] more."),
        (EnvironmentProblem("No GPU."), 5, "error: No GPU."),
        (KeyboardInterrupt(), 130, "Interrupted"),
        (OSError(errno.ENOSPC, "No space left on device", "/runs/a"), 5, "The disk is full: /runs/a"),
        (OSError(errno.EMFILE, "Too many open files"), 5, "Too many files are open in one process"),
        (OSError(errno.ENFILE, "Too many open files in system"), 5, "Too many files are open on this machine"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/b"), 5, "No permission to write or read: /root/b"),
        (NotADirectoryError(errno.ENOTDIR, "x", "a/b"), 2, "a/b cannot be used: a part of the path is a file"),
        (FileExistsError(errno.EEXIST, "x", "a"), 2, "a cannot be used: a file is there where a folder is due"),
        (IsADirectoryError(errno.EISDIR, "x", "a"), 2, "a cannot be used: it is a folder where a file is due"),
        (
            ModuleNotFoundError("x", name="PIL"),
            5,
            "package PIL, which is not installed: pip install 'fastkernels[",
        ),
        (ModuleNotFoundError("x", name="mlflow.entities"), 5, "pip install -e '.[track]'"),
    ],
)
def test_an_error_ends_a_command_with_its_code(
    error: BaseException,
    exit_code: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(common, "error_console", rich.console.Console(stderr=True))
    with pytest.raises(SystemExit) as ended:
        common.reports_errors(raising)(error)
    assert ended.value.code == exit_code
    assert message in capsys.readouterr().err


def test_sigterm_ends_a_command_as_ctrl_c_does(fastkernels: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)

    monkeypatch.setattr(cli.Command, "load", lambda command: common.reports_errors(ended))
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # fails without a handler, and ends no test run
    try:
        assert fastkernels("version").returncode == 130
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert fastkernels("serve").returncode == 0  # its own handler is to be set
    finally:
        signal.signal(signal.SIGTERM, before)


def test_an_unforeseen_error_keeps_its_traceback() -> None:
    with pytest.raises(FileNotFoundError):
        common.reports_errors(raising)(FileNotFoundError(errno.ENOENT, "x", "y"))
    with pytest.raises(ModuleNotFoundError):
        common.reports_errors(raising)(ModuleNotFoundError("x", name="fastkernels.none"))


def test_every_optional_package_has_its_extra() -> None:
    """The extras that missing modules are told by are those of pyproject.toml."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert set(optional._MODULES) <= set(tomllib.loads(text)["project"]["optional-dependencies"])


@pytest.mark.parametrize(("script", "package"), [("train_digits", "sklearn"), ("train_digits", "PIL")])
def test_an_example_without_its_packages_says_what_to_install(script: str, package: str, tmp_path: Path) -> None:
    path = Path(__file__).parents[2] / "examples" / f"{script}.py"
    body = f"import runpy, sys; sys.modules[{package!r}] = None; sys.argv = ['x']; "
    body += f"runpy.run_path({str(path)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 5, done.stderr
    assert "fastkernels[" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_may_return_its_exit_code() -> None:
    with pytest.raises(SystemExit) as ended:
        common.reports_errors(lambda: 1)()
    assert ended.value.code == 1
    assert common.reports_errors(lambda: 0)() == 0
