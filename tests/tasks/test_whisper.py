"""Whisper through the engine: beside transformers' generate, under preemption, its limits, and what a user hears of."""

from __future__ import annotations

import hashlib
import io
import json
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from fastkernels import workloads
from fastkernels.cli.generate import generate
from fastkernels.engine.llm import LLM
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError
from fastkernels.errors import UnsupportedError, UsageError
from fastkernels.oracles.whisper import ORACLE
from fastkernels.pipelines.media import load_audio
from fastkernels.pipelines.whisper import WhisperProcessor
from fastkernels.tasks.configs.whisper import WhisperConfig
from fastkernels.workloads import speech

RATE = 16000
SPEECH = Path(workloads.__file__).with_name("speech.wav")
GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def tone(seconds: float, pitch: float = 300.0) -> np.ndarray:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.3 * np.sin(2 * np.pi * pitch * time * (1 + 0.2 * time))).astype(np.float32)


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((samples * 32767).astype("<i2").tobytes())
    return file.getvalue()


def heard(tokens: list[int], audio: Any) -> dict[str, Any]:
    return {"prompt_token_ids": tokens, "multi_modal_data": {"audio": audio}}


def tokens_of(llm: LLM, prompts: list[Any], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [list(output.outputs[0].token_ids) for output in llm.generate(prompts, params)]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny-whisper", device="cpu", page_size=16)


@pytest.fixture(scope="module")
def marked_tokenizer() -> Tokenizer:
    """Bytes and the published marks."""
    tokenizer = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    marks = ["<|startoftranscript|>", "<|en|>", "<|fr|>", "<|translate|>", "<|transcribe|>", "<|startofprev|>"]
    tokenizer.add_special_tokens([*marks, "<|notimestamps|>"])
    return tokenizer


def test_tokens_equal_those_of_transformers_generate_with_suppressed_tokens(tmp_path: Path) -> None:
    sizes = dict(ORACLE.tiny()["tied"])
    model: Any = ORACLE.build(sizes, seed=5)
    ORACLE.save(model, tmp_path)
    sounds = [speech()[:14400], tone(0.3, 700.0)]
    llm = LLM(tmp_path, device="cpu")
    free = tokens_of(llm, [heard([3, 9], sound) for sound in sounds])
    banned, first = [free[0][1], free[1][2]], [free[0][0], free[1][0]]
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"suppress_tokens": banned, "begin_suppress_tokens": first})
    )
    processor = WhisperProcessor(llm.processor.config, llm.tokenizer, tmp_path)  # type: ignore[union-attr]
    params = processor.sampling_params(GREEDY, 2)
    assert (params.suppress_tokens, params.begin_suppress_tokens) == (tuple(banned), tuple(first))
    ours = tokens_of(llm, [heard([3, 9], sound) for sound in sounds], params)
    extractor = transformers.WhisperFeatureExtractor(feature_size=sizes["num_mel_bins"])
    for sound, given in zip(sounds, ours, strict=True):
        features = extractor(sound, sampling_rate=RATE, return_tensors="pt", max_length=RATE)["input_features"]
        tokens = [3, 9]
        for step in range(8):
            with torch.no_grad():
                logits = model(features, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
            logits[banned + (first if step == 0 else [])] = float("-inf")
            tokens.append(int(logits.argmax()))
        assert given == tokens[2:]
    assert ours != free


def test_speech_is_heard_as_transformers_hears_it(tmp_path: Path) -> None:
    """The shipped file, two windows of it: equal spectrograms and, of a tiny model by seed, equal tokens and text."""
    sizes = dict(ORACLE.tiny()["tied"])
    model: Any = ORACLE.build(sizes, seed=7)
    ORACLE.save(model, tmp_path)
    llm = LLM(tmp_path, device="cpu")
    processor: Any = llm.processor
    windows = processor.windows(SPEECH)
    assert [len(window) for window in windows] == [RATE, len(speech()) - RATE]
    assert np.array_equal(np.concatenate(windows), speech())
    ours = tokens_of(llm, processor.prompts(windows, [3, 9]))
    extractor = transformers.WhisperFeatureExtractor(feature_size=sizes["num_mel_bins"])
    for window, given in zip(windows, ours, strict=True):
        features = extractor(window, sampling_rate=RATE, return_tensors="pt", max_length=RATE)["input_features"]
        assert np.array_equal(processor.features(window), features[0].numpy())
        tokens = [3, 9]
        for _ in range(8):
            with torch.no_grad():
                logits = model(features, decoder_input_ids=torch.tensor([tokens])).logits[0, -1]
            tokens.append(int(logits.argmax()))
        assert given == tokens[2:]
    assert ours[0] != ours[1], "Each window is heard for itself."


def test_the_shipped_recording_is_the_one_that_its_facts_are_of() -> None:
    facts = json.loads(SPEECH.with_suffix(".json").read_text(encoding="utf-8"))
    content = SPEECH.read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts["sha256"]
    assert len(content) < 60_000
    assert len(speech()) == facts["num_samples"]
    assert {"text", "program", "command", "license"} <= set(facts)
    assert 0.2 < float(np.abs(speech()).max()) <= 1
    assert np.array_equal(load_audio(SPEECH, RATE), speech())


def test_example_prompts_go_with_speech_by_seed(llm: LLM) -> None:
    processor: Any = llm.processor
    first, again, other = (
        [one["multi_modal_data"]["audio"] for one in processor.example_prompts([[0]] * 4, seed)] for seed in (1, 1, 2)
    )
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({len(sound) for sound in (*first, *other)}) == 8
    assert all(processor.window_len // 10 <= len(sound) <= processor.window_len for sound in first)
    spoken = np.concatenate([speech(), speech()])
    for sound in first:
        likeness = np.correlate(spoken, sound) / np.linalg.norm(sound)
        norms = np.sqrt(np.convolve(spoken**2, np.ones(len(sound)), "valid"))
        assert float((likeness / norms).max()) > 0.9


def test_suppressed_tokens_outside_the_vocabulary_are_refused(llm: LLM) -> None:
    params = SamplingParams(suppress_tokens=(516,))
    with pytest.raises(SamplingParamsError, match="suppress_tokens holds token id 516"):
        llm.generate([heard([0], tone(0.2))], params)


def test_tokens_do_not_depend_on_preemption() -> None:
    prompts = [heard([0, *range(20, 20 + 3 * i)], tone(0.2 + 0.15 * i, 200.0 * (i + 1))) for i in range(5)]
    params = SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    alone = [tokens_of(LLM("tiny-whisper", device="cpu"), [prompt], params)[0] for prompt in prompts]
    assert len({tuple(tokens) for tokens in alone}) == len(alone), "Each hears its own recording."
    tight = LLM("tiny-whisper", device="cpu", page_size=4, num_pages=40)
    assert tokens_of(tight, prompts, params) == alone
    tight = LLM("tiny-whisper", device="cpu", page_size=2, num_pages=80)
    assert tokens_of(tight, prompts, params) == alone
    stats = tight.core.stats()
    assert stats.num_preemptions > 0
    assert stats.num_free_pages == 80


def test_encoder_states_may_outnumber_the_positions_of_a_text(tmp_path: Path) -> None:
    preset = json.loads(Path("fastkernels/engine/presets/tiny-whisper.json").read_text())
    path = tmp_path / "config.json"
    path.write_text(json.dumps(preset | {"max_target_positions": 12}))
    llm = LLM(path, device="cpu", page_size=4)
    assert [table.shape[1] for table in llm.core.cache.tables] == [3, 13]
    assert len(tokens_of(llm, [heard([0, 5], tone(0.8))])[0]) == 8


def test_one_recording_answers_the_same_however_it_comes(llm: LLM, tmp_path: Path) -> None:
    content = wav(tone(0.5))
    path = tmp_path / "speech.wav"
    path.write_bytes(content)
    import base64

    sources = [content, str(path), path, f"data:audio/wav;base64,{base64.b64encode(content).decode()}"]
    found = tokens_of(llm, [heard([0], source) for source in sources])
    assert all(tokens == found[0] for tokens in found)
    assert tokens_of(llm, [heard([0], wav(tone(0.5, 900.0)))])[0] != found[0]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"audio": tone(1.01)}, "lasts 1.0 s; the model hears 1 s at once"),
        ({"audio": b"no sound"}, "audio of 8 bytes cannot be read"),
        ({"audio": wav(tone(0.5))[:30]}, "cannot be read"),
        ({"audio": np.zeros(0, np.float32)}, "has no sample"),
        ({"audio": []}, "got 0"),
        ({"audio": [tone(0.1), tone(0.1)]}, "got 2"),
        ({}, "got 0"),
        ({"image": np.zeros((2, 2, 3), np.uint8)}, "takes audio, not image"),
    ],
)
def test_what_cannot_be_heard_is_refused(llm: LLM, data: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=says):
        llm.generate([{"prompt_token_ids": [0], "multi_modal_data": data}], GREEDY)


