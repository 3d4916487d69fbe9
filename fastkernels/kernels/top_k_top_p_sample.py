"""Sample token ids from logits with temperature, top-k and top-p, one seed a row."""

import torch
from torch import Tensor


def top_k_top_p_sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
    is_greedy = temperature == 0
    scaled = logits.float() / torch.where(is_greedy, 1.0, temperature)[:, None]
    order = scaled.sort(-1, descending=True)
    ranks = torch.arange(scaled.shape[1], device=logits.device)[None]
    values = order.values.masked_fill((top_k[:, None] > 0) & (ranks >= top_k[:, None]), float("-inf"))
    probs = values.softmax(-1)
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p[:, None], 0.0)
    ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    for i, seed in enumerate(seeds.tolist()):
        generator = torch.Generator(logits.device).manual_seed(seed)
        ids[i] = order.indices[i, torch.multinomial(probs[i], 1, generator=generator)].squeeze()
    return torch.where(is_greedy, logits.argmax(-1), ids)
