"""Tiny language models of three kinds, built by transformers and trained on the standard library's text."""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastkernels.errors import EnvironmentProblem, UnknownNameError, UsageError
from fastkernels.training.corpus import SourceText
from fastkernels.training.loop import Plan
from fastkernels.workloads import byte_tokenizer
from fastkernels.workloads.tokenizer import END_TOKEN, VOCAB_SIZE

_TOKENS: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1, "tie_word_embeddings": True}


@dataclass(frozen=True)
class LanguageRecipe:
    """What makes one model. model_class: in transformers, whose configuration has `sizes`.

    batch_size, sequence_len: of one step. trained_only: fields of the configuration that hold while it is trained.
    """

    name: str
    model_class: str
    config_class: str
    sizes: Mapping[str, Any]
    plan: Plan
    batch_size: int = 4
    sequence_len: int = 256
    trained_only: Mapping[str, Any] = field(default_factory=dict)


_LLAMA = LanguageRecipe(
    "trained-llama",
    "LlamaForCausalLM",
    "LlamaConfig",
    {
        **_TOKENS,
        "hidden_size": 128,
        "intermediate_size": 352,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.05,
    },
    Plan(steps=2000, matrix_learning_rate=0.02, weight_decay=0.01),
)
_MIXTRAL = LanguageRecipe(
    "trained-mixtral",
    "MixtralForCausalLM",
    "MixtralConfig",
    {
        **_TOKENS,
        "hidden_size": 128,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
        "max_position_embeddings": 1024,
        "initializer_range": 0.05,
        "router_aux_loss_coef": 0.02,
    },
    Plan(steps=2000, matrix_learning_rate=0.02, weight_decay=0.01),
    trained_only={"output_router_logits": True},
)
_MAMBA2 = LanguageRecipe(
    "trained-mamba2",
    "Mamba2ForCausalLM",
    "Mamba2Config",
    {
        **_TOKENS,
        "pad_token_id": 0,
        "hidden_size": 128,
        "num_hidden_layers": 6,
        "num_heads": 8,
        "head_dim": 32,
        "state_size": 16,
        "n_groups": 1,
        "chunk_size": 32,
        "initializer_range": 0.05,
    },
    Plan(steps=2000, matrix_learning_rate=0.02, weight_decay=0.01),
)
RECIPES = {recipe.name: recipe for recipe in (_LLAMA, _MIXTRAL, _MAMBA2)}


def find_recipe(name: str) -> LanguageRecipe:
    """Errors: UnknownNameError suggests the nearest."""
    if name not in RECIPES:
        raise UnknownNameError("model to train", name, RECIPES)
    return RECIPES[name]


def transformers() -> Any:
    """The library of record, without what it says of kernels that it lacks.

    Errors: EnvironmentProblem when it is not installed.
    """
    try:
        library = importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise EnvironmentProblem("Training needs transformers: pip install 'fastkernels[train]'.") from error
    logging.getLogger("transformers").setLevel(logging.ERROR)
    return library


def build(recipe: LanguageRecipe, seed: int) -> nn.Module:
    """The model with weights by seed, as transformers initialises them."""
    library = transformers()
    torch.manual_seed(seed)
    config = getattr(library, recipe.config_class)(**recipe.sizes, **recipe.trained_only)
    model: nn.Module = getattr(library, recipe.model_class)(config)
    return model


class TextWindows:
    """All texts behind one another, an end token after each, and token sequences from any place in them."""

    def __init__(self, sources: Sequence[SourceText]) -> None:
        self.text = "".join(source.text + END_TOKEN for source in sources)
        self._tokenizer = byte_tokenizer()
        self._longest = max(map(len, self._tokenizer.get_vocab()))

    def num_places(self, length: int) -> int:
        """Errors: UsageError when the text is shorter than a window."""
        num = len(self.text) - length * self._longest
        if num < 1:
            raise UsageError(f"The text has {len(self.text)} characters; a window of {length} tokens may take more.")
        return num

    def tokens(self, places: Iterable[int], length: int) -> Tensor:
        """[len(places), length] int64. A token takes at most so many characters, so that none is missing."""
        pieces = [self.text[place : place + length * self._longest] for place in places]
        return torch.tensor([one.ids[:length] for one in self._tokenizer.encode_batch(pieces)])


class LanguageTask:
    """Windows of text, drawn by (seed, step). autocasts: matrices multiplied in bf16, sums kept in fp32."""

    def __init__(
        self, recipe: LanguageRecipe, windows: TextWindows, seed: int, device: torch.device, autocasts: bool = True
    ) -> None:
        self.recipe, self.windows, self.seed, self.device = recipe, windows, seed, device
        self.autocasts = autocasts
        self.model = build(recipe, seed).to(device)

    def batch(self, step: int) -> Tensor:
        """[batch_size, sequence_len] token ids."""
        num_places = self.windows.num_places(self.recipe.sequence_len)
        places = np.random.default_rng((self.seed, step)).integers(0, num_places, self.recipe.batch_size)
        return self.windows.tokens(places.tolist(), self.recipe.sequence_len)

    def loss(self, step: int) -> Tensor:
        ids = self.batch(step).to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocasts):
            found: Tensor = self.model(input_ids=ids, labels=ids, use_cache=False).loss
        return found


def unigram_bits_per_byte(texts: Sequence[str]) -> float:
    """The entropy of the texts' own token frequencies: no model that knows frequencies alone can do better."""
    encoded = byte_tokenizer().encode_batch(list(texts))
    counts = np.bincount([token for one in encoded for token in one.ids])
    shares = counts[counts > 0] / counts.sum()
    num_bytes = sum(len(text.encode()) for text in texts)
    return float(-(shares * np.log2(shares)).sum() * counts.sum() / num_bytes)


@torch.no_grad()
def held_out_figures(task: LanguageTask, sources: Sequence[SourceText], num_sequences: int) -> dict[str, float]:
    """By transformers: windows of equal distance, each of sequence_len tokens, of which the first is given."""
    windows, length = TextWindows(sources), task.recipe.sequence_len
    places = np.linspace(0, windows.num_places(length) - 1, num_sequences).astype(int).tolist()
    tokenizer, total, num_bytes, texts = byte_tokenizer(), 0.0, 0, []
    for place in places:
        ids = windows.tokens([place], length)
        logits = task.model(input_ids=ids.to(task.device), use_cache=False).logits[0, :-1].float().cpu()
        total += float(nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
        texts.append(tokenizer.decode(ids[0, 1:].tolist(), skip_special_tokens=False))
        num_bytes += len(texts[-1].encode())
    nats = total / (num_sequences * (length - 1))
    return {
        "nats_per_token": nats,
        "perplexity": math.exp(nats),
        "bits_per_byte": total / math.log(2) / num_bytes,
        "unigram_bits_per_byte": unigram_bits_per_byte(texts),
        "num_sequences": num_sequences,
        "num_bytes": num_bytes,
    }
