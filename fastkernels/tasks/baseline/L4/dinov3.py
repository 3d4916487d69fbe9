"""DINOv3's vision transformer: image in, features of the image and of its patches out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.conv2d import Conv2d
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L3.eva_block import EvaBlock
from fastkernels.tasks.configs.dinov3 import DINOv3Config


class DINOv3ViTModel(Op):
    """norm(layers([class token, registers, patches of pixel_values])).

    Shapes:  pixel_values: [batch, num_channels, height, width], sides at least patch_size; last_hidden_state: [batch,
             1 + num_register_tokens + patches, hidden_size], the class token first.
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: last_hidden_state, normed. No argument is written to.
    Errors:  those of its parts.
    Source:  Simeoni et al. 2025 (https://arxiv.org/abs/2508.10104); last_hidden_state of transformers' DINOv3ViTModel.
    """

    packed_modules: ClassVar[Mapping[str, Mapping[str, str | int]]] = {
        "qkv_proj": {"q_proj": "q", "k_proj": "k", "v_proj": "v"},
        "gate_up_proj": {"gate_proj": 0, "up_proj": 1},
    }
    weight_renames: ClassVar[tuple[tuple[str, str], ...]] = (
        (r"^embeddings\.", ""),
        (r"^(model\.)?layer\.", "layers."),
        (r"layer_scale(\d)\.lambda1$", r"lambda\1"),
    )
    ignored_weights: ClassVar[tuple[str, ...]] = ("mask_token", "inv_freq")

    spec = OpSpec(
        inputs={"pixel_values": TensorSpec(("batch", "num_channels", "height", "width"))},
        outputs={
            "last_hidden_state": TensorSpec(("batch", "num_tokens", "hidden_size")),
        },
        examples=(
            {"config": DINOv3Config.tiny()},
            {"config": DINOv3Config.tiny(patch_size=5, hidden_act="gelu", use_gated_mlp=False, query_bias=True)},
        ),
        example_axes={"batch": (2, 1), "height": (32, 17), "width": (24, 8)},
    )

    def __init__(self, config: DINOv3Config, prefix: str = "") -> None:
        super().__init__()
        self.config = config
        self.hidden_size = config.hidden_size
        self.num_channels = config.num_channels
        self.patch_size = config.patch_size
        if not config.use_gated_mlp:
            self.weight_renames = (  # type: ignore[misc]
                *self.weight_renames,
                (r"mlp\.up_proj\.", "mlp.fc1."),
                (r"mlp\.down_proj\.", "mlp.fc2."),
            )
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.hidden_size).normal_(std=0.02))
        self.register_tokens = nn.Parameter(
            torch.empty(1, config.num_register_tokens, config.hidden_size).normal_(std=0.02)
        )
        self.patch_embeddings = Conv2d(
            config.num_channels, config.hidden_size, config.patch_size, stride=config.patch_size
        )
        self.layers = nn.ModuleList(
            EvaBlock(config, prefix=f"{prefix}layers.{i}") for i in range(config.num_hidden_layers)
        )
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    @property
    def zero_weights(self) -> tuple[str, ...]:
        """Biases that the checkpoint leaves out, because only some of the three are there."""
        config = self.config
        given = {"q_proj": config.query_bias, "k_proj": config.key_bias, "v_proj": config.value_bias}
        return tuple(f"attention.{name}.bias" for name, is_there in given.items() if not is_there)

    def forward(self, pixel_values: Tensor) -> Tensor:
        patches = self.patch_embeddings(pixel_values)
        num_images, _, height, width = patches.shape
        prefix = torch.cat([self.cls_token, self.register_tokens], dim=1).expand(num_images, -1, -1)
        hidden_states = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, height, width)
        return self.norm(hidden_states)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        num_patches = (sizes["height"] // self.patch_size) * (sizes["width"] // self.patch_size)
        return {"num_tokens": self.config.num_prefix_tokens + num_patches}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        hidden_states = outputs["last_hidden_state"]
        block = self.layers[0].cost({"hidden_states": hidden_states}, {})  # type: ignore[operator]
        patches = 2 * hidden_states.numel() * self.patch_embeddings.weight[0].numel()
        return Cost(super().cost(inputs, outputs).num_bytes, patches + len(self.layers) * block.num_flops)
