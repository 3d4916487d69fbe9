"""Mamba-2 by transformers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import silu

from fastkernels.oracles.language import FIRST, LanguageOracle
from fastkernels.oracles.oracle import Answer, Level, Load, Request, greedy_answer, prompts, randomize

_SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_heads": 4,
    "head_dim": 16,
    "state_size": 16,
    "n_groups": 2,
    "chunk_size": 64,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}


class Mamba2Oracle(LanguageOracle):
    preset = "mamba-codestral-7b"
    # Without kernels the library holds every row's state apart: of 8 prompts 64 GiB and more in one tensor.
    loads = (Load(FIRST, (2,), is_whole=True), Load("64 tokens", (1, 2), is_whole=True))
    levels = (
        Level("backbone.layers.{i}.mixer", "backbone.layers.{i}.mixer"),
        Level("backbone.layers.{i}", "backbone.layers.{i}", our_output=lambda output: output[0] + output[1]),
        Level("backbone", "backbone"),
    )

    def tiny(self) -> Mapping[str, dict[str, Any]]:
        return {
            "groups": _SIZES,
            "awkward": {
                **_SIZES,
                "vocab_size": 301,
                "hidden_size": 33,
                "num_heads": 6,
                "head_dim": 11,
                "n_groups": 3,
                "state_size": 7,
                "conv_kernel": 3,
                "chunk_size": 16,
                "use_bias": True,
                "use_conv_bias": False,
                "time_step_limit": (0.0, 0.05),
            },
        }

    def build(self, sizes: Mapping[str, Any], seed: int) -> nn.Module:
        model = randomize(transformers.Mamba2ForCausalLM(transformers.Mamba2Config(**sizes)), seed)
        spread_decays(model, seed)
        for layer in model.backbone.layers:  # type: ignore[union-attr]
            if not hasattr(layer.mixer.norm, "group_size"):
                layer.mixer.norm = GroupedNorm(layer.mixer.norm, sizes["n_groups"])
        return model

    def save(self, model: nn.Module, folder: Path) -> None:
        model.save_pretrained(folder)  # type: ignore[operator]

    def requests(self, sizes: Mapping[str, Any]) -> Sequence[Request]:
        """One token, primes, and lengths on either side of a chunk's end."""
        lengths = (1, 13, 15, 17, 63, 64, 65, 131)
        return [{"prompt_token_ids": ids, "max_tokens": 6} for ids in prompts(lengths, sizes["vocab_size"])]

    def answer(self, model: nn.Module, request: Request) -> Answer:
        return greedy_answer(model, request)


class GroupedNorm(nn.Module):
    """The gated norm over each group of a row, as mamba_ssm and transformers 5.23 have it; 5.17 takes whole rows."""

    def __init__(self, norm: Any, num_groups: int) -> None:
        super().__init__()
        self.weight, self.variance_epsilon, self.num_groups = norm.weight, norm.variance_epsilon, num_groups

    def forward(self, hidden_states: Tensor, gate: Tensor) -> Tensor:
        gated = (hidden_states.float() * silu(gate.float())).unflatten(-1, (self.num_groups, -1))
        normed = gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        return self.weight * normed.flatten(-2).to(hidden_states.dtype)


def spread_decays(model: nn.Module, seed: int) -> None:
    """As they are initialised: exp(A_log) in [1, 16], softplus(dt_bias) in [0.001, 0.1], so that a state lasts."""
    generator = torch.Generator().manual_seed(seed)
    for name, param in model.named_parameters():
        if not name.endswith(("A_log", "dt_bias")):
            continue
        share = torch.rand(param.shape, generator=generator, device="cpu").to(param.device)
        if name.endswith("A_log"):
            param.data.copy_(torch.log(1 + 15 * share))
        else:
            step = torch.exp(share * 4.6 - 6.9)
            param.data.copy_(step + torch.log(-torch.expm1(-step)))


ORACLE = Mamba2Oracle()
