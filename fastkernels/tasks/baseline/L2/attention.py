"""Attention over the paged cache, and Llama's attention block around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastkernels.cache import CacheKind, CacheSpec
from fastkernels.context import ForwardContext, Phase, forward_context, forward_context_or_none
from fastkernels.distributed.sharded_layer import Shard, ShardedLayer, ShardId, refuse_quantization
from fastkernels.distributed.tensor_parallel import kv_head_shard, shard_size, tp_rank, tp_size
from fastkernels.errors import UnsupportedError
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.flash_attn_decode import FlashAttnDecode
from fastkernels.tasks.baseline.L1.flash_attn_prefill import FlashAttnPrefill
from fastkernels.tasks.baseline.L1.flash_attn_varlen import FlashAttnVarlen
from fastkernels.tasks.baseline.L1.mrope import MRotaryEmbedding
from fastkernels.tasks.baseline.L1.rotary_emb import RotaryEmbedding
from fastkernels.tasks.baseline.L1.store_kvcache import StoreKVCache
from fastkernels.tasks.baseline.L2.parallel_linear import QKVParallelLinear, RowParallelLinear
from fastkernels.tasks.baseline.window_attention import num_window_keys
from fastkernels.tasks.configs.llama import LlamaConfig


class Attention(ShardedLayer, Op):
    """Stores the new keys and values in the layer's pages, then attends causally over each sequence's cached tokens.

    With a window a token sees that many at most, its own the last; sinks, one a head, are scores without a value.

    Shapes:  query, out: [num_tokens, num_heads * head_size]; key, value: [num_tokens, num_kv_heads * head_size].
    Dtypes:  bf16, fp16 or fp32; scores, softmax and sums in fp32; the cache is of the same dtype.
    Returns: out. Writes to kv_cache at the context's slots; no argument is written to.
    Errors:  ValueError when a row is not of the op's size; RuntimeError outside of a forward context;
             UnsupportedError when cached tokens are needed and no cache is bound.
    Source:  Kwon et al. 2023 (https://arxiv.org/abs/2309.06180); signature as vLLM's Attention.
    """

    inner = "flash_attn_varlen"
    parameter_names = ("sinks",)
    spec = OpSpec(
        inputs={
            "query": TensorSpec(("num_tokens", "query_size")).strided(),
            "key": TensorSpec(("num_tokens", "kv_size")).strided(),
            "value": TensorSpec(("num_tokens", "kv_size")).strided(),
        },
        outputs={"out": TensorSpec(("num_tokens", "query_size"))},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"num_heads": 4, "head_size": 16, "scale": 0.25, "num_kv_heads": 2},
            {"num_heads": 7, "head_size": 80, "scale": 80**-0.5, "num_kv_heads": 1},
            {"num_heads": 4, "head_size": 16, "scale": 0.25, "num_kv_heads": 2, "window": 11, "has_sinks": True},
        ),
    )

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        quant_config: None = None,
        prefix: str = "",
        window: int | None = None,
        has_sinks: bool = False,
    ) -> None:
        super().__init__()
        refuse_quantization(quant_config, prefix or type(self).__name__)
        self.window = window
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = scale
        self.num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        self.query_size = num_heads * head_size
        self.kv_size = self.num_kv_heads * head_size
        kind = CacheKind.FULL if window is None else CacheKind.WINDOW
        self.cache_spec = CacheSpec(kind, self.num_kv_heads, head_size, window)
        self.kv_cache: Tensor | None = None
        sizes = (num_heads, head_size, scale, self.num_kv_heads)
        self.store_kvcache = StoreKVCache()
        self.flash_attn_prefill = FlashAttnPrefill(*sizes)
        self.flash_attn_decode = FlashAttnDecode(*sizes)
        self.flash_attn_varlen = FlashAttnVarlen(*sizes, window, has_sinks)
        self.is_plain = window is None and not has_sinks
        self.tp_rank, self.tp_size = tp_rank(), tp_size()

    @property
    def sinks(self) -> nn.Parameter | None:
        return self.flash_attn_varlen.sinks

    def published_names(self) -> dict[str, str]:
        return {"flash_attn_varlen.sinks": "sinks"}

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        return Shard(0, self.num_heads * self.tp_size, self.num_heads * self.tp_rank, self.num_heads)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if not (query.shape[-1] == self.query_size and key.shape[-1] == value.shape[-1] == self.kv_size):
            raise ValueError(
                f"Attention takes rows of {self.query_size} (query) and {self.kv_size} (key, value), "
                f"got {tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}."
            )
        q = query.unflatten(-1, (self.num_heads, self.head_size))
        k = key.unflatten(-1, (self.num_kv_heads, self.head_size))
        v = value.unflatten(-1, (self.num_kv_heads, self.head_size))
        return self._attend(q, k, v).flatten(-2)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        context = forward_context()
        block_table, slot_mapping = self._places(context)
        if self.kv_cache is not None:
            key_cache, value_cache = self.kv_cache.unbind(0)
            self.store_kvcache(key, value, key_cache, value_cache, slot_mapping)
        if context.phase is Phase.PREFILL and self.is_plain:
            return self.flash_attn_prefill(query, key, value, context.query_start_loc, context.max_query_len)
        if self.kv_cache is None:
            raise UnsupportedError(f"Attention has no kv_cache bound, and a {context.phase} batch reads one.")
        pages = (context.seq_lens, block_table)
        if context.phase is Phase.DECODE and self.is_plain:
            return self.flash_attn_decode(query, key_cache, value_cache, *pages, context.max_seq_len)
        sizes = (context.max_query_len, context.max_seq_len, context.num_decodes)
        return self.flash_attn_varlen(query, key_cache, value_cache, context.query_start_loc, *pages, *sizes)

    def _places(self, context: ForwardContext) -> tuple[Tensor, Tensor]:
        """The table of this layer's pages and the slots of new tokens; who gives none for windows has one for all."""
        if self.window is None or context.window_block_table is None or context.window_slot_mapping is None:
            return context.block_table, context.slot_mapping
        return context.window_block_table, context.window_slot_mapping

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Arguments and result once; within a forward context also the stored tokens and those read from pages."""
        num_bytes = super().cost(inputs, outputs).num_bytes
        context = forward_context_or_none()
        if context is None:
            return Cost(num_bytes)
        query_lens, seq_lens = context.query_start_loc.diff(), context.seq_lens
        num_cached_rows = int((self._places(context)[1] >= 0).sum())
        if context.phase is not Phase.PREFILL:
            num_seen = (self.window or int(seq_lens.max())) - 1
            num_cached_rows += int((seq_lens - query_lens).clamp(max=num_seen).sum())
        row_bytes = 2 * self.kv_size * next(t for t in inputs.values() if isinstance(t, Tensor)).element_size()
        pairs = num_window_keys(query_lens, seq_lens, self.window or int(seq_lens.max()))
        flops = 4 * pairs * self.query_size
        return Cost(num_bytes + num_cached_rows * row_bytes, flops)


class LlamaAttention(Op):
    """o_proj(Attention(rotate(q), rotate(k), v)) with q, k, v = qkv_proj(hidden_states).

    Shapes:  positions: [num_tokens], or [3, num_tokens] with mrope_section; hidden_states, output: [num_tokens,
             hidden_size].
    Dtypes:  bf16, fp16 or fp32; positions int64; softmax and sums in fp32.
    Returns: output. Writes to attn.kv_cache; no argument is written to.
    Errors:  those of its parts; ValueError when heads do not split over the ranks.
    Source:  Touvron et al. 2023 (https://arxiv.org/abs/2302.13971); signature as vLLM's LlamaAttention.
    """

    spec = OpSpec(
        inputs={
            "positions": TensorSpec(
                ("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"
            ),
            "hidden_states": TensorSpec(("num_tokens", "hidden_size")),
        },
        outputs={"output": TensorSpec(("num_tokens", "hidden_size"))},
        mutates=("kv_cache",),
        reads_context=True,
        examples=(
            {"config": LlamaConfig.tiny(), "hidden_size": 64, "num_heads": 4, "num_kv_heads": 2},
            {
                "config": LlamaConfig.tiny(
                    hidden_size=52, num_attention_heads=3, num_key_value_heads=1, head_dim=80, rope_scaling=None
                ),
                "hidden_size": 52,
                "num_heads": 3,
                "num_kv_heads": 1,
                "bias": True,
            },
            {
                "config": LlamaConfig.tiny(rope_scaling=None, mrope_section=(2, 3, 3)),
                "hidden_size": 64,
                "num_heads": 4,
                "num_kv_heads": 2,
                "bias": True,
                "bias_o_proj": False,
            },
        ),
    )

    def __init__(
        self,
        config: LlamaConfig,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        max_position_embeddings: int | None = None,
        quant_config: None = None,
        bias: bool = False,
        bias_o_proj: bool | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        head_size = config.head_dim or hidden_size // num_heads
        self.hidden_size = hidden_size
        self.head_size = head_size
        self.num_heads = shard_size(num_heads, tp_size(), "The number of attention heads")
        self.num_kv_heads = kv_head_shard(num_kv_heads, tp_rank(), tp_size())[1]
        self.max_position_embeddings = max_position_embeddings or config.max_position_embeddings
        self.qkv_proj = QKVParallelLinear(
            hidden_size,
            head_size,
            num_heads,
            num_kv_heads,
            bias,
            quant_config=quant_config,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            num_heads * head_size,
            hidden_size,
            bias=bias if bias_o_proj is None else bias_o_proj,
            quant_config=quant_config,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = _rotary_embedding(config, head_size, self.max_position_embeddings)
        self.attn = Attention(
            self.num_heads, head_size, head_size**-0.5, self.num_kv_heads, quant_config, prefix=f"{prefix}.attn"
        )

    def forward(self, positions: Tensor, hidden_states: Tensor) -> Tensor:
        qkv, _ = self.qkv_proj(hidden_states)
        heads = qkv.unflatten(-1, (-1, self.head_size))
        q, k, v = heads.split([self.num_heads, self.num_kv_heads, self.num_kv_heads], dim=-2)
        q, k = self.rotary_emb(positions, q, k)
        output, _ = self.o_proj(self.attn(q.flatten(-2), k.flatten(-2), v.flatten(-2)))
        return output

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = inputs["hidden_states"]
        matrices = self.qkv_proj.weight.numel() + self.o_proj.weight.numel()
        own = super().cost(inputs, outputs)
        attn = self.attn.cost({"query": hidden_states[:0]}, {})
        return Cost(own.num_bytes + attn.num_bytes, attn.num_flops + 2 * len(hidden_states) * matrices)


def _rotary_embedding(config: LlamaConfig, head_size: int, max_positions: int) -> RotaryEmbedding | MRotaryEmbedding:
    if config.mrope_section is None:
        return RotaryEmbedding(
            head_size,
            rotary_dim=head_size,
            max_position_embeddings=max_positions,
            base=config.rope_theta,
            rope_scaling=config.rope_scaling,
        )
    return MRotaryEmbedding(
        head_size,
        rotary_dim=head_size,
        max_position_embeddings=max_positions,
        base=config.rope_theta,
        mrope_section=config.mrope_section,
        mrope_interleaved=config.mrope_interleaved,
    )
