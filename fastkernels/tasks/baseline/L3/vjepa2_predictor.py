"""V-JEPA 2's predictor: what the encoder would say of patches that it is not shown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.gather_tokens import GatherTokens
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L3.vjepa2_layer import VJEPA2Layer
from fastkernels.tasks.configs.vjepa2 import VJEPA2Config

_MASK_INDEX = 1  # the learned token that stands for a target
_INDEX = {"dtype": "int64", "role": Role.INDEX, "bound": "num_patches"}


class VJEPA2Predictor(Op):
    """proj(layernorm(layers([embed(context), mask token at each target])))[:, targets].

    Tokens keep the order in which they are asked for: their places are told to the layers, which see all of them.

    Shapes:  encoder_hidden_states: [batch, num_patches, hidden_size]; context_mask: [batch, num_context], target_mask:
             [batch, num_targets] int64, numbers of patches; predicted: [batch, num_targets, hidden_size].
    Dtypes:  bf16, fp16 or fp32; norms and softmax in fp32.
    Returns: predicted. No argument is written to.
    Errors:  those of its parts.
    Source:  Assran et al. 2025 (https://arxiv.org/abs/2506.09985); signature as transformers' VJEPA2Predictor, of one
             mask each.
    """

    spec = OpSpec(
        inputs={
            "encoder_hidden_states": TensorSpec(("batch", "num_patches", "hidden_size")),
            "context_mask": TensorSpec(("batch", "num_context"), **_INDEX),  # type: ignore[arg-type]
            "target_mask": TensorSpec(("batch", "num_targets"), **_INDEX),  # type: ignore[arg-type]
        },
        outputs={"predicted": TensorSpec(("batch", "num_targets", "hidden_size"))},
        examples=(
            {"config": VJEPA2Config.tiny()},
            {"config": VJEPA2Config.tiny(hidden_size=50, pred_hidden_size=54, pred_num_attention_heads=3)},
        ),
        example_axes={"batch": (2, 1), "num_patches": (32, 50), "num_context": (11, 3), "num_targets": (5, 40)},
    )

    def __init__(self, config: VJEPA2Config, prefix: str = "") -> None:
        super().__init__()
        self.hidden_size = config.hidden_size
        size = config.pred_hidden_size
        self.gather_tokens = GatherTokens()
        self.embed = Linear(config.hidden_size, size)
        self.mask_tokens = nn.Parameter(torch.empty(config.pred_num_mask_tokens, 1, 1, size).normal_(std=0.02))
        self.layers = nn.ModuleList(
            VJEPA2Layer(
                config, size, config.pred_num_attention_heads, config.pred_mlp_ratio, prefix=f"{prefix}.layers.{i}"
            )
            for i in range(config.pred_num_hidden_layers)
        )
        self.layernorm = LayerNorm(size, config.layer_norm_eps)
        self.proj = Linear(size, config.hidden_size)

    def forward(self, encoder_hidden_states: Tensor, context_mask: Tensor, target_mask: Tensor) -> Tensor:
        context = self.embed(self.gather_tokens(encoder_hidden_states, context_mask))
        target = self.mask_tokens[_MASK_INDEX % len(self.mask_tokens)].expand(*target_mask.shape, -1)
        hidden_states = torch.cat([context, target], dim=1)
        positions = torch.cat([context_mask, target_mask], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, positions)
        return self.proj(self.layernorm(hidden_states[:, context_mask.shape[1] :]))

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Patches that are not asked for need not be read."""
        context, target = inputs["context_mask"], inputs["target_mask"]
        num_bytes = super().cost({"context_mask": context, "target_mask": target}, outputs).num_bytes
        num_bytes += context.numel() * self.hidden_size * inputs["encoder_hidden_states"].element_size()
        num_tokens = context.shape[1] + target.shape[1]
        tokens = torch.empty(len(context), num_tokens, self.embed.output_size, device="meta")
        layer = self.layers[0].cost({"hidden_states": tokens}, {}).num_flops  # type: ignore[operator]
        ends = 2 * (context.numel() + target.numel()) * self.embed.weight.numel()
        return Cost(num_bytes, len(self.layers) * layer + ends)
