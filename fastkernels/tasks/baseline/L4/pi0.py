"""Pi0: pictures, an instruction and a robot's state in, a chunk of actions out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.op import Op, unread_bytes
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L1.embedding import Embedding
from fastkernels.tasks.baseline.L1.gemma_rms_norm import GemmaRMSNorm
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L2.pi0_action_embed import PI0ActionEmbed
from fastkernels.tasks.baseline.L3.clip_encoder_layer import CLIPEncoderLayer
from fastkernels.tasks.baseline.L3.pi0_decoder import PI0DecoderLayer
from fastkernels.tasks.configs.pi0 import GemmaConfig, PI0Config, SiglipConfig

_STATES = TensorSpec(("batch", "num_layers", "num_prefix", "num_kv_heads", "head_dim"))


class SiglipVisionModel(Op):
    """post_layernorm(layers(patches of pixel_values + their positions)).

    Shapes:  pixel_values: [num_images, num_channels, image_size, image_size]; y: [num_images, patches, hidden_size].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: y. No argument is written to.
    Errors:  those of its parts.
    Source:  Zhai et al. 2023 (https://arxiv.org/abs/2303.15343); as the last_hidden_state of transformers'
             SiglipVisionModel.
    """

    spec = OpSpec(
        inputs={"pixel_values": TensorSpec(("num_images", "num_channels", "image_size", "image_size"))},
        outputs={"y": TensorSpec(("num_images", "num_patches", "hidden_size"))},
        examples=(
            {"config": SiglipConfig.tiny()},
            {"config": SiglipConfig.tiny(hidden_size=15, patch_size=5, image_size=20)},
        ),
        example_axes={"num_images": (2, 1)},
    )

    def __init__(self, config: SiglipConfig, prefix: str = "") -> None:
        super().__init__()
        self.num_channels, self.image_size, self.hidden_size = (
            config.num_channels,
            config.image_size,
            config.hidden_size,
        )
        self.num_patches = config.num_tokens
        self.patch_embedding = Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = Embedding(config.num_tokens, config.hidden_size)
        self.layers = nn.ModuleList(
            CLIPEncoderLayer(config, prefix=f"{prefix}.layers.{i}") for i in range(config.num_hidden_layers)
        )
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2).contiguous()  # sums keep this layout
        places = torch.arange(self.num_patches, device=pixel_values.device)
        hidden_states = patches + self.position_embedding(places)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.post_layernorm(hidden_states)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        y = outputs["y"]
        layer = self.layers[0].cost({"hidden_states": y}, {}).num_flops  # type: ignore[operator]
        flops = len(self.layers) * layer + 2 * y.numel() * self.patch_embedding.weight[0].numel()
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class PI0Prefix(Op):
    """Keys and values of every layer of the language model, over the pictures' tokens and then the text's.

    Shapes:  pixel_values: [batch, num_cameras, num_channels, image_size, image_size]; input_ids: [batch, text_len];
             text_mask: [batch, text_len], True where a token is one; keys, values: [batch, num_layers, num_prefix,
             num_kv_heads, head_dim], num_prefix = num_cameras * patches + text_len.
    Dtypes:  bf16, fp16 or fp32; input_ids int64; norms, angles, softmax and sums in fp32.
    Returns: (keys, values), keys rotated. No argument is written to.
    Errors:  those of its parts.
    Source:  Black et al. 2024 (https://arxiv.org/abs/2410.24164); as transformers' PaliGemmaModel, all tokens attending
             to all.
    """

    spec = OpSpec(
        inputs={
            "pixel_values": TensorSpec(("batch", "num_cameras", "num_channels", "image_size", "image_size")),
            "input_ids": TensorSpec(("batch", "text_len"), dtype="int64", role=Role.TOKEN_ID, bound="vocab_size"),
            "text_mask": TensorSpec(("batch", "text_len"), dtype="bool", role=Role.MASK),
        },
        outputs={"keys": _STATES, "values": _STATES},
        examples=(
            {"config": PI0Config.tiny()},
            {"config": PI0Config.tiny(vision=SiglipConfig.tiny(image_size=14), text=GemmaConfig.tiny(hidden_size=24))},
        ),
        example_axes={"batch": (3, 2), "num_cameras": (2, 1), "text_len": (5, 7)},
    )

    def __init__(self, config: PI0Config, prefix: str = "") -> None:
        super().__init__()
        text = config.text
        self.num_channels, self.image_size = config.vision.num_channels, config.vision.image_size
        self.vocab_size, self.num_layers = text.vocab_size, text.num_hidden_layers
        self.head_dim, self.embed_scale = text.head_dim, text.hidden_size**0.5
        self.vision_tower = SiglipVisionModel(config.vision, f"{prefix}.vision_tower")
        self.multi_modal_projector = Linear(config.vision.hidden_size, text.hidden_size)
        self.embed_tokens = Embedding(text.vocab_size, text.hidden_size)
        self.layers = nn.ModuleList(
            PI0DecoderLayer(text, prefix=f"{prefix}.layers.{i}") for i in range(text.num_hidden_layers)
        )
        self.num_kv_heads = max(1, text.num_key_value_heads // tp_size())
        self.num_heads = text.num_attention_heads // tp_size()

    def forward(self, pixel_values: Tensor, input_ids: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        num_rows, num_cameras = pixel_values.shape[:2]
        images = self.multi_modal_projector(self.vision_tower(pixel_values.flatten(0, 1)))
        images = images.unflatten(0, (num_rows, num_cameras)).flatten(1, 2)
        embeds = self.embed_tokens(input_ids)
        embeds = embeds * torch.tensor(self.embed_scale, dtype=embeds.dtype)  # on the host, which nothing waits for
        hidden_states = torch.cat([images, embeds], dim=1)
        seen = torch.cat([text_mask.new_ones(images.shape[:2]), text_mask], dim=1)
        positions = (seen.cumsum(-1) - 1).clamp_min(0)
        mask = seen[:, None].expand(-1, seen.shape[1], -1)
        nothing = hidden_states.new_empty((num_rows, 0, self.num_kv_heads, self.head_dim))
        keys, values = [], []
        residual = None
        for layer in self.layers:
            hidden_states, residual, key, value = layer(hidden_states, positions, mask, nothing, nothing, residual)
            keys.append(key)
            values.append(value)
        return torch.stack(keys, dim=1), torch.stack(values, dim=1)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_prefix": sizes["num_cameras"] * self.vision_tower.num_patches + sizes["text_len"]}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        keys = outputs["keys"]
        tokens, pixels = len(keys) * keys.shape[2], inputs["pixel_values"]
        matrices = sum(p.numel() for p in self.layers.parameters() if p.dim() == 2)
        attention = 4 * tokens * keys.shape[2] * self.num_layers * self.num_heads * self.head_dim
        num_images = pixels.shape[0] * pixels.shape[1]
        patches = keys.new_empty(
            (num_images, self.vision_tower.num_patches, self.vision_tower.hidden_size), device="meta"
        )
        vision = self.vision_tower.cost({"pixel_values": patches}, {"y": patches}).num_flops
        num_bytes = super().cost(inputs, outputs).num_bytes - unread_bytes(
            self.embed_tokens.weight, inputs["input_ids"]
        )
        return Cost(num_bytes, 2 * tokens * matrices + attention + vision)


class Expert(nn.Module):
    """The layers that make actions, by their published names."""

    def __init__(self, config: GemmaConfig, prefix: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            PI0DecoderLayer(config, prefix=f"{prefix}.layers.{i}") for i in range(config.num_hidden_layers)
        )
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps)


class PI0ForConditionalGeneration(Op):
    """One step of flow matching: next actions = actions + step_size * action_out_proj(expert(state, actions, time)).

    The state's token attends to the prefix and itself, the actions' to all. The prefix is that of `vlm`, which a
    pipeline calls once a request.

    Shapes:  actions, next_actions: [batch, chunk_size, max_action_dim]; state: [batch, max_state_dim]; timestep,
             step_size: [batch]; prefix_keys, prefix_values: [batch, num_layers, num_prefix, num_kv_heads, head_dim];
             prefix_mask: [batch, num_prefix], True where a token is one.
    Dtypes:  bf16, fp16 or fp32; timestep and step_size fp32; norms, angles, softmax and sums in fp32.
    Returns: next_actions. No argument is written to.
    Errors:  those of its parts.
    Source:  Black et al. 2024 (https://arxiv.org/abs/2410.24164); as a step of sample_actions of transformers'
             PI0ForConditionalGeneration.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
        "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
    }
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^model\.", ""),
        (r"^paligemma_with_expert\.paligemma\.lm_head\.", "vlm.embed_tokens."),
        (r"^paligemma_with_expert\.paligemma\.(model\.)?", "vlm."),
        (r"^paligemma_with_expert\.gemma_expert\.model\.", "dit."),
        (r"^vlm\.language_model\.(model\.)?", "vlm."),
        (r"^vlm\.vision_tower\.(vision_model\.)?(embeddings\.|encoder\.)?", "vlm.vision_tower."),
        (r"^vlm\.multi_modal_projector\.linear\.", "vlm.multi_modal_projector."),
        (r"^(state_proj|action_in_proj|action_time_mlp_in|action_time_mlp_out)\.", r"embed_action_time.\1."),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = (
        *("gemma_expert.lm_head.weight", "dit.embed_tokens.weight"),  # the expert reads no tokens
        "vlm.norm.weight",  # of the language model keys and values alone are read
    )

    spec = OpSpec(
        inputs={
            "actions": TensorSpec(("batch", "chunk_size", "max_action_dim")),
            "state": TensorSpec(("batch", "max_state_dim")),
            "timestep": TensorSpec(("batch",), dtype="float32", role=Role.COUPLED),
            "step_size": TensorSpec(("batch",), dtype="float32", role=Role.COUPLED),
            "prefix_keys": _STATES,
            "prefix_values": _STATES,
            "prefix_mask": TensorSpec(("batch", "num_prefix"), dtype="bool", role=Role.MASK),
        },
        outputs={"next_actions": TensorSpec(("batch", "chunk_size", "max_action_dim"))},
        examples=({"config": PI0Config.tiny(min_period=2.0)},),
        example_axes={"batch": (3, 4), "num_prefix": (9, 5)},
    )

    def __init__(self, config: PI0Config, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.chunk_size, self.max_action_dim = config.chunk_size, config.max_action_dim
        self.max_state_dim, self.num_layers = config.max_state_dim, config.expert.num_hidden_layers
        self.head_dim = config.expert.head_dim
        self.vlm = PI0Prefix(config, f"{prefix}vlm")
        self.num_kv_heads = max(1, config.text.num_key_value_heads // tp_size())
        self.embed_action_time = PI0ActionEmbed(config)
        self.dit = Expert(config.expert, f"{prefix}dit")
        self.action_out_proj = Linear(config.expert.hidden_size, config.max_action_dim)

    def forward(
        self,
        actions: Tensor,
        state: Tensor,
        timestep: Tensor,
        step_size: Tensor,
        prefix_keys: Tensor,
        prefix_values: Tensor,
        prefix_mask: Tensor,
    ) -> Tensor:
        hidden_states = self.embed_action_time(state, actions, timestep)
        num_rows, num_new = hidden_states.shape[:2]
        places = torch.arange(num_new, device=actions.device)
        positions = prefix_mask.sum(-1, keepdim=True) + places
        among = (places[None, :] == 0) | (places[:, None] > 0)
        mask = torch.cat([prefix_mask[:, None].expand(-1, num_new, -1), among.expand(num_rows, -1, -1)], dim=-1)
        residual = None
        for i, layer in enumerate(self.dit.layers):
            past = prefix_keys[:, i], prefix_values[:, i]
            hidden_states, residual, _, _ = layer(hidden_states, positions, mask, *past, residual)
        normed, _ = self.dit.norm(hidden_states, residual)
        velocity = self.action_out_proj(normed)[:, 1:]
        return actions + step_size.to(actions.dtype)[:, None, None] * velocity

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        share = torch.rand((2, sizes["batch"]), generator=generator)
        return {"timestep": share[0], "step_size": -0.05 - 0.3 * share[1]}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        keys = inputs["prefix_keys"]
        own = [*self.dit.parameters(), *self.embed_action_time.parameters(), *self.action_out_proj.parameters()]
        rows, num_keys = len(keys) * (1 + self.chunk_size), keys.shape[2] + 1 + self.chunk_size
        heads = self.config.expert.num_attention_heads * self.head_dim
        flops = 2 * rows * sum(p.numel() for p in own if p.dim() == 2) + 4 * rows * num_keys * heads * self.num_layers
        moved = [*(t for t in inputs.values() if isinstance(t, Tensor)), *outputs.values(), *own]
        return Cost(sum(t.numel() * t.element_size() for t in moved), flops)
