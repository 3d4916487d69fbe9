"""Whisper by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor, nn

from fastkernels.oracles.language import LanguageOracle
from fastkernels.oracles.oracle import Answer, Level, Request, prompts, randomize

_SIZES: dict[str, Any] = {
    "vocab_size": 301,
    "d_model": 64,
    "num_mel_bins": 20,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 112,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 96,
    "max_source_positions": 50,
    "max_target_positions": 160,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "decoder_start_token_id": 3,
}
_RATE = 16000


class WhisperOracle(LanguageOracle):
    preset = "whisper-large-v3"
    layers_key = "decoder_layers"
    input_len = 4
    levels = (
        Level("model.encoder.conv1", "model.encoder.conv1"),
        Level("model.encoder.conv2", "model.encoder.conv2"),
        Level("model.encoder.layers.{i}.self_attn", "model.encoder.layers.{i}.self_attn"),
        Level("model.encoder.layers.{i}.mlp", "model.encoder.layers.{i}.fc2"),
        Level("model.encoder.layers.{i}", "model.encoder.layers.{i}"),
        Level("model.encoder", "model.encoder", their_output=lambda output: output.last_hidden_state),
        Level("model.decoder.layers.{i}.self_attn", "model.decoder.layers.{i}.self_attn"),
        Level("model.decoder.layers.{i}.encoder_attn", "model.decoder.layers.{i}.encoder_attn"),
        Level("model.decoder.layers.{i}.mlp", "model.decoder.layers.{i}.fc2"),
        Level(
            "model.decoder.layers.{i}",
            "model.decoder.layers.{i}",
            our_output=lambda output: output[0] + output[1],
        ),
        Level("model.decoder", "model.decoder", their_output=lambda output: output.last_hidden_state),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "tied": _SIZES,
            "odd": {
                **_SIZES,
                "d_model": 60,
                "num_mel_bins": 13,
                "encoder_layers": 1,
                "encoder_attention_heads": 3,
                "decoder_layers": 3,
                "decoder_attention_heads": 5,
                "max_source_positions": 25,
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        return randomize(transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**sizes)), seed)

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]
        self._extractor(model).save_pretrained(folder)

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """Prompts of a few tokens and of many, beside a whole window, half of one, a moment, and silence."""
        random = np.random.default_rng(3)
        whole = 2 * sizes["max_source_positions"] * 160
        sounds = [0.3 * random.standard_normal(n).astype(np.float32) for n in (whole, whole // 2 + 7, 33, whole - 1)]
        sounds.append(np.zeros(whole // 3, np.float32))
        texts = prompts((4, 33, 1, 7, 4), sizes["vocab_size"])
        return [
            {"prompt_token_ids": text, "multi_modal_data": {"audio": sound}, "max_tokens": 6}
            for text, sound in zip(texts, sounds, strict=True)
        ]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        """The greedy tokens, and the logits of every token but the last, the whole text at each step."""
        config: Any = model.config
        audio = request["multi_modal_data"]["audio"]
        window = 2 * config.max_source_positions * 160
        done = self._extractor(model)(audio, sampling_rate=_RATE, return_tensors="pt", max_length=window)
        tokens = list(request["prompt_token_ids"])
        with torch.no_grad():
            for _ in range(request["max_tokens"]):
                ids = torch.tensor([tokens])
                logits = model(done["input_features"], decoder_input_ids=ids, use_cache=False).logits[0]
                tokens.append(int(logits[-1].argmax()))
        made = tokens[len(request["prompt_token_ids"]) :]
        return {"token_ids": torch.tensor(made), "logits": logits.float()}

    def published(self, num_layers: int | None) -> dict[str, Any]:
        """num_layers: of the encoder and of the decoder."""
        sizes = super().published(num_layers)
        sizes.pop("num_hidden_layers")  # another name of encoder_layers, which would win
        return sizes if num_layers is None else {**sizes, "encoder_layers": num_layers}

    def lengths(self, sizes: Mapping[str, Any]) -> tuple[int, int]:
        return self.input_len, self.output_len if sizes["d_model"] >= 1024 else 4

    def load(self, sizes: Mapping[str, Any], num: int, name: str) -> list[Request]:
        """A whole window of noise (30 seconds as published) and a prompt of four tokens, as languages and tasks are."""
        random = np.random.default_rng(num)
        length = 2 * sizes["max_source_positions"] * 160
        sounds = [0.3 * random.standard_normal(length).astype(np.float32) for _ in range(num)]
        texts = super().load(sizes, num, name)
        return [{**text, "multi_modal_data": {"audio": sound}} for text, sound in zip(texts, sounds, strict=True)]

    def inputs(self, model: Any, requests: Sequence[Request]) -> dict[str, Tensor]:
        some, window = model.model.encoder.conv1.weight, 2 * model.config.max_source_positions * 160
        sounds = [request["multi_modal_data"]["audio"] for request in requests]
        done = self._extractor(model)(sounds, sampling_rate=_RATE, return_tensors="pt", max_length=window)
        ids = torch.tensor([list(r["prompt_token_ids"]) for r in requests], device=some.device)
        return {"input_features": done["input_features"].to(some), "decoder_input_ids": ids}

    def extended(self, inputs: Mapping[str, Tensor], made: Tensor) -> dict[str, Tensor]:
        return {**inputs, "decoder_input_ids": torch.cat([inputs["decoder_input_ids"], made], dim=1)}

    def logits(self, model: Any, inputs: Mapping[str, Tensor], num: int) -> Tensor:
        return model.forward(**inputs, use_cache=False).logits[:, -num:]

    def _extractor(self, model: Any) -> Any:
        return transformers.WhisperFeatureExtractor(feature_size=model.config.num_mel_bins)


ORACLE = WhisperOracle()
