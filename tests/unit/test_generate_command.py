"""`fastkernels generate`: an answer is not lost, and a candidate that ends the run is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from commands import called
from forked import Forks
from judging import rms_norm, write_set

from fastkernels.engine.config import EngineConfig

Call = Callable[..., tuple[int, str, str]]
LLAMA = ("generate", "--model", "tiny-llama", "--device", "cpu", "--prompt", "Once", "--max-tokens", "2")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> tuple[int, str, str]:
        done = called(capsys, *map(str, words))
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--input", "image=x.png", "--out", "nodir/x.safetensors"), "there is no folder nodir. Make it"),
        (("--input", "image=x.png", "--out", "."), "--out . is a folder; name a file in it"),
        (("--prompt", "x", "--out", "x.txt"), "--out takes the answer to --input"),
    ],
)
def test_an_out_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    call: Call, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], says: str
) -> None:
    monkeypatch.setattr("fastkernels.cli.generate.Pipeline", None)
    monkeypatch.setattr("fastkernels.cli.generate.LLM", None)
    code, out, err = call("generate", "--model", "tiny-dinov3", *words)
    assert (code, out) == (2, "")
    assert says in err


PROGRAM = """
import os, sys
from fastkernels.cli import main

os.chdir(sys.argv.pop(1))
code = 0
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = int(stop.code or 0)
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
"""
"""In a process of its own: candidates are put in the place of what has not been imported yet."""


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("raise ValueError('no such tile')", "ValueError: no such tile"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
    ],
)
def test_a_candidate_that_ends_the_run_is_named_with_its_part_of_the_traceback(
    forks: Forks, tmp_path: Path, body: str, says: str
) -> None:
    mine = write_set(tmp_path / "mine", "rms_norm", rms_norm(body))
    done = forks.run(PROGRAM, [tmp_path, *LLAMA, "--candidates", mine])
    err = done.err
    assert done.code == 1
    assert "The set 'mine' ended the run." in err
    assert "mine/L1/rms_norm.py" in err
    assert says in err
    assert "core.py" not in err
    assert len(err.splitlines()) < 20
    assert done.out == ""


def test_a_model_that_ends_behind_a_candidate_says_that_it_had_some(forks: Forks, tmp_path: Path) -> None:
    mine = write_set(tmp_path / "mine", "rms_norm", rms_norm("return x[..., :3], x"))
    done = forks.run(PROGRAM, [tmp_path, *LLAMA, "--candidates", mine])
    assert done.code == 1
    assert "With the candidates mine the model ended, outside of their files." in done.err
    assert len(done.err.splitlines()) < 20


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("tiny-llama", "--prompt", "\udcff"), "prompt"),
        (("tiny-sdxl", "--input", "prompt=\udcff"), "prompt"),
        (("tiny-sdxl", "--input", "prompt=x", "--input", "negative_prompt=\udcff"), "negative_prompt"),
        (("tiny-bge_m3", "--input", "text=\udcff"), "text"),
    ],
)
def test_a_text_that_is_not_unicode_is_one_message(call: Call, words: tuple[str, ...], name: str) -> None:
    code, out, err = call("generate", "--device", "cpu", "--model", *words)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"error: {name} holds a lone surrogate (U+DCFF) at 0; it is no Unicode text. Give it as UTF-8."
    ]


def test_every_option_of_an_engine_is_one_of_generate(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}

    class Told(Exception):
        pass

    def build(**options: object) -> None:
        given.update(options)
        raise Told

    monkeypatch.setattr("fastkernels.cli.generate.LLM", build)
    words = ("--tp", 2, "--warm", "full", "--max-model-len", 64, "--no-enable-prefix-caching", "--dtype", "auto")
    for more in ((), words):
        with pytest.raises(Told):
            call("generate", "--model", "tiny-llama", "--prompt", "x", *more)
        wanted = EngineConfig("tiny-llama")
        if more:
            options = {"tensor_parallel_size": 2, "warm": "full", "max_model_len": 64, "enable_prefix_caching": False}
            wanted = EngineConfig("tiny-llama", **options)  # type: ignore[arg-type]
        assert EngineConfig(**given) == wanted  # type: ignore[arg-type]
        assert given["num_pages"] is None, "As many as memory holds."


def test_an_engine_for_one_device_says_so(call: Call) -> None:
    code, _, err = call("generate", "--device", "cpu", "--model", "tiny-bge_m3", "--input", "text=x", "--tp", 2)
    assert code == 4
    assert "tensor_parallel_size is 2; a model that makes no tokens runs on 1 device" in err
