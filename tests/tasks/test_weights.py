"""Loading: every parameter exactly once, or one message that names what is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from plain_noise import splitmix64
from safetensors.torch import load_file, save_file

from fastkernels.distributed.tensor_parallel import simulated_rank
from fastkernels.errors import CheckpointError, UnsupportedError
from fastkernels.tasks.baseline.L1.linear import Linear
from fastkernels.tasks.baseline.L4.llama import LlamaForCausalLM
from fastkernels.tasks.configs.llama import LlamaConfig, RopeScaling
from fastkernels.weights import load_weights, published_tensors, random_weights

Q0 = "model.layers.0.self_attn.q_proj.weight"


def published(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """A checkpoint of a model that is not split: its own tensors under the published names."""
    tensors = {}
    for name, target in published_tensors(model).items():
        shard = getattr(target.owner, "shard", None)
        if shard is None:
            tensors[name] = target.param.data.clone()
        else:
            part = shard(target.param.dim(), target.shard_id)
            tensors[name] = target.param.data.narrow(part.dim, part.offset, part.size).clone()
    return tensors


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = LlamaForCausalLM(LlamaConfig.tiny())
    random_weights(model, seed=3)
    save_file(published(model), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return tmp_path


def rewrite(directory: Path, changes: dict[str, torch.Tensor | None]) -> None:
    tensors: dict[str, torch.Tensor | None] = {**load_file(directory / "model.safetensors"), **changes}
    save_file({n: t for n, t in tensors.items() if t is not None}, directory / "model.safetensors")


def load(directory: Path, **changes: object) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig.tiny(**changes))
    for param in model.parameters():
        param.data.fill_(float("nan"))
    load_weights(model, directory)
    return model


def test_every_parameter_is_written(checkpoint: Path) -> None:
    model = load(checkpoint)
    assert all(param.isfinite().all() for param in model.parameters())
    stored = load_file(checkpoint / "model.safetensors")
    assert set(stored) == set(published_tensors(model))
    assert all(torch.equal(tensor, stored[name]) for name, tensor in published(model).items())


def test_missing_tensors_are_named(checkpoint: Path) -> None:
    rewrite(checkpoint, {Q0: None, "model.norm.weight": None})
    with pytest.raises(CheckpointError, match=rf"2 missing: {Q0}, model.norm.weight\."):
        load(checkpoint)


def test_extra_and_misshapen_tensors_are_named_together(checkpoint: Path) -> None:
    rewrite(checkpoint, {"model.layers.2.self_attn.q_proj.weight": torch.ones(2), Q0: torch.ones(64, 63)})
    with pytest.raises(CheckpointError) as caught:
        load(checkpoint)
    assert "1 extra: model.layers.2.self_attn.q_proj.weight" in str(caught.value)
    assert f"1 misshapen: {Q0} [64, 63] instead of [64, 64]" in str(caught.value)
    assert "missing" not in str(caught.value)


def test_a_shard_of_a_fused_parameter_must_have_its_own_shape(checkpoint: Path) -> None:
    rewrite(checkpoint, {"model.layers.1.self_attn.k_proj.weight": torch.ones(64, 64)})
    with pytest.raises(CheckpointError, match=r"k_proj.weight \[64, 64\] instead of \[32, 64\]"):
        load(checkpoint)


def test_long_lists_are_cut(checkpoint: Path) -> None:
    rewrite(checkpoint, {f"extra.{i}": torch.ones(1) for i in range(20)})
    with pytest.raises(CheckpointError, match=r"20 extra: .* and 12 more"):
        load(checkpoint)


def test_a_tensor_in_two_files_is_refused(checkpoint: Path) -> None:
    save_file({Q0: torch.ones(64, 64)}, checkpoint / "more.safetensors")
    with pytest.raises(CheckpointError, match=f"1 twice: {Q0}"):
        load(checkpoint)


def test_old_rotary_buffers_are_ignored(checkpoint: Path) -> None:
    rewrite(checkpoint, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    load(checkpoint)


def test_layers_prepare_their_weights_once_they_are_there(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that packs its weights runs in a served model as it did before the judge."""
    packed: list[torch.Tensor] = []
    monkeypatch.setattr(
        Linear, "process_weights_after_loading", lambda self: packed.append(self.weight.t().contiguous()), raising=False
    )
    model = load(checkpoint)
    linears = [module for module in model.modules() if isinstance(module, Linear)]
    assert len(packed) == len(linears) > 0
    assert all(torch.equal(one, linear.weight.t()) for one, linear in zip(packed, linears, strict=True))
    rewrite(checkpoint, {Q0: None})
    with pytest.raises(CheckpointError, match="1 missing"):
        load(checkpoint)
    assert len(packed) == len(linears)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool])
