"""Text that is split once and for all, trainings that go on as if never stopped, and the examples that start them."""

from __future__ import annotations

import json
import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

from fastkernels.engine.llm import LLM
from fastkernels.errors import CheckpointError, EnvironmentProblem, UnknownNameError, UsageError
from fastkernels.training import command
from fastkernels.training.command import train_language
from fastkernels.training.corpus import (
    SourceText,
    held_out_sources,
    held_out_texts,
    is_held_out,
    standard_library,
    text_facts,
    train_sources,
)
from fastkernels.training.digits import digits
from fastkernels.training.language import LanguageRecipe, LanguageTask, TextWindows, find_recipe, unigram_bits_per_byte
from fastkernels.training.loop import STATE, Plan, Progress, train
from fastkernels.training.quality import held_out_bits_per_byte, held_out_perplexity
from fastkernels.training.release import RECORD, curve
from fastkernels.workloads import byte_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
SOURCES = [
    SourceText("a", "def one(x):\n    return x + 1\n" * 40),
    SourceText("b", "class Two:\n    value = 'ä'\n" * 40),
]
MICRO = LanguageRecipe(
    "micro",
    "MixtralForCausalLM",
    "MixtralConfig",
    {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    },
    Plan(steps=4, matrix_learning_rate=0.02, warmup_steps=1, save_every=1),
    batch_size=2,
    sequence_len=32,
    trained_only={"output_router_logits": True},
)


class Stop(Exception):
    pass


def micro(seed: int = 3) -> LanguageTask:
    return LanguageTask(MICRO, TextWindows(SOURCES), seed, torch.device("cpu"))


@pytest.fixture
def library(tmp_path: Path) -> Path:
    root = tmp_path / "lib"
    for number in range(64):
        path = root / f"module{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"value = {number}\n" * 20)
    for left_out in ("test/a.py", "json/tests/b.py", "site-packages/c.py", "encodings/cp1.py", "_sysconfigdata_x.py"):
        (root / left_out).parent.mkdir(parents=True, exist_ok=True)
        (root / left_out).write_text("left = 'out'\n")
    (root / "package").mkdir()
    (root / "package" / "__init__.py").write_text("")
    return root


def test_every_module_is_on_one_side_and_none_of_the_tests_is(library: Path) -> None:
    train_names, held_names = ({s.module for s in sources(library)} for sources in (train_sources, held_out_sources))
    assert held_names
    assert not train_names & held_names
    assert train_names | held_names == {f"module{number}" for number in range(64)} | {"package"}


def test_sides_and_texts_of_the_installed_library_are_the_same_when_read_again() -> None:
    facts = text_facts(train_sources()), text_facts(held_out_sources())
    standard_library.cache_clear()
    assert (text_facts(train_sources()), text_facts(held_out_sources())) == facts
    assert facts[0]["num_bytes"] > 10 * facts[1]["num_bytes"] > 1_000_000
    assert facts[0]["sha256"] != facts[1]["sha256"]


def test_held_out_texts_are_whole_pieces_of_held_out_modules(library: Path) -> None:
    texts = held_out_texts(5, 40, library)
    held_out = [source.text for source in held_out_sources(library)]
    assert [len(text.encode()) for text in texts] == [40] * 5
    assert all(any(text in whole for whole in held_out) for text in texts)
    assert len({*texts}) == 5
    with pytest.raises(UsageError, match="there are"):
        held_out_texts(10_000, 40, library)


def test_a_module_stays_on_its_side_in_every_version_of_python() -> None:
    names = ("argparse", "bz2", "collections", "collections.abc", "pathlib", "textwrap")
    assert [name for name in names if is_held_out(name)] == ["bz2", "collections", "pathlib"]


def test_a_system_without_sources_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=str(tmp_path)):
        standard_library(tmp_path)


def test_windows_are_the_tokens_of_the_text_from_a_place_on() -> None:
    windows = TextWindows(SOURCES)
    first, second = windows.tokens([0, 7], 50).tolist()
    assert first == byte_tokenizer().encode(SOURCES[0].text).ids[:50]
    assert byte_tokenizer().decode(second).startswith("(x" if SOURCES[0].text[7] == "(" else SOURCES[0].text[7:9])
    end = windows.text.index(SOURCES[1].text) - 30
    assert 1 in windows.tokens([end], 50)[0].tolist()  # the end token between two texts
    with pytest.raises(UsageError, match="characters"):
        windows.num_places(10_000)


def test_two_steps_lower_the_loss(tmp_path: Path) -> None:
    task = micro()
    before = task.loss(0).item()
    train(task, Plan(steps=2, learning_rate=1e-2, matrix_learning_rate=0.02, warmup_steps=1), tmp_path)
    assert task.loss(0).item() < before - 0.05


def test_a_resumed_training_equals_a_straight_one(tmp_path: Path) -> None:
    straight = micro()
    wanted = train(straight, MICRO.plan, tmp_path / "straight")

    def stop(done: Progress, share: float) -> None:
        if done.step == 2:
            raise Stop

    with pytest.raises(Stop):
        train(micro(), MICRO.plan, tmp_path / "resumed", stop)
    resumed = micro(seed=3)
    found = train(resumed, MICRO.plan, tmp_path / "resumed")
    assert found.losses == wanted.losses
    assert len(found.losses) == 4
    for name, tensor in straight.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


