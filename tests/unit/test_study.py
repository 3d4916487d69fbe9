"""The routing study: its measures on known loads, and its loads against the library's own router."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from fastkernels.cli import main
from fastkernels.engine.model_source import shipped_checkpoints
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.studies.page import relative_loads, render_study
from fastkernels.studies.routing import (
    INPUTS,
    StudyConfig,
    expert_counts,
    gini,
    hot_experts,
    moved_share,
    routing_study,
    save,
    sentence,
)
from fastkernels.training.corpus import held_out_texts
from fastkernels.workloads import byte_tokenizer

SMALL = StudyConfig(num_prompts=4, prompt_bytes=128, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return routing_study(SMALL)


@pytest.mark.parametrize(
    ("loads", "wanted"),
    [([5, 5, 5, 5], 0.0), ([0, 0, 0, 9], 0.75), ([1, 3], 0.25), ([3, 1], 0.25), ([1, 2, 3, 4], 0.25), ([7], 0.0)],
)
def test_gini_of_known_loads(loads: list[int], wanted: float) -> None:
    assert gini(loads) == pytest.approx(wanted)
    assert gini([10 * load for load in loads]) == pytest.approx(wanted)


@pytest.mark.parametrize("loads", [[], [0, 0], [-1, 2], [float("nan"), 1.0]], ids=str)
def test_gini_of_no_load_is_refused(loads: list[float]) -> None:
    with pytest.raises(ValueError, match="Gini"):
        gini(np.array(loads))


def test_counts_hot_experts_and_moved_share_of_known_loads() -> None:
    loads = expert_counts(np.array([[0, 2], [2, 3], [2, 0]]), 5)
    assert loads.tolist() == [2, 0, 3, 1, 0]
    assert hot_experts(loads, 3) == [2, 0, 3]
    assert hot_experts(np.array([1, 1, 1]), 2) == [0, 1]
    assert moved_share(np.array([4, 0]), np.array([0, 9])) == 1
    assert moved_share(np.array([4, 4]), np.array([1, 3])) == pytest.approx(0.25)
    assert moved_share(loads, 7 * loads) == 0


def test_loads_of_real_prompts_are_those_of_the_library(study: dict[str, Any]) -> None:
    model = transformers.MixtralForCausalLM.from_pretrained(shipped_checkpoints()[SMALL.model], dtype=torch.float32)
    wanted = np.zeros(8, dtype=np.int64)
    for text in held_out_texts(SMALL.num_prompts, SMALL.prompt_bytes):
        with torch.no_grad():
            answer = model(input_ids=torch.tensor([byte_tokenizer().encode(text).ids]), output_router_logits=True)
        wanted += expert_counts(answer.router_logits[0].topk(2).indices.numpy(), 8)
    assert study["inputs"]["real prompts"]["loads"] == wanted.tolist()


def test_every_input_has_as_many_tokens(study: dict[str, Any]) -> None:
    assert {sum(study["inputs"][name]["loads"]) for name in INPUTS} == {2 * study["num_tokens"]}
    assert study["inputs"]["real prompts"]["hot_in_common"] == study["num_hot"] == 4
    assert study["model"]["first_gate"] == ["model.layers.0.block_sparse_moe.gate"]
    assert [study["inputs"][name]["gini"] for name in INPUTS] == [
        pytest.approx(gini(study["inputs"][name]["loads"]), abs=1e-4) for name in INPUTS
    ]


def test_a_study_is_the_same_twice_and_another_by_another_seed(study: dict[str, Any]) -> None:
    again = routing_study(SMALL)
    assert again["inputs"] == study["inputs"]
    other = routing_study(StudyConfig(num_prompts=4, prompt_bytes=128, dtype="float32", device="cpu", seed=1))
    assert other["inputs"]["real prompts"] == study["inputs"]["real prompts"]
    assert other["inputs"]["random tokens"]["loads"] != study["inputs"]["random tokens"]["loads"]


def test_a_model_without_experts_and_too_few_prompts_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no mixture of experts"):
        routing_study(StudyConfig(model="tiny-llama", num_prompts=2, prompt_bytes=16, device="cpu"))
    with pytest.raises(UsageError, match="at least 2 prompts"):
        StudyConfig(num_prompts=1)


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_that_no_generator_takes_is_refused_before_a_model_runs(
    seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["study", "routing", "--seed", str(seed)])
    assert ended.value.code == 2
    assert f"at least 0 and below 2**63, got {seed}" in capsys.readouterr().err


def has_write_bit(path: Path, mode: int) -> bool:
    return not mode & os.W_OK or bool(Path(path).stat().st_mode & 0o200)


def no_permission(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o500)


@pytest.mark.parametrize(
    ("out", "prepare", "says"),
    [
        ("taken", lambda path: path.write_text(""), "taken is a file, so routing_study.json cannot go into it"),
        ("taken/x", lambda path: path.parent.write_text(""), "taken is a file"),
        ("a.json", lambda path: path.mkdir(), "a.json is a folder where a file is due"),
        ("run", lambda path: (path / "report.html").mkdir(parents=True), "report.html is a folder where a file is due"),
        ("closed", no_permission, "closed cannot be written"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_a_model_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    out: str,
    prepare: Callable[[Path], Any],
    says: str,
) -> None:
    monkeypatch.setattr("fastkernels.cli.study.routing_study", None)
    monkeypatch.setattr(os, "access", has_write_bit)  # also where this is root
    prepare(tmp_path / out)
    with pytest.raises(SystemExit) as ended:
        main(["study", "routing", "--out", str(tmp_path / out)])
    assert ended.value.code == UsageError.exit_code
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_full_disk_leaves_the_study_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "study.json"
    save({"study": "first"}, path)
    write_text = Path.write_text

    def full(path: Path, text: str, *args: Any, **kwargs: Any) -> int:
        write_text(path, text[:4])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        save({"study": "second"}, path)
    assert json.loads(path.read_text()) == {"study": "first"}
    assert [p.name for p in path.parent.iterdir()] == ["study.json"]


def test_the_sentence_marks_what_was_published(study: dict[str, Any]) -> None:
    own, published = sentence(study).split("Published for ")
    assert f"{study['inputs']['random tokens']['gini']:.3f} for random token ids" in own
    assert published.startswith("Qwen3-VL-30B-A3B-Instruct-FP8 (128 experts, top 8): 0.232, 0.480 and 0.339; 4 of 16")


def test_the_page_has_three_curves_and_fetches_nothing(study: dict[str, Any]) -> None:
    page = render_study(study)
    plots = json.loads(re.search(r'id="plots">(.*?)</script>', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    assert [trace["name"] for trace in plots["experts"]["data"]] == list(INPUTS)
    real = plots["experts"]["data"][0]["y"]
    assert real == sorted(real, reverse=True)
    assert sum(relative_loads(study, "random tokens")) == pytest.approx(8)
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', own)
    assert 'Content-Security-Policy" content="default-src' in own


def test_the_command_writes_json_and_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--num-prompts", "2", "--prompt-bytes", "64", "--device", "cpu", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["study", "routing", "--out", str(tmp_path / "run"), *small])
    assert not ended.value.code
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "run" / "routing_study.json").read_text()) == printed
    assert (tmp_path / "run" / "report.html").stat().st_size > 1_000_000  # with the plot library
    with pytest.raises(SystemExit) as ended:
        main(["study", "rooting"])
    assert ended.value.code == 2
