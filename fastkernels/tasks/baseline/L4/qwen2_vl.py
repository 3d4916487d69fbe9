"""Qwen2-VL: a language model that sees pictures and videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec, scalar
from fastkernels.tasks.baseline.L2.vision_patch_embed import VisionPatchEmbed
from fastkernels.tasks.baseline.L2.vision_patch_merger import VisionPatchMerger
from fastkernels.tasks.baseline.L2.vocab_parallel_embedding import ParallelLMHead
from fastkernels.tasks.baseline.L3.vision_block import VisionBlock
from fastkernels.tasks.baseline.L4.llama import EMBEDS, LlamaModel
from fastkernels.tasks.configs.qwen2_vl import Qwen2VLConfig, Qwen2VLVisionConfig

_EXAMPLES: tuple[dict[str, Any], ...] = (
    {"config": Qwen2VLConfig.tiny()},
    {
        "config": Qwen2VLConfig.tiny(
            vocab_size=101,
            hidden_size=52,
            intermediate_size=89,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=80,
            mrope_section=(16, 12, 12),
            tie_word_embeddings=True,
        )
    },
)


class Qwen2VisionTransformer(Op):
    """merger(blocks(patch_embed(pixel_values))): a vector for each square of neighbouring patches.

    Shapes:  pixel_values: [num_patches, patch_dim], squares of spatial_merge_size^2 patches in a row, frame by frame;
             positions: [2, num_patches], row and column of each patch in its frame; query_start_loc: [num_frames + 1];
             max_query_len: patches of the largest frame; embeddings: [num_merged, hidden_size].
    Dtypes:  bf16, fp16 or fp32; positions int64, query_start_loc int32; norms and softmax in fp32.
    Returns: embeddings. No argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191), section 2.1; as vLLM's Qwen2VisionTransformer.
    """

    spec = OpSpec(
        inputs={
            "pixel_values": TensorSpec(("num_patches", "patch_dim")),
            "positions": TensorSpec(("2", "num_patches"), dtype="int64", role=Role.INDEX, bound="max_grid_size"),
            "query_start_loc": TensorSpec(("num_query_starts",), dtype="int32", role=Role.COUPLED),
            "max_query_len": scalar(Role.COUPLED),
        },
        outputs={"embeddings": TensorSpec(("num_merged", "hidden_size"))},
        examples=tuple({"config": example["config"].vision} for example in _EXAMPLES),
        example_axes={"num_merged": (13, 1, 7), "num_query_starts": (2, 3)},
    )

    def __init__(self, config: Qwen2VLVisionConfig, prefix: str = "visual") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        self.patch_dim, self.max_grid_size = config.patch_dim, config.max_grid_size
        self.merged_patches = config.spatial_merge_size**2
        self.patch_embed = VisionPatchEmbed(
            config.patch_size, config.temporal_patch_size, config.in_channels, config.embed_dim
        )
        self.blocks = nn.ModuleList(
            VisionBlock(
                config.embed_dim,
                config.num_heads,
                config.embed_dim * config.mlp_ratio,
                config.hidden_act,
                max_position_embeddings=config.max_grid_size,
                prefix=f"{prefix}.blocks.{i}",
            )
            for i in range(config.depth)
        )
        self.merger = VisionPatchMerger(
            config.hidden_size, config.embed_dim, config.spatial_merge_size, prefix=f"{prefix}.merger"
        )

    def forward(self, pixel_values: Tensor, positions: Tensor, query_start_loc: Tensor, max_query_len: int) -> Tensor:
        x = self.patch_embed(pixel_values)
        for block in self.blocks:
            x = block(x, positions, query_start_loc, max_query_len)
        return self.merger(x)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_patches": sizes["num_merged"] * self.merged_patches}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Frames of unlike sizes that hold all patches."""
        num_patches, num_frames = sizes["num_patches"], sizes["num_query_starts"] - 1
        inner = 1 + torch.randperm(num_patches - 1, generator=generator)[: num_frames - 1].sort().values
        starts = torch.cat((torch.tensor([0]), inner, torch.tensor([num_patches]))).int()
        return {"query_start_loc": starts, "max_query_len": int(starts.diff().max())}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        pixels = inputs["pixel_values"]
        block_inputs = {**inputs, "x": pixels[:0]}
        blocks = [block.cost(block_inputs, {}) for block in self.blocks if isinstance(block, Op)]
        once = [*self.patch_embed.parameters(), *self.blocks.parameters()]
        matrices = sum(p.numel() for p in once if p.dim() >= 2) * len(pixels)
        matrices += sum(p.numel() for p in self.merger.parameters() if p.dim() == 2) * len(outputs["embeddings"])
        flops = 2 * matrices + sum(cost.num_flops for cost in blocks)
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class Qwen2VLForConditionalGeneration(Op):
    """LlamaModel with biased q, k and v, whose tokens may be pictures; compute_logits gives those of chosen rows.

    embed_multimodal makes the vectors of pictures and videos, embed_input_ids puts them among the embedded tokens.

    Shapes:  input_ids: [num_tokens]; positions: [num_tokens], or [3, num_tokens]: time, height, width; inputs_embeds,
             hidden_states: [num_tokens, hidden_size]; logits: [num_rows, vocab_size].
    Dtypes:  ids and positions int64; weights and activations bf16, fp16 or fp32.
    Returns: hidden_states, normed. Writes to the layers' kv_cache; no argument is written to.
    Errors:  those of its parts.
    Source:  Wang et al. 2024 (https://arxiv.org/abs/2409.12191); methods as vLLM's Qwen2VLForConditionalGeneration.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
        "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
    }
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.visual\.", "visual."),
        (r"^model\.language_model\.", "model."),
        (r"^language_model\.", ""),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)

    spec = OpSpec(
        {
            "input_ids": TensorSpec(("num_tokens",), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
            "positions": TensorSpec(
                ("num_tokens",), dtype="int64", role=Role.POSITION, bound="max_position_embeddings"
            ),
            "inputs_embeds": EMBEDS,
        },
        {"hidden_states": TensorSpec(("num_tokens", "hidden_size"))},
        mutates=("kv_cache",),
        reads_context=True,
        examples=_EXAMPLES,
    )

    def __init__(self, config: Qwen2VLConfig, quant_config: None = None, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.text.hidden_size
        self.vocab_size = config.vocab_size
        self.max_position_embeddings = config.max_position_embeddings
        self.visual = Qwen2VisionTransformer(config.vision, prefix=f"{prefix}visual")
        self.model = LlamaModel(config.text, quant_config, prefix=f"{prefix}model")
        self.lm_head = ParallelLMHead(
            config.vocab_size, self.hidden_size, quant_config=quant_config, prefix=f"{prefix}lm_head"
        )
        self._tie_weights()

    def _tie_weights(self) -> None:
        if self.config.text.tie_word_embeddings:
            self.lm_head.tie_weights(self.model.embed_tokens)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Qwen2VLForConditionalGeneration:
        super()._apply(fn, recurse)
        self._tie_weights()  # leaving the meta device makes new parameters, one each
        return self

    def forward(self, input_ids: Tensor, positions: Tensor, inputs_embeds: Tensor | None = None) -> Tensor:
        return self.model(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        return self.lm_head(hidden_states)

    def embed_multimodal(self, modality: str, items: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """The vectors of pictures or videos, which the tower sees alike.

        items: on the host, pixel_values [num_patches, patch_dim] and grid_thw [3]: frames, and patches a side.
        """
        vision, weight = self.config.vision, self.visual.patch_embed.proj.weight
        grids = [item["grid_thw"].tolist() for item in items]
        positions = torch.cat([patch_positions(t, h, w, vision.spatial_merge_size) for t, h, w in grids], dim=1)
        lens = torch.tensor([h * w for t, h, w in grids for _ in range(t)], dtype=torch.int32)
        starts = torch.cat((lens.new_zeros(1), lens.cumsum(0, dtype=torch.int32)))
        pixels = torch.cat([item["pixel_values"] for item in items])
        on_device = [tensor.to(weight.device, non_blocking=True) for tensor in (pixels, positions, starts)]
        vectors = self.visual(on_device[0].to(weight.dtype), *on_device[1:], int(lens.max()))
        return list(vectors.split([t * h * w // self.visual.merged_patches for t, h, w in grids]))

    def embed_input_ids(self, input_ids: Tensor, multimodal_embeddings: Tensor, places: Tensor) -> Tensor:
        """Embedded tokens, those at `places` (indices) replaced by multimodal_embeddings."""
        return self.model.embed_tokens(input_ids).index_copy(0, places, multimodal_embeddings)

    def largest_multimodal_item(self, num_embeddings: int) -> tuple[str, dict[str, Tensor]]:
        """An item that comes to about so many vectors, by which memory is measured."""
        vision = self.config.vision
        side = max(1, int(num_embeddings**0.5)) * vision.spatial_merge_size
        return "image", {
            "pixel_values": torch.zeros(side * side, vision.patch_dim),
            "grid_thw": torch.tensor([1, side, side]),
        }

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        return self.model.coupled_inputs(sizes, generator)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return self.model.cost(inputs, outputs)


def patch_positions(num_frames: int, height: int, width: int, merge_size: int) -> Tensor:
    """[2, num_frames * height * width]: row and column of each patch, squares of merge_size^2 patches in a row."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    squares = (height // merge_size, merge_size, width // merge_size, merge_size)
    places = torch.stack([x.reshape(squares).transpose(1, 2).flatten() for x in (rows, columns)])
    return places.repeat(1, num_frames)