def test_a_text_alone_is_refused(llm: LLM) -> None:
    with pytest.raises(UsageError, match="one recording"):
        llm.generate(["hello"], GREEDY)


def test_windows_hold_the_whole_recording(llm: LLM) -> None:
    processor: Any = llm.processor
    sound = tone(2.3)
    windows = processor.windows(sound)
    assert [len(window) for window in windows] == [RATE, RATE, len(sound) - 2 * RATE]
    assert np.array_equal(np.concatenate(windows), sound)


def test_prompt_tokens_are_the_published_ones(marked_tokenizer: Tokenizer) -> None:
    config = WhisperConfig.tiny(vocab_size=300, decoder_start_token_id=256)
    processor = WhisperProcessor(config, marked_tokenizer)
    names = [marked_tokenizer.id_to_token(token) for token in processor.prompt_tokens("French", "translate")]
    assert names == ["<|startoftranscript|>", "<|fr|>", "<|translate|>", "<|notimestamps|>"]
    assert processor.prompt_tokens() == processor.prompt_tokens("en", "transcribe") == [256, 257, 260, 262]
    with_text = processor.prompt_tokens("fr", previous="abc")
    assert marked_tokenizer.decode(with_text, skip_special_tokens=False).startswith("<|startofprev|>")
    assert len(processor.prompt_tokens(previous="x" * 500)) == config.max_target_positions // 2 + 4
    with pytest.raises(UsageError, match="knows no language 'tlh'; it knows en, fr"):
        processor.prompt_tokens("tlh")
    with pytest.raises(UsageError, match="transcribe or translate"):
        processor.prompt_tokens("en", "sing")


