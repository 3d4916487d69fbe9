"""Draws by inverting the distribution with a uniform number, not by Gumbel noise."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TopKTopPSample(nn.Module):
    def forward(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
        is_greedy = temperature == 0
        scaled = logits.double() / torch.where(is_greedy, 1.0, temperature).double()[:, None]
        ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(logits.shape[1], device=logits.device)
        ordered = ordered.masked_fill((top_k[:, None] > 0) & (ranks >= top_k[:, None]), float("-inf"))
        probs = ordered.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        probs = probs.masked_fill((top_p[:, None] < 1) & (before >= top_p.double()[:, None]), 0.0)
        edges = probs.cumsum(-1)
        # The first value of a generator that is seeded anew for each row.
        generators = [torch.Generator().manual_seed(seed * 2654435761 % (1 << 62)) for seed in seeds.tolist()]
        draws = [torch.rand((), generator=generator) for generator in generators]
        uniform = torch.stack(draws).double().to(logits.device) * edges[:, -1]
        last = (probs > 0).sum(-1) - 1
        chosen = torch.where(is_greedy, 0, torch.minimum((edges <= uniform[:, None]).sum(-1), last))
        return ids.gather(1, chosen[:, None]).squeeze(1)
