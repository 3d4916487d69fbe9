"""CLIP's tokenizer: the checkpoint's, or a small one of single bytes for models with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

from fastkernels.errors import CheckpointError

_START, _END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(checkpoint: Path | None, folder: str, max_length: int, **special: str) -> CLIPTokenizer:
    """The tokenizer in a folder of the checkpoint; without a checkpoint one of 514 tokens: bytes, and bytes that end a
    word.

    max_length, special: of the one that is made here, such as pad_token.
    Errors: CheckpointError when the checkpoint has no such folder, or one that cannot be read.
    """
    if checkpoint is None:
        return _of_bytes(max_length, special)
    path = checkpoint / folder
    if not path.is_dir():
        raise CheckpointError(f"{checkpoint} has no folder {folder}: its text encoder needs a tokenizer.")
    try:
        return CLIPTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} is not a CLIP tokenizer: {error}") from error


def _of_bytes(max_length: int, special: dict[str, str]) -> CLIPTokenizer:
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), _START, _END]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer: Any = CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_length, **special)
    return tokenizer
