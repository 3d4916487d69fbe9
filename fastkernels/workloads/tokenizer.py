"""The byte-level tokenizer of the tiny models, trained in code on the shipped prompts: no file is fetched."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from fastkernels.workloads.prompts import prompts

BEGIN_TOKEN = "<|begin_of_text|>"
END_TOKEN = "<|end_of_text|>"
SPECIAL_TOKENS = (BEGIN_TOKEN, END_TOKEN)
VOCAB_SIZE = 512
"""2 specials, 256 bytes and 254 merges."""


@cache
def byte_tokenizer() -> Tokenizer:
    """Every text encodes and decodes to itself: any byte is a token. The same merges on every machine."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(prompts(), trainer)
    return tokenizer