def test_integers_are_not_taken_for_weights(checkpoint: Path, dtype: torch.dtype) -> None:
    rewrite(checkpoint, {Q0: torch.ones(64, 64, dtype=dtype)})
    with pytest.raises(CheckpointError, match=rf"1 retyped: {Q0} {str(dtype)[6:]} instead of float32"):
        load(checkpoint)
    rewrite(checkpoint, {Q0: torch.ones(64, 64, dtype=torch.bfloat16)})
    load(checkpoint)


def test_of_tied_tensors_that_differ_the_embedding_counts(checkpoint: Path) -> None:
    stored = load_file(checkpoint / "model.safetensors")
    embedding, head = (stored[name] for name in ("model.embed_tokens.weight", "lm_head.weight"))
    assert not torch.equal(embedding, head)
    for names in (("model.embed_tokens.weight", "lm_head.weight"), ("lm_head.weight", "model.embed_tokens.weight")):
        model = LlamaForCausalLM(LlamaConfig.tiny(tie_word_embeddings=True))
        load_weights(model, [(n, stored[n]) for n in dict.fromkeys((*names, *stored))])
        assert torch.equal(model.lm_head.weight, embedding)


def test_tied_checkpoints_load_with_and_without_the_head(checkpoint: Path) -> None:
    with_head = load(checkpoint, tie_word_embeddings=True)
    rewrite(checkpoint, {"lm_head.weight": None})
    without = load(checkpoint, tie_word_embeddings=True)
    stored = load_file(checkpoint / "model.safetensors")["model.embed_tokens.weight"]
    assert without.lm_head.weight is without.model.embed_tokens.weight
    assert torch.equal(without.lm_head.weight, stored)
    assert torch.equal(with_head.lm_head.weight.isfinite(), torch.ones_like(stored, dtype=torch.bool))
    with pytest.raises(CheckpointError, match=r"1 missing: lm_head.weight"):
        load(checkpoint)


@pytest.mark.parametrize("num_bytes", [0, 5, 100, -1])
def test_a_truncated_file_is_named(checkpoint: Path, num_bytes: int) -> None:
    file = checkpoint / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:num_bytes])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated or not a safetensors file"):
        load(checkpoint)


def test_a_missing_shard_is_named(checkpoint: Path) -> None:
    weight_map = {Q0: "model-00002-of-00002.safetensors"}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00002.safetensors"):
        load(checkpoint)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": []}', "{}"])
def test_a_broken_index_is_named(checkpoint: Path, index: str) -> None:
    (checkpoint / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match=r"index.json is not an index"):
        load(checkpoint)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "has no config.json"),
        ("{", "cannot be read as JSON"),
        ("[]", "holds a list"),
        ('{"architectures": ["MixtralForCausalLM"]}', "is of MixtralForCausalLM, not of LlamaForCausalLM"),
    ],
)
def test_a_wrong_config_is_named(checkpoint: Path, config: str | None, message: str) -> None:
    path = checkpoint / "config.json"
    path.unlink()
    if config is not None:
        path.write_text(config)
    with pytest.raises(CheckpointError, match=message):
        load(checkpoint)


def test_one_architecture_may_stand_without_a_list(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"architectures": "LlamaForCausalLM"}))
    load(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({"architectures": "BertModel"}))
    with pytest.raises(CheckpointError, match="is of BertModel, not of LlamaForCausalLM"):
        load(checkpoint)


def test_a_directory_without_weights_is_named(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks any \*.safetensors file"):
        load(checkpoint)


def test_a_model_on_meta_is_refused(checkpoint: Path) -> None:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig.tiny())
    with pytest.raises(ValueError, match="to_empty"):
        load_weights(model, checkpoint)


def test_random_weights_depend_on_seed_and_name_alone() -> None:
    one, same, other = (LlamaForCausalLM(LlamaConfig.tiny()) for _ in range(3))
    random_weights(one, 7)
    torch.manual_seed(99)
    random_weights(same, 7)
    random_weights(other, 8)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    layers = one.model.layers
    assert not torch.equal(layers[0].mlp.down_proj.weight, layers[1].mlp.down_proj.weight)
    matrix = one.model.embed_tokens.weight.detach().double()
    assert abs(float(matrix.mean())) < 0.125 * 0.03
    assert float(matrix.std()) == pytest.approx(0.125, rel=0.02)


