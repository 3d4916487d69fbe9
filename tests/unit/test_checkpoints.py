"""The shipped checkpoints: small, loaded by name, equal to transformers, better than what knows frequencies alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer

from fastkernels.engine.llm import LLM
from fastkernels.engine.model_source import ModelSource, find_model, find_tokenizer, shipped_checkpoints
from fastkernels.engine.pipeline import Pipeline
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import UnknownNameError
from fastkernels.oracles.side_by_side import relative_error
from fastkernels.pipelines.bge_m3 import BGEM3Pipeline
from fastkernels.pipelines.pi0 import PI0Pipeline
from fastkernels.training.corpus import held_out_texts
from fastkernels.training.digits import DigitsTask, digits
from fastkernels.training.language import RECIPES, unigram_bits_per_byte
from fastkernels.training.quality import digits_accuracy, digits_logits, held_out_bits_per_byte
from fastkernels.training.release import RECORD
from fastkernels.workloads import byte_tokenizer

LIMIT = 1e-4
LANGUAGE = ("trained-llama", "trained-mamba2", "trained-mixtral")
SHIPPED = ("trained-digits", *LANGUAGE)


def record_of(name: str) -> dict[str, Any]:
    body: dict[str, Any] = json.loads((shipped_checkpoints()[name] / RECORD).read_text())
    return body


def test_four_checkpoints_are_shipped_and_small() -> None:
    assert set(shipped_checkpoints()) == set(SHIPPED)
    assert set(RECIPES) == set(LANGUAGE)
    sizes = [sum(f.stat().st_size for f in folder.iterdir()) for folder in shipped_checkpoints().values()]
    assert max(sizes) <= 4_000_000
    assert sum(sizes) <= 10_000_000


@pytest.mark.parametrize("name", SHIPPED)
def test_a_checkpoint_says_how_it_came_about(name: str) -> None:
    record, config = record_of(name), find_model(name).hf_config
    assert record["name"] == name
    assert record["command"].startswith("python examples/train_")
    assert record["plan"]["steps"] == record["num_steps"] == record["curve"][-1]["step"]
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"] / 2
    assert record["weights_dtype"] == config["dtype"]
    assert record["environment"]["packages"]["transformers"]
    assert str(Path.home()) not in json.dumps(record)
    if name in RECIPES:
        sizes = dict(RECIPES[name].sizes)
        assert {key: config[key] for key in sizes if key in config} == {k: v for k, v in sizes.items() if k in config}
        assert record["plan"] == vars(RECIPES[name].plan)


@pytest.mark.parametrize("name", LANGUAGE)
def test_a_language_model_beats_what_knows_frequencies_alone(name: str) -> None:
    texts = held_out_texts(4, 400)
    found = held_out_bits_per_byte(LLM(name, device="cpu"), texts)
    assert found < 0.65 * unigram_bits_per_byte(texts)
    assert found < record_of(name)["held_out"]["bits_per_byte"] + 0.6


@pytest.mark.parametrize("name", LANGUAGE)
def test_logits_equal_those_of_transformers_on_held_out_text(name: str) -> None:
    ids = byte_tokenizer().encode(held_out_texts(3, 200)[-1]).ids
    library = getattr(transformers, find_model(name).hf_config["architectures"][0])
    theirs = library.from_pretrained(shipped_checkpoints()[name], dtype=torch.float32)
    with torch.no_grad():
        wanted = theirs(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    assert relative_error(our_logits(name, ids), wanted) <= LIMIT


def our_logits(name: str, ids: list[int]) -> torch.Tensor:
    """[num_tokens, vocab_size] of a prompt, in float32."""
    llm = LLM(name, device="cpu", dtype="float32")
    model: Any = llm.core.executor.model  # type: ignore[attr-defined]
    compute, found = model.compute_logits, []

    def keep(hidden: torch.Tensor) -> torch.Tensor:
        found.append(compute(hidden))
        return found[-1]

    model.compute_logits = keep
    llm.generate([ids], SamplingParams(max_tokens=1, prompt_logprobs=0))
    rows = torch.cat(found)
    assert len(rows) == len(ids)
    last = next(i for i, logits in enumerate(found) if len(logits) == 1)  # the sampled row may be computed first
    start = sum(len(logits) for logits in found[:last])
    return torch.cat([rows[:start], rows[start + 1 :], rows[start : start + 1]])


def test_a_language_model_continues_code_with_code() -> None:
    llm = LLM("trained-llama", device="cpu")
    output = llm.generate(["    def __init__(self, "], SamplingParams(max_tokens=24))[0]
    assert "):" in output.outputs[0].text


def test_digits_are_told_apart_as_the_library_does() -> None:
    pipeline = Pipeline("trained-digits", device="cpu", dtype="float32")
    assert digits_accuracy(pipeline, 120) >= 0.95
    theirs = transformers.VJEPA2ForVideoClassification.from_pretrained(
        shipped_checkpoints()["trained-digits"], dtype=torch.float32
    )
    held_out = digits()[1].videos[:16]
    task = DigitsTask(0, torch.device("cpu"))
    pixels = task.processor(held_out.reshape(-1, 8, 8, 3)).unflatten(0, (16, 2))
    with torch.no_grad():
        wanted = theirs(pixel_values_videos=pixels).logits
    assert relative_error(digits_logits(pipeline, 16), wanted) <= LIMIT


def test_a_tokenizers_saved_truncation_and_padding_are_no_business_of_the_next_text(tmp_path: Path) -> None:
    saved, text = Tokenizer.from_str(byte_tokenizer().to_str()), "x" * 40 + "y"
    wanted = saved.encode(text).ids
    saved.enable_truncation(4)  # as a checkpoint has it whose last text before it was saved was cut and padded
    saved.enable_padding(length=64)
    assert len(saved.encode(text).ids) == 64
    saved.save(str(tmp_path / "tokenizer.json"))
    tokenizers = [find_tokenizer(ModelSource("", {}, tmp_path))]
    for model, adapter in (("tiny-pi0", PI0Pipeline), ("tiny-bge_m3", BGEM3Pipeline)):
        pipeline = Pipeline(model, device="cpu")
        tokenizers.append(adapter(pipeline.model, pipeline.adapter.config, tmp_path).tokenizer)
    assert [tokenizer.encode(text).ids for tokenizer in tokenizers] == [wanted] * 3


def test_an_unknown_name_is_told_from_the_shipped_ones() -> None:
    with pytest.raises(UnknownNameError, match="trained-llama"):
        find_model("trained-lama")
