"""Tiny models of every kind that the engine carries: what their layers declare is all that tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, CacheSpec
from fastkernels.context import ForwardContext, forward_context
from fastkernels.engine.executor import LoadedModel
from fastkernels.workloads import byte_tokenizer

SIZE, VOCAB, POSITIONS = 16, 64, 128


@dataclass(frozen=True)
class ToyConfig:
    vocab_size: int = VOCAB
    max_position_embeddings: int = POSITIONS
    eos_token_ids: tuple[int, ...] = (1,)


class PagedAttention(nn.Module):
    """One head over the pages of its kind: all tokens before, a window of them, or the encoder's states."""

    def __init__(self, kind: CacheKind, window: int | None = None) -> None:
        super().__init__()
        self.cache_spec = CacheSpec(kind, num_kv_heads=1, head_size=SIZE, window=window)
        self.kv_cache: Tensor | None = None
        self.q, self.k, self.v = (nn.Linear(SIZE, SIZE, bias=False) for _ in range(3))

    def forward(self, hidden: Tensor, encoder_states: Tensor | None = None) -> Tensor:
        context = forward_context()
        assert self.kv_cache is not None
        keys, values = self.kv_cache.unbind(0)
        table, slots, lens = self._places(context)
        stored = hidden if self.cache_spec.kind is not CacheKind.CROSS else encoder_states
        if stored is not None:
            assert slots is not None
            place = (slots // keys.shape[1], slots % keys.shape[1])
            keys[place], values[place] = self.k(stored)[:, None], self.v(stored)[:, None]
        out = torch.empty_like(hidden)
        for i, (start, end) in enumerate(pairwise(context.query_start_loc.tolist())):
            out[start:end] = self._attend(hidden[start:end], keys, values, table[i], int(lens[i]))
        return out

    def _places(self, context: ForwardContext) -> tuple[Tensor, Tensor | None, Tensor]:
        kind = self.cache_spec.kind
        if kind is CacheKind.CROSS:
            assert context.cross_block_table is not None
            assert context.cross_seq_lens is not None
            return context.cross_block_table, context.cross_slot_mapping, context.cross_seq_lens
        if kind is CacheKind.WINDOW:
            assert context.window_block_table is not None
            return context.window_block_table, context.window_slot_mapping, context.seq_lens
        return context.block_table, context.slot_mapping, context.seq_lens

    def _attend(self, hidden: Tensor, keys: Tensor, values: Tensor, table: Tensor, seq_len: int) -> Tensor:
        position = torch.arange(seq_len)
        last = seq_len - len(hidden) + torch.arange(len(hidden))
        visible = torch.ones(len(hidden), seq_len, dtype=torch.bool)
        if self.cache_spec.kind is not CacheKind.CROSS:
            visible = position <= last[:, None]
        if self.cache_spec.window is not None:
            visible &= position > last[:, None] - self.cache_spec.window
        seen = visible.any(0)
        pages = table[position // keys.shape[1]].long()
        assert bool((pages[seen] >= 0).all()), "A page that is still seen was given up."
        k, v = (cache[pages.clamp(min=0), position % keys.shape[1], 0] for cache in (keys, values))
        scores = (self.q(hidden) @ k.T).masked_fill(~visible, float("-inf"))
        return torch.where(visible, scores.softmax(-1), 0) @ torch.where(seen[:, None], v, 0)


class LatentAttention(nn.Module):
    """One head whose keys and values are made of one latent a token, which is all that the pages hold."""

    def __init__(self) -> None:
        super().__init__()
        self.cache_spec = CacheSpec(CacheKind.MLA, head_size=SIZE)
        self.kv_cache: Tensor | None = None
        self.q, self.down, self.k, self.v = (nn.Linear(SIZE, SIZE, bias=False) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        context, latents = forward_context(), self.kv_cache
        assert latents is not None
        page_size = latents.shape[1]
        latents[context.slot_mapping // page_size, context.slot_mapping % page_size] = self.down(hidden)
        out = torch.empty_like(hidden)
        for i, (start, end) in enumerate(pairwise(context.query_start_loc.tolist())):
            position = torch.arange(int(context.seq_lens[i]))
            held = latents[context.block_table[i][position // page_size].long(), position % page_size]
            last = len(position) - (end - start) + torch.arange(end - start)
            scores = self.q(hidden[start:end]) @ self.k(held).T
            out[start:end] = scores.masked_fill(position > last[:, None], float("-inf")).softmax(-1) @ self.v(held)
        return out


class RecurrentLayer(nn.Module):
    """state = decay * state + x, one slot a request."""

    def __init__(self) -> None:
        super().__init__()
        self.cache_spec = CacheSpec(CacheKind.STATE, state=(((SIZE,), torch.float32),))
        self.kv_cache: tuple[Tensor, ...] | None = None
        self.x = nn.Linear(SIZE, SIZE, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        context = forward_context()
        assert self.kv_cache is not None
        assert context.state_slots is not None
        assert context.has_initial_state is not None
        (states,) = self.kv_cache
        out = torch.empty_like(hidden)
        for i, (start, end) in enumerate(pairwise(context.query_start_loc.tolist())):
            slot = int(context.state_slots[i])
            state = states[slot] if bool(context.has_initial_state[i]) else torch.zeros(SIZE)
            for t in range(start, end):
                state = 0.9 * state + self.x(hidden[t])
                out[t] = state.tanh()
            states[slot] = state
        return out


class ToyDecoder(nn.Module):
    """Embeddings of tokens and positions, the given layers, logits."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCAB, SIZE), nn.Embedding(POSITIONS, SIZE)
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(SIZE, VOCAB, bias=False)

    def forward(self, ids: Tensor, positions: Tensor, encoder_hidden_states: Tensor | None = None) -> Tensor:
        hidden = self.tokens(ids) + self.positions(positions)
        for layer in self.layers:
            is_cross = layer.cache_spec.kind is CacheKind.CROSS
            hidden = hidden + (layer(hidden, encoder_hidden_states) if is_cross else layer(hidden))
        return hidden

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden)


class ToyEncoderDecoder(ToyDecoder):
    """With an encoder of frames, whose states the cross layers keep."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__(layers)
        self.encoder = nn.Linear(3, SIZE)

    def encoder_len(self, frames: Tensor) -> int:
        return len(frames)

    def encode(self, inputs: Sequence[Tensor]) -> Tensor:
        return self.encoder(torch.cat(list(inputs))).tanh()


class ToyEncoder(nn.Module):
    """Bidirectional within each sequence and without a cache: the whole prompt in one step."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, SIZE)
        self.mix = nn.Linear(SIZE, SIZE)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        hidden = self.tokens(ids)
        out = torch.empty_like(hidden)
        for start, end in pairwise(forward_context().query_start_loc.tolist()):
            out[start:end] = self.mix(hidden[start:end] + hidden[start:end].mean(0))
        return out

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return hidden @ self.tokens.weight.T


def loaded(model: nn.Module, seed: int = 0) -> LoadedModel:
    """The model with weights by seed, as the engine takes it."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.6, generator=generator)
    return LoadedModel("toy", model.eval(), ToyConfig(), torch.float32, byte_tokenizer())