def test_data_and_weights_are_those_of_the_seed() -> None:
    one, same, other = micro(3), micro(3), micro(4)
    assert torch.equal(one.batch(5), same.batch(5))
    assert not torch.equal(one.batch(5), one.batch(6))
    assert not torch.equal(one.batch(5), other.batch(5))
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), same.model.parameters(), strict=True))


def test_a_state_of_another_plan_or_seed_or_of_none_is_refused(tmp_path: Path) -> None:
    train(micro(), Plan(steps=1), tmp_path)
    with pytest.raises(UsageError, match=r"steps 1 \(now 2\)"):
        train(micro(), Plan(steps=2), tmp_path)
    with pytest.raises(UsageError, match=r"seed 3 \(now 4\)"):
        train(micro(4), Plan(steps=1), tmp_path)
    (tmp_path / STATE).write_bytes(b"not a state")
    with pytest.raises(CheckpointError, match="Delete it"):
        train(micro(), Plan(steps=1), tmp_path)


def test_minutes_end_a_training_and_its_learning_rate() -> None:
    plan = Plan(steps=10**9, minutes=2, warmup_steps=4)
    assert plan.progress(1000, 60) == pytest.approx(0.5)
    assert plan.rate(1000, 60) == pytest.approx(0.5)
    assert plan.rate(0, 0) == pytest.approx(0.25)
    assert plan.progress(1000, 121) == 1
    assert Plan(steps=10).rate(10, 0) == 0


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"minutes": 0.0}, {"learning_rate": 0.0}, {"save_every": 0}], ids=str)
def test_a_plan_without_sense_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Plan(**{"steps": 1, **wrong})  # type: ignore[arg-type]


def test_an_unknown_model_is_told_from_the_known() -> None:
    with pytest.raises(UnknownNameError, match="trained-llama"):
        find_recipe("trained-lama")


def test_a_curve_is_the_mean_of_equal_stretches() -> None:
    points = curve(Progress(401, 1.0, [1.0, 2.0, 3.0] * 133 + [5.0, 7.0]))
    assert points[0] == {"step": 3, "loss": 2.0}
    assert points[-1] == {"step": 401, "loss": 6.0}


def test_unigram_entropy_is_that_of_the_frequencies() -> None:
    assert unigram_bits_per_byte(["\n\t\n\t"]) == pytest.approx(1.0)
    assert unigram_bits_per_byte(["\n\n\n\n"]) == 0.0


def test_perplexity_and_bits_per_byte_say_the_same() -> None:
    llm = LLM("tiny-llama", device="cpu", dtype="float32")
    text = "\x00\x01\x02\x03 \x00\x01"
    num_tokens = len(llm.tokenizer.encode(text).ids)
    perplexity = held_out_perplexity(llm, [text])
    assert perplexity > 50  # random weights know nothing of 512 tokens
    bits = held_out_bits_per_byte(llm, [text]) * (len(text.encode()) - 1)
    assert bits == pytest.approx(math.log2(perplexity) * (num_tokens - 1))
    with pytest.raises(UsageError, match="two tokens"):
        held_out_perplexity(llm, ["a"])


def test_digits_are_split_without_a_rest() -> None:
    train_set, held_out = digits()
    assert (len(train_set.labels), len(held_out.labels)) == (1437, 360)
    assert held_out.videos.shape == (360, 2, 8, 8, 3)
    assert {*held_out.labels.tolist()} == {*train_set.labels.tolist()} == set(range(10))
    pictures = {video.tobytes() for video in held_out.videos}
    assert not pictures & {video.tobytes() for video in train_set.videos}


@pytest.mark.parametrize(
    ("example", "words"), [("train_tiny.py", ["--model", "trained-mamba2"]), ("train_digits.py", [])]
)
def test_an_example_leaves_a_checkpoint_and_its_record(
    example: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "HELD_OUT_SEQUENCES", 2)
    monkeypatch.setattr(sys, "argv", [example, *words, "--steps", "1", "--device", "cpu", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "held-out" in capsys.readouterr().out
    record = json.loads((tmp_path / RECORD).read_text())
    assert record["num_steps"] == 1
    assert record["command"] == " ".join(["python", f"examples/{example}", *words, "--steps 1 --device cpu"])
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("out", [["--out", "/home/me/x"], ["--out=/home/me/x"]], ids=" ".join)
def test_a_record_does_not_say_where_the_folder_was(out: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for words in ([*out, "--steps", "3"], ["--steps", "3", *out]):
        monkeypatch.setattr(sys, "argv", ["/home/me/examples/train_tiny.py", *words])
        assert command.command_line() == "python examples/train_tiny.py --steps 3"


def test_no_steps_are_refused_and_not_taken_for_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least 1 step and more than 0 minutes, got 0"):
        train_language("trained-llama", tmp_path, steps=0)
