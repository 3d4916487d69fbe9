"""LayerNorm on a residual, and the layers that give it their sum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from op_inputs import make_inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.cache import bind_caches
from fastkernels.context import Phase, set_forward_context
from fastkernels.env import triton_interpreted
from fastkernels.op import Op
from fastkernels.tasks.alternatives.torch_native.L1.layer_norm import LayerNorm as TorchNative
from fastkernels.tasks.baseline.L1.layer_norm import LayerNorm
from fastkernels.tasks.baseline.L2.encoder_attention import EncoderAttention
from fastkernels.tasks.baseline.L2.encoder_mlp import EncoderMLP
from fastkernels.tasks.baseline.L2.xlm_roberta_embeddings import XLMRobertaEmbeddings
from fastkernels.tasks.baseline.L3.clip_encoder_layer import CLIPEncoderLayer
from fastkernels.tasks.baseline.L3.eva_block import EvaBlock
from fastkernels.tasks.baseline.L3.transformer2d import BasicTransformerBlock
from fastkernels.tasks.baseline.L3.vision_block import VisionBlock
from fastkernels.tasks.baseline.L3.vjepa2_layer import VJEPA2Layer
from fastkernels.tasks.baseline.L3.vjepa2_pooler import VJEPA2PoolerCrossAttentionLayer
from fastkernels.tasks.baseline.L3.whisper_decoder_layer import WhisperDecoderLayer
from fastkernels.tasks.baseline.L3.whisper_encoder_layer import WhisperEncoderLayer
from fastkernels.tasks.baseline.L4.whisper import WhisperDecoder


@pytest.mark.parametrize("op_class", [LayerNorm, TorchNative])
@pytest.mark.parametrize("is_scaled", [False, True])
@pytest.mark.parametrize("returns_sum", [False, True])
def test_of_a_residual_it_is_the_norm_of_the_sum(op_class: type[LayerNorm], is_scaled: bool, returns_sum: bool) -> None:
    torch.manual_seed(0)
    op = op_class(37, returns_sum=returns_sum)
    op.weight.data.normal_()
    op.bias.data.normal_()
    x, residual = torch.randn(2, 3, 5, 37)
    scale = torch.randn(37) if is_scaled else None
    total = residual + (x if scale is None else x * scale)
    wanted = torch.nn.functional.layer_norm(total, (37,), op.weight, op.bias, op.eps)
    given = op(x, residual, scale)
    y, new_residual = given if returns_sum else (given, total)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(new_residual, total, rtol=1e-6, atol=1e-6)


def test_a_residual_of_another_shape_and_a_scale_of_nothing_are_refused() -> None:
    op, x = LayerNorm(8), torch.randn(3, 8)
    with pytest.raises(ValueError, match="a scale and no residual"):
        op(x, scale=x[0])
    for residual in (x[:1], x[0], torch.randn(3, 9)):
        with pytest.raises(ValueError, match=r"x of \(3, 8\) to a residual of"):
            op(x, residual)


def test_a_layer_of_whisper_takes_the_pending_sum_and_leaves_its_own() -> None:
    torch.manual_seed(0)
    op = WhisperDecoderLayer(32, 4, 48)
    inputs = make_inputs(op, Phase.PREFILL)
    bind_caches(op, inputs.caches)
    x, states, residual = (inputs.kwargs[n] for n in ("hidden_states", "encoder_hidden_states", "residual"))
    with torch.no_grad(), set_forward_context(inputs.context):
        y, new_residual = op(x, states, residual)
        torch.testing.assert_close(y + new_residual, op(x + residual, states), rtol=1e-5, atol=1e-5)


class _Sums(TorchDispatchMode):
    """Counts torch's sums of tensors of one shape."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape, self.num = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        is_sum = func in (torch.ops.aten.add.Tensor, torch.ops.aten.addcmul.default)
        self.num += is_sum and all(isinstance(t, Tensor) and t.shape == self.shape for t in args[:2])
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(triton_interpreted(), reason="names what would be compiled, which TRITON_INTERPRET=1 does not")
@pytest.mark.parametrize(
    ("op_class", "most"),
    [
        *((cls, 0) for cls in (EncoderAttention, EncoderMLP, XLMRobertaEmbeddings, EvaBlock, WhisperDecoder)),
        *((cls, 1) for cls in (CLIPEncoderLayer, VisionBlock, VJEPA2Layer, VJEPA2PoolerCrossAttentionLayer)),
        *((cls, 1) for cls in (WhisperEncoderLayer, BasicTransformerBlock)),
    ],
)
def test_a_sum_ahead_of_a_norm_is_the_norms(op_class: type[Op], most: int) -> None:
    """On a GPU a layer's last sum alone is torch's."""
    pytest.importorskip("triton")
    from fastkernels.kernels.ahead import TensorsOnGpu, naming_for

    op = op_class(**op_class.spec.examples[0])
    phases = {"query_start_loc", "positions"} & set(op.spec.inputs) or op.spec.reads_context
    inputs = make_inputs(op, Phase.PREFILL if phases else None)
    bind_caches(op, inputs.caches)
    with torch.inference_mode(), set_forward_context(inputs.context):
        y = op(**inputs.kwargs)
        with TensorsOnGpu(), naming_for(), _Sums((y[0] if isinstance(y, tuple) else y).shape) as sums:
            op(**inputs.kwargs)
    assert sums.num == most
