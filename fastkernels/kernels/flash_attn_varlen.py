"""Causal attention of new tokens over their paged context: chunks of prompts and single tokens in one batch.

Sequences with a few new tokens go to the split kernel of flash_attn_decode, longer ones to the
tiles of flash_attn_prefill; each kernel skips the other's sequences, so the host reads no lengths.
"""

import torch
from torch import Tensor

from fastkernels.kernels.flash_attn_decode import check_attention, launch_decode, rows_per_tile
from fastkernels.kernels.flash_attn_prefill import launch_tiles


def flash_attn_varlen(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    max_query_len: int,
    max_seq_len: int,
    scale: float,
    num_decodes: int = 0,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(query @ keys * scale) @ values; the last new token of a sequence sees all its seq_len keys.

    Shapes:  query and the result: [num_tokens, num_heads, head_size]; key_cache, value_cache: [num_pages,
             page_size, num_kv_heads, head_size]; query_start_loc: [num_seqs + 1]; seq_lens: [num_seqs], cached
             plus new tokens; block_table: [num_seqs, max_pages], read only up to a sequence's last page.
             num_decodes: at least so many sequences at the front have a single new token; they are left out of
             the tiles' search. window: keys that a token sees at most; sinks: [num_heads], scores without a value.
             Rows past query_start_loc's last entry are not written.
    Dtypes:  bf16, fp16 or fp32; the softmax and both sums are taken in fp32.
    Errors:  UnsupportedError for dtypes, head sizes or head counts that the kernels lack.
    """
    group = check_attention("flash_attn_varlen", query, key_cache, value_cache, scale)
    out = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    if num_decodes:
        decodes = (seq_lens[:num_decodes], block_table[:num_decodes])
        first = (query[:num_decodes], key_cache, value_cache, None, *decodes)
        launch_decode(*first, 1, max_seq_len, scale, out[:num_decodes], window, sinks)
    num_seqs = seq_lens.shape[0] - num_decodes
    if not num_seqs:
        return out
    later = (query_start_loc[num_decodes:], seq_lens[num_decodes:], block_table[num_decodes:])
    paged = (query, key_cache, value_cache, *later)
    few = rows_per_tile(group) // group
    if max_query_len <= few:
        launch_decode(*paged, max_query_len, max_seq_len, scale, out, window, sinks)
    elif query.shape[0] - num_decodes == num_seqs * max_query_len:
        launch_tiles(*paged, 1, max_query_len, scale, out, window=window, sinks=sinks)
    else:
        launch_decode(*paged, few, max_seq_len, scale, out, window, sinks)
        launch_tiles(*paged, few + 1, max_query_len, scale, out, window=window, sinks=sinks)
    return out
