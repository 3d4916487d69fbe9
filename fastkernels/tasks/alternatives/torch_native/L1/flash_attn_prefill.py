"""FlashAttnPrefill by one scaled_dot_product_attention per sequence."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from fastkernels.tasks.alternatives.torch_native._attention import attend
from fastkernels.tasks.baseline.L1.flash_attn_prefill import FlashAttnPrefill as Baseline


class FlashAttnPrefill(Baseline):
    def forward(self, query: Tensor, key: Tensor, value: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        out = query.new_zeros(query.shape)
        starts = query_start_loc.tolist()
        for start, end in pairwise(starts):
            if end > start:
                rows = slice(start, end)
                out[rows] = attend(query[rows], key[rows], value[rows], self.scale, is_causal=self.is_causal)
        return out
