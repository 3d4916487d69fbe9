"""Right candidates of several kinds of ops, as the text of their files: judged as they are, or with one fault."""

from __future__ import annotations

from judging import rms_norm

PACKED_LINEAR = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self, input_size, output_size, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(output_size, input_size))
        self.bias = nn.Parameter(torch.empty(output_size)) if bias else None

    def process_weights_after_loading(self):
        self.packed = self.weight.detach().t().float().contiguous()

    def forward(self, x):
        y = x.float() @ self.packed
        return (y if self.bias is None else y + self.bias.float()).to(x.dtype)
"""

STORE = """
from torch import nn

class StoreKVCache(nn.Module):
    def forward(self, key, value, key_cache, value_cache, slot_mapping):
        page_size = key_cache.shape[1]
        for row, slot in enumerate(slot_mapping.tolist()):
            if slot >= 0:
                key_cache[slot // page_size, slot % page_size] = key[row]
                value_cache[slot // page_size, slot % page_size] = value[row]
"""

DECODE = """
import torch
from torch import nn

class FlashAttnDecode(nn.Module):
    def __init__(self, num_heads, head_size, scale, num_kv_heads):
        super().__init__()
        self.scale, self.num_kv_heads = scale, num_kv_heads

    def forward(self, query, key_cache, value_cache, seq_lens, block_table, max_seq_len):
        num_pages = -(-max_seq_len // key_cache.shape[1])
        place = block_table[:, :num_pages].clamp_min(0).long()
        is_seen = torch.arange(num_pages * key_cache.shape[1]) < seq_lens[:, None]
        keys, values = (c[place].flatten(1, 2).float() for c in (key_cache, value_cache))
        values = torch.where(is_seen[:, :, None, None], values, 0.0)
        q = query.float().unflatten(1, (self.num_kv_heads, -1))
        scores = torch.einsum("sgrd,slgd->sgrl", q, keys) * self.scale
        weights = scores.masked_fill(~is_seen[:, None, None], float("-inf")).softmax(-1)
        weights = torch.where(seq_lens[:, None, None, None] > 0, weights, 0.0)
        return torch.einsum("sgrl,slgd->sgrd", weights, values).flatten(1, 2).to(query.dtype)
"""

SAMPLE = """
import torch
from torch import nn

class TopKTopPSample(nn.Module):
    def forward(self, logits, temperature, top_k, top_p, seeds):
        is_greedy = temperature == 0
        scaled = logits.double() / torch.where(is_greedy, 1.0, temperature.double())[:, None]
        ordered, ids = scaled.sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(logits.shape[-1])
        ordered = ordered.masked_fill((top_k[:, None] > 0) & (ranks >= top_k[:, None]), float("-inf"))
        p = ordered.softmax(-1)
        p = p.masked_fill((top_p[:, None] < 1) & (p.cumsum(-1) - p >= top_p[:, None]), 0.0)
        generators = [torch.Generator().manual_seed(seed * 2654435761 % (1 << 62)) for seed in seeds.tolist()]
        u = torch.stack([torch.rand((), dtype=torch.float64, generator=g) for g in generators])
        edges = p.cumsum(-1)
        drawn = torch.minimum((edges <= (u * edges[:, -1])[:, None]).sum(-1), (p > 0).sum(-1) - 1)
        place = torch.where(is_greedy, 0, drawn)[:, None]
        return ids.gather(1, place).squeeze(1)
"""

MLP = """
import torch
from torch import nn
from fastkernels.tasks.baseline.L2.parallel_linear import MergedColumnParallelLinear, RowParallelLinear

class LlamaMLP(nn.Module):
    def __init__(self, hidden_size, intermediate_size, hidden_act, quant_config=None, bias=False, prefix="",
                 reduce_results=True):
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(hidden_size, [intermediate_size] * 2, bias)
        self.down_proj = RowParallelLinear(intermediate_size, hidden_size, bias)

    def forward(self, x):
        w, b = self.gate_up_proj.weight, getattr(self.gate_up_proj, "bias", None)
        gate, up = nn.functional.linear(x, w, b).chunk(2, -1)
        return self.down_proj(nn.functional.silu(gate) * up)[0]
"""

ATTENTION = """
import torch
from torch import nn
from fastkernels.cache import CacheKind, CacheSpec
from fastkernels.context import forward_context
from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear

class LlamaAttention(nn.Module):
    def __init__(self, config, hidden_size, num_heads, num_kv_heads, max_position_embeddings=None, quant_config=None,
                 bias=False, bias_o_proj=None, prefix=""):
        super().__init__()
        self.head_size = config.head_dim or hidden_size // num_heads
        self.num_heads, self.num_kv_heads = num_heads, num_kv_heads
        self.qkv_proj = QKVParallelLinear(hidden_size, self.head_size, num_heads, num_kv_heads, bias)
        self.o_proj = RowParallelLinear(
            num_heads * self.head_size, hidden_size, bias if bias_o_proj is None else bias_o_proj
        )
        length = max_position_embeddings or config.max_position_embeddings
        self.rotary_emb = RotaryEmbedding(
            self.head_size, rotary_dim=self.head_size, max_position_embeddings=length, base=config.rope_theta,
            rope_scaling=config.rope_scaling,
        )
        self.cache_spec = CacheSpec(CacheKind.FULL, num_kv_heads, self.head_size)
        self.kv_cache = None

    def forward(self, positions, hidden_states):
        context = forward_context()
        heads = self.qkv_proj(hidden_states)[0].unflatten(-1, (-1, self.head_size))
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=-2)
        q, k = self.rotary_emb(positions, q, k)
        keys, values = self.kv_cache.flatten(1, 2).unbind(0)
        STORE
        starts, answers = context.query_start_loc.tolist(), []
        for i, length in enumerate(context.seq_lens.tolist()):
            page_size = self.kv_cache.shape[2]
            at = torch.arange(length)
            at = context.block_table[i, at // page_size].long() * page_size + at % page_size
            query = q[starts[i] : starts[i + 1]].transpose(0, 1).float()
            mask = torch.ones(query.shape[1], length, dtype=torch.bool).tril(length - query.shape[1])
            repeats = self.num_heads // self.num_kv_heads
            key, value = (x[at].transpose(0, 1).repeat_interleave(repeats, 0).float() for x in (keys, values))
            answers.append(nn.functional.scaled_dot_product_attention(query, key, value, mask).transpose(0, 1))
        return self.o_proj(torch.cat(answers).to(hidden_states.dtype).flatten(1))[0]
"""
STORED = "keys[context.slot_mapping] = k; values[context.slot_mapping] = v"

CANDIDATES = {
    "rms_norm": rms_norm("return self.right(x, residual)"),
    "linear": PACKED_LINEAR,
    "store_kvcache": STORE,
    "flash_attn_decode": DECODE,
    "top_k_top_p_sample": SAMPLE,
    "llama_mlp": MLP,
    "llama_attention": ATTENTION.replace("STORE", STORED),
}