def test_random_weights_are_the_same_for_every_version_device_and_oracle() -> None:
    assert splitmix64(-0x9E3779B97F4A7C15, 1) == 0xE220A8397B1DCDAF  # SplitMix64's first output from seed 0
    name = "model.layers.0.self_attn.o_proj.weight"
    digest = hashlib.sha256(f"5:{name}".encode()).digest()
    seed = int.from_bytes(digest[:8], "little") >> 1
    model = LlamaForCausalLM(LlamaConfig.tiny())
    random_weights(model, 5)
    weight = model.model.layers[0].self_attn.o_proj.weight.detach()
    for place in (0, 1, 63, 64, 4095):
        bits = splitmix64(seed, place)
        total = sum(bits >> shift & 0xFFFF for shift in (0, 16, 32, 48)) - 2 * 0xFFFF
        expected = total * (3 / (2**32 - 1)) ** 0.5 / 8
        assert float(weight.flatten()[place]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("changes", [{}, {"vocab_size": 301, "num_key_value_heads": 1, "tie_word_embeddings": True},
                                     {"attention_bias": True, "mlp_bias": True}])  # fmt: skip
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_together_hold_the_full_tensors(size: int, changes: dict[str, object]) -> None:
    config = LlamaConfig.tiny(**changes)
    full = LlamaForCausalLM(config)
    random_weights(full, 1)
    checkpoint = published(full)
    covered = {name: torch.zeros(tensor.shape, dtype=torch.int64) for name, tensor in checkpoint.items()}
    for rank in range(size):
        with simulated_rank(rank, size):
            part = LlamaForCausalLM(config)
        for param in part.parameters():
            param.data.fill_(float("nan"))
        load_weights(part, checkpoint.items())
        drawn = LlamaForCausalLM.__new__(LlamaForCausalLM)
        with simulated_rank(rank, size):
            drawn.__init__(config)  # type: ignore[misc]
        random_weights(drawn, 1)
        assert all(torch.equal(a, b) for a, b in zip(part.parameters(), drawn.parameters(), strict=True))
        for name, target in published_tensors(part).items():
            shard = getattr(target.owner, "shard", None)
            if shard is None:
                assert torch.equal(target.param, checkpoint[name])
                covered[name] += 1
                continue
            place = shard(target.param.dim(), target.shard_id)
            ours = target.param.data.narrow(place.dim, place.offset, place.size)
            assert torch.equal(ours, checkpoint[name].narrow(place.dim, place.start, place.size))
            covered[name].narrow(place.dim, place.start, place.size).add_(1)
        assert all(param.isfinite().all() for param in part.parameters())
    for name, count in covered.items():
        is_replicated = "norm" in name or name.endswith(("o_proj.bias", "down_proj.bias"))
        kv_replicas = size // config.num_kv_heads if size > config.num_kv_heads else 1
        copies = size if is_replicated else kv_replicas if ".k_proj" in name or ".v_proj" in name else 1
        assert (count == copies).all(), name


def test_sizes_that_do_not_split_are_refused() -> None:
    with simulated_rank(0, 3), pytest.raises(ValueError, match="attention heads 4 cannot be split evenly over 3"):
        LlamaForCausalLM(LlamaConfig.tiny())


HF = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "torch_dtype": "bfloat16",
}
SCALING = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 500000.0, "rope_scaling": {**SCALING, "rope_type": "llama3"}},
        {"rope_theta": 500000.0, "rope_scaling": {**SCALING, "type": "llama3"}},
        {"rope_parameters": {**SCALING, "rope_type": "llama3", "rope_theta": 500000.0}},
    ],
)
def test_every_layout_of_config_json_is_the_8b_preset(rope: dict[str, object]) -> None:
    assert LlamaConfig.from_hf({**HF, **rope}) == LlamaConfig.llama_3_1_8b()


def test_bad_configurations_are_refused_with_the_value() -> None:
    with pytest.raises(UnsupportedError, match="'longrope' is not supported"):
        LlamaConfig.from_hf({**HF, "rope_scaling": {"type": "longrope", "factor": 2.0}})
    with pytest.raises(CheckpointError, match="yarn rope scaling lacks original_max_position_embeddings"):
        LlamaConfig.from_hf({**HF, "rope_scaling": {"type": "yarn", "factor": 2.0}})
    with pytest.raises(CheckpointError, match="lacks low_freq_factor, high_freq_factor"):
        LlamaConfig.from_hf({**HF, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}})
    with pytest.raises(CheckpointError, match="lacks vocab_size"):
        LlamaConfig.from_hf({n: v for n, v in HF.items() if n != "vocab_size"})
    with pytest.raises(CheckpointError, match="model_type 'mistral'"):
        LlamaConfig.from_hf({**HF, "model_type": "mistral"})
    with pytest.raises(ValueError, match="65 is no multiple of num_attention_heads 4"):
        LlamaConfig.tiny(hidden_size=65)
    with pytest.raises(ValueError, match="num_attention_heads 4 is no multiple of num_key_value_heads 3"):
        LlamaConfig.tiny(num_key_value_heads=3)
    with pytest.raises(UnsupportedError, match="'gelu' is not supported"):
        LlamaConfig.tiny(hidden_act="gelu")
    with pytest.raises(ValueError, match=r"0 < low_freq_factor < high_freq_factor, got 4.0 and 1.0"):
        RopeScaling(8.0, 4.0, 1.0, 64)