def test_an_english_only_model_gets_the_prompt_it_was_trained_on(marked_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """OpenAI's sot_sequence of such is <|startoftranscript|> alone, though the vocabulary has the other marks."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"is_multilingual": False}))
    config = WhisperConfig.tiny(vocab_size=300, decoder_start_token_id=256)
    processor = WhisperProcessor(config, marked_tokenizer, tmp_path)
    for language in (None, "en", "English"):
        names = [marked_tokenizer.id_to_token(token) for token in processor.prompt_tokens(language)]
        assert names == ["<|startoftranscript|>", "<|notimestamps|>"]
    with pytest.raises(UsageError, match="English only, not 'fr'"):
        processor.prompt_tokens("fr")
    with pytest.raises(UsageError, match="does not translate"):
        processor.prompt_tokens(task="translate")


def test_a_transcription_is_no_longer_than_the_positions(llm: LLM) -> None:
    processor: Any = llm.processor
    assert processor.sampling_params(SamplingParams(max_tokens=4000), 3).max_tokens == 445


def test_generate_transcribes_a_long_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speech.wav"
    path.write_bytes(wav(tone(2.5)))
    options: dict[str, Any] = {"audio": [str(path)], "device": "cpu", "max_tokens": 5, "ignore_eos": True}
    generate(model="tiny-whisper", **options, as_json=True)
    [one] = json.loads(capsys.readouterr().out)["transcriptions"]
    assert one["duration"] == 2.5
    spans = [(start, end, len(tokens)) for start, end, _, tokens in one["segments"]]
    assert spans == [(0, 1, 5), (1, 2, 5), (2, 2.5, 5)]
    assert one["text"] == "".join(segment[2] for segment in one["segments"]).strip()
    generate(model="tiny-whisper", **options)
    assert "(2.5 s)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        ("tiny-llama", {}, "takes no audio"),
        ("tiny-whisper", {}, "no file, no URL and no base64"),
        ("tiny-whisper", {"prompt": ["a"]}, "transcribed by itself"),
        ("tiny-whisper", {"given": ["image=x.png"]}, "two kinds of models"),
    ],
)
def test_generate_says_what_is_wrong_with_audio(model: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=says):
        generate(model=model, audio=["x.wav"], device="cpu", **options)
