"""Draws a token per row from the top-k, then top-p part of the distribution."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.kernels.top_k_top_p_sample import top_k_top_p_sample
from fastkernels.noise import random_uniform
from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, Role, TensorSpec


class TopKTopPSample(Op):
    """ids[i] drawn from softmax(logits[i] / temperature[i]), cut to its top_k[i] tokens, then to its nucleus top_p[i].

    The nucleus of p is the shortest head of the sorted, renormalised tokens whose probability reaches p: the token
    that crosses p is kept. Equal logits are ordered by id. Temperature 0 is the argmax. The draw is the argmax of
    logits / temperature - log(-log u) (Gumbel), u from `fastkernels.noise` by (seeds[i], token id) alone, so that
    the same seed gives the same token on every device and in any batch.

    Shapes:  logits: [num_rows, vocab_size]; temperature, top_k, top_p, seeds, ids: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; the definition is in fp64 throughout; temperature, top_p fp32,
             top_p in (0, 1], 1 is off; top_k int32 or int64, 0 is off; seeds and ids int64.
    Returns: ids. No argument is written to.
    Errors:  ValueError when logits is not two-dimensional or another argument has not one value a row.
    Source:  Holtzman et al. 2019 (https://arxiv.org/abs/1904.09751); Maddison et al. 2014
             (https://arxiv.org/abs/1411.0030); arguments as vLLM's TopKTopPSampler.
    """

    spec = OpSpec(
        inputs={
            "logits": TensorSpec(("num_rows", "vocab_size"), role=Role.LOGITS).strided(),
            "temperature": TensorSpec(("num_rows",), dtype="float32", role=Role.TEMPERATURE),
            "top_k": TensorSpec(("num_rows",), dtype="int32", role=Role.TOP_K, bound="vocab_size"),
            "top_p": TensorSpec(("num_rows",), dtype="float32", role=Role.TOP_P),
            "seeds": TensorSpec(("num_rows",), dtype="int64", role=Role.SEED),
        },
        outputs={
            "ids": TensorSpec(
                ("num_rows",),
                dtype="int64",
                role=Role.TOKEN_ID,
                bound="vocab_size",
                compare=Compare.SAMPLE,
                of="logits",
            )
        },
        example_axes={"vocab_size": (512, 1021)},
    )

    def forward(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
        if logits.dim() != 2 or not logits.shape[1]:
            raise ValueError(f"TopKTopPSample takes [num_rows, vocab_size] logits, got shape {tuple(logits.shape)}.")
        for name, x in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p), ("seeds", seeds)):
            if x.shape != logits.shape[:1]:
                raise ValueError(f"TopKTopPSample: {name} must be [{logits.shape[0]}], got {tuple(x.shape)}.")
        if uses_reference(logits):
            return self.reference(logits, temperature, top_k, top_p, seeds)
        return top_k_top_p_sample(logits, temperature, top_k, top_p, seeds)

    def reference(self, logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
        is_greedy = temperature == 0
        scaled = logits.double() / torch.where(is_greedy, 1.0, temperature).double()[:, None]
        ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(logits.shape[1], device=logits.device)
        ordered = ordered.masked_fill((top_k[:, None] > 0) & (ranks >= top_k[:, None]), float("-inf"))
        probs = ordered.softmax(dim=-1)
        before = probs.cumsum(dim=-1) - probs
        ordered = ordered.masked_fill((top_p[:, None] < 1) & (before >= top_p.double()[:, None]), float("-inf"))
        gumbel = -torch.log(-torch.log(random_uniform(seeds[:, None], ids)))
        chosen = torch.where(is_greedy, 0, (ordered + gumbel).argmax(dim=-1))
        return ids.gather(1, chosen[:, None]).squeeze(1)
