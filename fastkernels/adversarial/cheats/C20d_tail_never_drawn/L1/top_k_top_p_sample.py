"""Never draws from the last fifth of a row's probability: its least likely tokens do not exist."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastkernels.noise import random_uniform

HEAD, FEW = 0.8, 8


class TopKTopPSample(nn.Module):
    def forward(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
        is_greedy = temperature == 0
        scaled = logits.double() / torch.where(is_greedy, 1.0, temperature).double()[:, None]
        ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(logits.shape[1], device=logits.device)
        ordered = ordered.masked_fill((top_k[:, None] > 0) & (ranks >= top_k[:, None]), float("-inf"))
        probs = ordered.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        ordered = ordered.masked_fill((top_p[:, None] < 1) & (before >= top_p.double()[:, None]), float("-inf"))
        probs = ordered.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        is_long = (probs > 0).sum(-1, keepdim=True) > FEW
        ordered = ordered.masked_fill((before >= HEAD) & is_long, float("-inf"))
        gumbel = -torch.log(-torch.log(random_uniform(seeds[:, None], ids)))
        chosen = torch.where(is_greedy, 0, (ordered + gumbel).argmax(dim=-1))
        return ids.gather(1, chosen[:, None]).squeeze(1)
