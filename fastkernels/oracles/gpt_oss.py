"""GPT-OSS by transformers, with experts as it saves them and in the published MXFP4."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from fastkernels.oracles.language import LanguageOracle
from fastkernels.oracles.oracle import Answer, Level, Request, greedy_answer, prompts, randomize

_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 8,
    "num_experts_per_tok": 3,
    "sliding_window": 9,
    "max_position_embeddings": 512,
    "eos_token_id": None,
    "bos_token_id": None,
    "attn_implementation": "eager",
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 8.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 64,
        "truncate": False,
    },
}
_MARK = "is_published_in_mxfp4"


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Blocks and scales of the last axis: the largest of 32 values gets the largest exponent, the rest the nearest."""
    values = weight.unflatten(-1, (-1, 32)).float()
    exponents = torch.frexp(values.abs().amax(-1).clamp(min=2.0**-100)).exponent - 3  # log2 errs at powers of 2
    table = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], device=weight.device)
    scaled = torch.ldexp(values, -exponents[..., None])
    codes = (scaled.abs()[..., None] - table).abs().argmin(-1) + 8 * (scaled < 0)
    blocks = codes[..., 0::2] + 16 * codes[..., 1::2]
    return blocks.to(torch.uint8), (exponents + 127).to(torch.uint8)


class GptOssOracle(LanguageOracle):
    preset = "gpt-oss-120b"
    most_layers = 6
    levels = (
        Level("model.layers.{i}.self_attn", "model.layers.{i}.self_attn"),
        Level(
            "model.layers.{i}.mlp.topk_softmax",
            "model.layers.{i}.mlp.router",
            their_output=lambda output: output[1],
        ),
        Level("model.layers.{i}.mlp", "model.layers.{i}.mlp"),
        Level("model.layers.{i}", "model.layers.{i}", our_output=lambda output: output[0] + output[1]),
        Level("model", "model"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        """The published alternation of layers, in both forms of experts, and one without windows and with few heads."""
        return {
            "bf16_layout": _SIZES,
            "mxfp4": {**_SIZES, _MARK: True, "hidden_size": 96, "num_local_experts": 5},
            "full": {
                **_SIZES,
                "layer_types": ["full_attention", "full_attention"],
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "num_experts_per_tok": 1,
                "swiglu_limit": 0.75,
                "tie_word_embeddings": True,
                "rope_parameters": {**_SIZES["rope_parameters"], "truncate": True, "factor": 3.0},
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        """In MXFP4, with weights as transformers unpacks what `save` writes."""
        known = {name: value for name, value in sizes.items() if name not in (_MARK, "attn_implementation")}
        config = transformers.GptOssConfig(**known)
        config._attn_implementation = sizes["attn_implementation"]
        model = randomize(transformers.GptOssForCausalLM(config), seed)
        for layer in model.model.layers:  # type: ignore[union-attr]
            layer.self_attn.sinks.data.sub_(1.0).mul_(10.0)  # about 0, as large as scores
            # Gates as large as their limit; what experts add stays below what is there, or each layer doubles errors.
            for name, scale in (("gate_up_proj", 2.0), ("down_proj", 0.25)):
                weight = getattr(layer.mlp.experts, name)
                weight.data.copy_(torch.randn_like(weight) * weight.shape[1] ** -0.5 * scale)
                for expert in weight.data if sizes.get(_MARK) else ():  # one at a time: rounding takes room
                    packed = quantize(expert.transpose(0, 1)[None])
                    expert.copy_(convert_moe_packed_tensors(*packed, dtype=weight.dtype)[0])
        model.is_published_in_mxfp4 = bool(sizes.get(_MARK))  # type: ignore[assignment]
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]
        if not model.is_published_in_mxfp4:
            return
        tensors = dict(_packed(load_file(folder / "model.safetensors").items()))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        self.save_config(model, folder)

    def save_config(self, model: nn.Module, folder: Path) -> Path:
        path = super().save_config(model, folder)
        if model.is_published_in_mxfp4:
            config = json.loads(path.read_text(encoding="utf-8"))
            path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}}), encoding="utf-8")
        return path

    def tensors(self, model: nn.Module) -> Iterable[tuple[str, Tensor]]:
        tensors = model.state_dict().items()
        return _packed(tensors) if model.is_published_in_mxfp4 else tensors

    def published(self, num_layers: int | None) -> dict[str, Any]:
        """In MXFP4, which transformers computes in bfloat16 here. Layers are windowed and full in turns."""
        sizes = {**super().published(num_layers), _MARK: True, "attn_implementation": "eager"}
        return {**sizes, "layer_types": sizes["layer_types"][: sizes["num_hidden_layers"]]}

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """One token among them, and prompts that outgrow the window."""
        lengths = (1, 7, 33, 100)
        return [{"prompt_token_ids": ids, "max_tokens": 8} for ids in prompts(lengths, sizes["vocab_size"])]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        return greedy_answer(model, request)


def _packed(tensors: Iterable[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Experts in the published form, an expert rounded at a time."""
    for name, tensor in tensors:
        if name.endswith(("gate_up_proj", "down_proj")):
            parts = [quantize(expert.transpose(0, 1)[None]) for expert in tensor]
            for kind, some in zip(("blocks", "scales"), zip(*parts, strict=True), strict=True):
                yield f"{name}_{kind}", torch.cat(some)
        else:
            yield name, tensor


ORACLE = GptOssOracle()
