"""Mixtures of experts: layouts of checkpoints, experts without a token, MXFP4 as transformers unpacks it, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from fastkernels.distributed.tensor_parallel import PartSource, TransposedSource, simulated_rank
from fastkernels.engine.llm import LLM
from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.oracles import gpt_oss, mixtral
from fastkernels.tasks.baseline.L1.mxfp4_moe import MXFP4MoE, dequantize_mxfp4
from fastkernels.tasks.baseline.L1.topk_softmax import TopKSoftmax
from fastkernels.tasks.baseline.L2.fused_experts import FusedExperts, expert_modules, split_stacked_experts
from fastkernels.tasks.configs.gpt_oss import GptOssConfig
from fastkernels.tasks.configs.mixtral import MixtralConfig

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 8,
    "head_dim": 4,
}


def test_mxfp4_weights_are_unpacked_as_transformers_does() -> None:
    blocks = torch.randint(256, (3, 10, 4, 16), dtype=torch.uint8)
    scales = torch.randint(1, 250, (3, 10, 4), dtype=torch.uint8)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    assert torch.equal(dequantize_mxfp4(blocks, scales, torch.float32), theirs)


def test_what_is_quantised_is_as_near_as_four_bits_allow() -> None:
    weight = torch.randn(2, 6, 96)
    unpacked = dequantize_mxfp4(*gpt_oss.quantize(weight), torch.float32)
    assert (unpacked - weight).abs().max() <= weight.abs().max() / 4
    assert 0.05 < ((unpacked - weight).square().mean() / weight.square().mean()).sqrt() < 0.2


@pytest.mark.parametrize("kind", ["silu", "swiglu_oai", "mxfp4"])
def test_one_token_and_experts_without_any(kind: str) -> None:
    """Each token alone gives what it gives among others, though then most experts have nothing to do."""
    torch.manual_seed(2)
    options: dict[str, Any] = {"silu": {}, "swiglu_oai": {"activation": "swiglu_oai", "bias": True}}.get(
        kind, {"activation": "swiglu_oai", "bias": True, "quant_config": "mxfp4"}
    )
    experts = FusedExperts(64, 2, 32, 32, **options)
    x = torch.randn(9, 32)
    weights, ids = TopKSoftmax(64, 2)(torch.randn(9, 64))
    together = experts(x, weights, ids)
    alone = torch.cat([experts(x[i : i + 1], weights[i : i + 1], ids[i : i + 1]) for i in range(9)])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)
    same = experts(x, torch.ones(9, 2) / 2, torch.full((9, 2), 5, dtype=torch.int32))
    assert torch.isfinite(same).all()
    assert not torch.allclose(same, together)


def test_stacked_experts_are_split_by_name_and_part() -> None:
    gate_up, down = torch.randn(3, 10, 4), torch.randn(3, 4, 5)
    split = dict(split_stacked_experts("a.experts.gate_up_proj", gate_up)) | dict(
        split_stacked_experts("a.experts.down_proj.weight", down)
    )
    assert len(split) == 9
    assert torch.equal(split["a.experts.2.up_proj.weight"].narrow(0, 1, 3), gate_up[2, 6:9])
    assert torch.equal(split["a.experts.0.gate_proj.weight"].narrow(1, 2, 1), gate_up[0, :5, 2:3])
    assert torch.equal(split["a.experts.1.down_proj.weight"].narrow(0, 0, 4), down[1])
    for name in ("a.experts.1.gate_up_proj.weight", "a.mlp.gate_up_proj.weight"):
        assert dict(split_stacked_experts(name, down)) == {name: down}
    assert PartSource(gate_up, 1, 5, 5).shape == (5, 4)
    turned = TransposedSource(gate_up)
    assert turned.shape == (3, 4, 10)
    assert torch.equal(turned.narrow(1, 1, 2), gate_up.transpose(1, 2)[:, 1:3])
    assert expert_modules(2)["w13"] == {"0.gate_proj": 0, "0.up_proj": 1, "1.gate_proj": 2, "1.up_proj": 3}


def test_configurations_that_do_not_fit_are_refused_with_the_value() -> None:
    with pytest.raises(UnsupportedError, match="sliding_window 4096 must be null"):
        MixtralConfig.from_hf({**SIZES, "sliding_window": 4096, "max_position_embeddings": 32768})
    assert MixtralConfig.from_hf({**SIZES, "sliding_window": None}).sliding_window is None
    assert MixtralConfig.from_hf({**SIZES, "sliding_window": 64, "max_position_embeddings": 64}).sliding_window == 64
    with pytest.raises(ValueError, match=r"num_experts_per_tok must be in \[1, num_local_experts 8\], got 9"):
        MixtralConfig.from_hf({**SIZES, "num_experts_per_tok": 9})
    with pytest.raises(CheckpointError, match="model_type 'llama', not 'mixtral'"):
        MixtralConfig.from_hf({**SIZES, "model_type": "llama"})
    with pytest.raises(UnsupportedError, match="quant_method 'awq' is not supported"):
        GptOssConfig.from_hf({**SIZES, "quantization_config": {"quant_method": "awq"}})
    with pytest.raises(ValueError, match="layer_types must name one of"):
        GptOssConfig.from_hf({**SIZES, "layer_types": ["chunked_attention"]})


def test_experts_that_cannot_be_split_or_packed_are_refused() -> None:
    with pytest.raises(ValueError, match="input_size 48 is no multiple"):
        MXFP4MoE(2, 48, 8)
    with simulated_rank(0, 2), pytest.raises(ValueError, match="intermediate_size 32 over 2 ranks is 16 each"):
        FusedExperts(2, 1, 32, 32, "swiglu_oai", quant_config="mxfp4")
    with simulated_rank(0, 2), pytest.raises(ValueError, match="intermediate_size 33 cannot be split evenly"):
        FusedExperts(2, 1, 32, 33)
    with pytest.raises(UnsupportedError, match="no activation 'gelu'"):
        FusedExperts(2, 1, 32, 32, "gelu")
    with pytest.raises(UnsupportedError, match="no quantisation 'fp8'"):
        FusedExperts(2, 1, 32, 32, quant_config="fp8")
    with pytest.raises(ValueError, match="each of 3 tokens to 2 experts"):
        FusedExperts(4, 2, 32, 32)(torch.ones(3, 32), torch.ones(3, 1), torch.ones(3, 1, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"top_k must be in \[1, num_experts 4\], got 5"):
        TopKSoftmax(4, 5)


def test_a_checkpoint_that_lacks_one_expert_is_refused_by_its_name(tmp_path: Path) -> None:
    oracle = mixtral.ORACLE
    oracle.save(oracle.build(oracle.tiny()["top2"], seed=1), tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.block_sparse_moe.experts.5.w3.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing: model.layers.1.block_sparse_moe.experts.5.w3.weight"):
        LLM(tmp_path, device="cpu")
