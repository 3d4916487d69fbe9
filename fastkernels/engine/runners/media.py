"""The embeddings of pictures, videos and sounds, from the step that encodes them to the one that needs their last."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.engine.multimodal import StepMedia

_Entry = tuple[bytes, str, dict[str, Tensor]]


class EncodedMedia:
    """By content. max_embeddings: of the items that are encoded in one go, unless a single one has more."""

    def __init__(self, max_embeddings: int) -> None:
        self._max_embeddings = max_embeddings
        self._held: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._held)

    def embeds(self, model: nn.Module, media: StepMedia, input_ids: Tensor) -> dict[str, Tensor]:
        """The model's further arguments for a step, whose items are encoded if they are new."""
        self._encode(model, media)
        given: dict[str, Tensor] = {}
        if media.parts:
            rows = [self._held[part.key][part.first : part.first + len(part.index)] for part in media.parts]
            index = torch.cat([torch.from_numpy(part.index) for part in media.parts])
            places = index.to(input_ids.device, non_blocking=True)
            given["inputs_embeds"] = model.embed_input_ids(input_ids, torch.cat(rows), places)  # type: ignore[operator]
        return given

    def free(self, keys: Iterable[bytes]) -> None:
        """After the step that reads them last."""
        for key in keys:
            self._held.pop(key, None)

    def _encode(self, model: nn.Module, media: StepMedia) -> None:
        entries = [(k, m, {name: torch.from_numpy(a) for name, a in tensors.items()}) for k, m, tensors in media.encode]
        for modality, group in groupby(entries, key=lambda entry: entry[1]):
            for batch in self._batches(group):
                vectors = model.embed_multimodal(modality, [t for _, _, t in batch])  # type: ignore[operator]
                self._held |= {key: one for (key, _, _), one in zip(batch, vectors, strict=True)}

    def _batches(self, entries: Iterable[_Entry]) -> Iterable[list[_Entry]]:
        batch: list[_Entry] = []
        size = 0
        for entry in entries:
            more = _size(entry[2])
            if batch and size + more > self._max_embeddings * _PATCHES_PER_EMBEDDING:
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += more
        if batch:
            yield batch


_PATCHES_PER_EMBEDDING = 4
"""Rows of an encoder's input that come to one embedding, about."""


def _size(tensors: dict[str, Any]) -> int:
    return max(len(t) for t in tensors.values())
