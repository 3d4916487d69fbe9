"""FlashAttnVarlen by one scaled_dot_product_attention per sequence, over its gathered pages."""

from __future__ import annotations

from torch import Tensor

from fastkernels.tasks.alternatives.torch_native._attention import attend
from fastkernels.tasks.baseline.L1.flash_attn_varlen import FlashAttnVarlen as Baseline
from fastkernels.tasks.baseline.paged_attention import gather_pages


class FlashAttnVarlen(Baseline):
    def forward(
        self,
        query: Tensor,
        key_cache: Tensor,
        value_cache: Tensor,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        block_table: Tensor,
        max_query_len: int,
        max_seq_len: int,
        num_decodes: int = 0,
    ) -> Tensor:
        out = query.new_zeros(query.shape)
        starts = query_start_loc.tolist()
        for i, seq_len in enumerate(seq_lens.tolist()):
            rows = slice(starts[i], starts[i + 1])
            if starts[i + 1] > starts[i]:
                first = self._first_page(starts[i + 1] - starts[i], seq_len, key_cache.shape[1])
                length = seq_len - first * key_cache.shape[1]
                keys, values = (gather_pages(c, block_table[i, first:], length) for c in (key_cache, value_cache))
                out[rows] = attend(query[rows], keys, values, self.scale, window=self.window, sinks=self.sinks)
        return out
