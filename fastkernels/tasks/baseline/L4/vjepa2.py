"""V-JEPA 2: video in; features of its patches, those of patches that were not shown, or what is done in it, out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L2.vjepa2_embeddings import VJEPA2Embeddings
from fastkernels.tasks.baseline.L3.vjepa2_layer import VJEPA2Layer
from fastkernels.tasks.baseline.L3.vjepa2_pooler import VJEPA2Pooler
from fastkernels.tasks.baseline.L3.vjepa2_predictor import VJEPA2Predictor
from fastkernels.tasks.configs.vjepa2 import VJEPA2Config

_PACKED: dict[str, dict[str, str | int]] = {
    "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
    "kv_proj": {"k_proj": 0, "v_proj": 1},
}
_RENAMES = (
    (r"\.layer\.", ".layers."),
    (r"patch_embeddings\.proj\.", "patch_embeddings."),
    (r"attention\.(q|k|v)(uery|ey|alue)\.", r"attention.\1_proj."),
    (r"predictor\.embeddings\.predictor_embeddings\.", "predictor.embed."),
    (r"predictor\.embeddings\.mask_tokens$", "predictor.mask_tokens"),
)
_VIDEOS = TensorSpec(("batch", "num_frames", "in_chans", "height", "width"))
_MASK: dict[str, Any] = {"dtype": "int64", "role": Role.INDEX, "bound": "6", "is_optional": True}
_EXAMPLE_AXES = {"batch": (2, 1), "num_frames": (4, 1), "height": (32, 25), "width": (24, 16)}


class VJEPA2Encoder(Op):
    """layernorm(layers(embeddings(pixel_values_videos))).

    Shapes:  pixel_values_videos: [batch, num_frames, in_chans, height, width]; last_hidden_state: [batch, num_patches,
             hidden_size].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: last_hidden_state. No argument is written to.
    Errors:  those of its parts.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers' VJEPA2Encoder.
    """

    spec = OpSpec(
        inputs={"pixel_values_videos": _VIDEOS},
        outputs={"last_hidden_state": TensorSpec(("batch", "num_patches", "hidden_size"))},
        examples=({"config": VJEPA2Config.tiny()},),
        example_axes=_EXAMPLE_AXES,
    )

    def __init__(self, config: VJEPA2Config, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size, self.in_chans = config.hidden_size, config.in_chans
        self.embeddings = VJEPA2Embeddings(config, config.hidden_size)
        self.layers = nn.ModuleList(
            VJEPA2Layer(
                config,
                config.hidden_size,
                config.num_attention_heads,
                config.mlp_ratio,
                prefix=f"{prefix}.layers.{i}",
            )
            for i in range(config.num_hidden_layers)
        )
        self.layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, pixel_values_videos: Tensor) -> Tensor:
        hidden_states = self.embeddings(pixel_values_videos)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.layernorm(hidden_states)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self.embeddings.derived_axes(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        tokens = outputs["last_hidden_state"]
        flops = self.embeddings.cost(inputs, {"embeddings": tokens}).num_flops
        for layer in self.layers:
            flops += layer.cost({"hidden_states": tokens}, {}).num_flops  # type: ignore[operator]
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class VJEPA2Model(Op):
    """last_hidden_state = encoder(video); predicted = predictor(last_hidden_state of the context, targets).

    Shapes:  pixel_values_videos: [batch, num_frames, in_chans, height, width]; context_mask: [batch, num_context],
             target_mask: [batch, num_targets] int64, numbers of patches; last_hidden_state: [batch, num_patches,
             hidden_size]; predicted: [batch, num_targets, hidden_size].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: last_hidden_state alone, or (last_hidden_state, predicted) when masks are given. No argument is written to.
    Errors:  ValueError when one mask is given without the other; those of its parts.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers' VJEPA2Model, of one mask
             each; where that takes every patch in place of absent masks, this one predicts nothing.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = _PACKED
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = _RENAMES

    spec = OpSpec(
        inputs={
            "pixel_values_videos": _VIDEOS,
            "context_mask": TensorSpec(("batch", "num_context"), **_MASK),
            "target_mask": TensorSpec(("batch", "num_targets"), **_MASK),
        },
        outputs={
            "last_hidden_state": TensorSpec(("batch", "num_patches", "hidden_size")),
            "predicted": TensorSpec(("batch", "num_targets", "hidden_size")).optional(),
        },
        returned_with={"predicted": "target_mask"},
        examples=({"config": VJEPA2Config.tiny()}, {"config": VJEPA2Config.tiny(patch_size=5, qkv_bias=False)}),
        example_axes={**_EXAMPLE_AXES, "num_context": (5, 17), "num_targets": (9, 1)},
    )

    def __init__(self, config: VJEPA2Config, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size, self.in_chans = config.hidden_size, config.in_chans
        self.encoder = VJEPA2Encoder(config, f"{prefix}encoder")
        self.predictor = VJEPA2Predictor(config, f"{prefix}predictor")

    def forward(
        self, pixel_values_videos: Tensor, context_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        if (context_mask is None) != (target_mask is None):
            raise ValueError("VJEPA2Model takes context_mask and target_mask together, or neither.")
        hidden_states = self.encoder(pixel_values_videos)
        if context_mask is None:
            return hidden_states
        return hidden_states, self.predictor(hidden_states, context_mask, target_mask)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return self.encoder.derived_axes(sizes)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        flops = self.encoder.cost(inputs, outputs).num_flops
        if "predicted" in outputs:
            shown = {"encoder_hidden_states": outputs["last_hidden_state"], **inputs}
            flops += self.predictor.cost(shown, {"predicted": outputs["predicted"]}).num_flops
        return Cost(super().cost(inputs, outputs).num_bytes, flops)


class VJEPA2ForVideoClassification(Op):
    """logits = classifier(pooler(encoder(video))).

    The checkpoint's predictor, which classifying does not use, is left out.

    Shapes:  pixel_values_videos: [batch, num_frames, in_chans, height, width]; logits: [batch, num_labels].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: logits. No argument is written to.
    Errors:  those of its parts.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers'
             VJEPA2ForVideoClassification.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = _PACKED
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^vjepa2\.predictor\..*$", "predictor.unused"),
        (r"^vjepa2\.", ""),
        *_RENAMES,
        (r"\.self_attn\.", ".attention."),
        (r"\.cross_attn\.", "."),
        (r"\.out_proj\.", ".proj."),
        (r"\.layer_norm(\d)\.", r".norm\1."),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = ("predictor.unused",)

    spec = OpSpec(
        inputs={"pixel_values_videos": _VIDEOS},
        outputs={"logits": TensorSpec(("batch", "num_labels"))},
        examples=({"config": VJEPA2Config.tiny(num_hidden_layers=1, num_labels=64)},),
        example_axes={**_EXAMPLE_AXES, "batch": (7, 1)},
    )

    def __init__(self, config: VJEPA2Config, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size, self.in_chans, self.num_labels = config.hidden_size, config.in_chans, config.num_labels
        self.encoder = VJEPA2Encoder(config, f"{prefix}encoder")
        self.pooler = VJEPA2Pooler(config, f"{prefix}pooler")
        self.classifier = Linear(config.hidden_size, config.num_labels)

    def forward(self, pixel_values_videos: Tensor) -> Tensor:
        return self.classifier(self.pooler(self.encoder(pixel_values_videos)))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        videos = inputs["pixel_values_videos"]
        num_patches = self.encoder.embeddings.num_patches(videos.shape[1], *videos.shape[3:])
        tokens = torch.empty(len(videos), num_patches, self.hidden_size, device="meta")
        flops = self.encoder.cost(inputs, {"last_hidden_state": tokens}).num_flops
        flops += self.pooler.cost({"hidden_state": tokens}, {}).num_flops
        flops += 2 * len(videos) * self.classifier.weight.numel()
        return Cost(super().cost(inputs, outputs).num_bytes, flops)
