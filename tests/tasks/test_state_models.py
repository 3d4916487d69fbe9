"""Models that keep a state a request: tokens by any batching, ranks that split heads, what a checkpoint may hold."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from paged_batches import PagedRun
from torch import nn

from fastkernels.distributed.tensor_parallel import simulated_rank
from fastkernels.engine.llm import LLM
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.engine.sampling_params import SamplingParams
from fastkernels.errors import CheckpointError, UnsupportedError, UsageError
from fastkernels.oracles.mamba2 import ORACLE, GroupedNorm
from fastkernels.oracles.oracle import prompts
from fastkernels.tasks.baseline.L4.mamba2 import Mamba2ForCausalLM
from fastkernels.tasks.baseline.L4.qwen3_next import Qwen3NextForCausalLM
from fastkernels.tasks.configs.mamba2 import Mamba2Config
from fastkernels.tasks.configs.qwen3_next import Qwen3NextConfig
from fastkernels.weights import random_weights

MODELS = ["tiny-mamba2", "tiny-qwen3_next"]
LENGTHS = (1, 2, 17, 63, 64, 65, 97, 127)


def tokens_of(model: str, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> tuple[list[list[int]], int]:
    """Greedy tokens of prompts of these lengths, which run together, and how often one was preempted."""
    llm = LLM(model, device="cpu", enable_prefix_caching=False, **options)
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    outputs = llm.generate(prompts(lengths, 512), params)  # type: ignore[arg-type]
    return [output.outputs[0].token_ids for output in outputs], llm.core.stats().num_preemptions


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_tokens_do_not_depend_on_how_prompts_are_cut_or_batched(model: str) -> None:
    together, _ = tokens_of(model)
    assert len({tuple(tokens) for tokens in together}) > 1
    for chunk in (1, 7, 64):
        assert tokens_of(model, max_num_batched_tokens=chunk)[0] == together
    assert tokens_of(model, max_num_seqs=1)[0] == together
    assert tokens_of(model, max_num_seqs=3, max_num_batched_tokens=32)[0] == together


def test_a_preempted_request_of_pages_and_states_begins_again() -> None:
    lengths = (15, 16, 14, 15, 13, 16, 15)
    free, none = tokens_of("tiny-qwen3_next", lengths)
    tight, num_preemptions = tokens_of("tiny-qwen3_next", lengths, page_size=4, num_pages=25)
    assert none == 0 < num_preemptions
    assert tight == free


@pytest.mark.parametrize(
    ("dtype", "asked", "wanted"),
    [("bfloat16", "auto", torch.bfloat16), ("bfloat16", "float32", torch.float32), ("float32", "auto", torch.float32)],
)
def test_states_of_mamba2_are_of_the_activations_dtype_unless_asked(
    dtype: str, asked: str, wanted: torch.dtype
) -> None:
    llm = LLM("tiny-mamba2", device="cpu", dtype=dtype, mamba_ssm_cache_dtype=asked)
    conv, ssm = llm.core.executor.model.backbone.layers[0].mixer.kv_cache  # type: ignore[attr-defined]
    assert (conv.dtype, ssm.dtype) == (torch.float32 if dtype == "float32" else torch.bfloat16, wanted)
    [output] = llm.generate([[5, 6, 7]], SamplingParams(temperature=0, max_tokens=20, ignore_eos=True))
    assert len(output.outputs[0].token_ids) == 20


def test_a_dtype_of_states_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match="mamba_ssm_cache_dtype is 'fp8'; it can be auto, float32, bfloat16"):
        LLM("tiny-mamba2", device="cpu", mamba_ssm_cache_dtype="fp8")


CONFIGS: dict[str, Any] = {
    "mamba2": Mamba2Config.tiny(vocab_size=302, use_bias=True),
    "qwen3_next": Qwen3NextConfig.tiny(vocab_size=302, mlp_only_layers=(2,)),
    "mamba2 tied": Mamba2Config.tiny(num_heads=8, head_dim=8, n_groups=4, tie_word_embeddings=True),
}
SEQUENCES = [list(range(3, 40)), [5], [159, 160, 161, 300, *range(290, 200, -7)]]


def built(name: str) -> nn.Module:
    return (Qwen3NextForCausalLM if name.startswith("qwen") else Mamba2ForCausalLM)(CONFIGS[name])


def logits_of(name: str) -> list[torch.Tensor]:
    model = built(name)
    random_weights(model, 2)
    run = PagedRun(model, [[*p, 1, 7] for p in SEQUENCES], 64, seed=0)
    steps = [run.step({0: 20, 1: 1}), run.step({1: 1, 0: 17, 2: len(SEQUENCES[2])}), run.step({0: 1, 1: 1, 2: 1})]
    return [logits for step in steps for logits in step.values()]


def run_rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    torch.save({name: logits_of(name) for name in CONFIGS}, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def test_states_that_do_not_fit_are_refused_before_they_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    free = 100 * 2**20
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free))
    with pytest.raises(
        UnsupportedError, match=r"A request's states take \d.*lower max_num_seqs to at most \d+"
    ) as caught:
        LLM("tiny-mamba2", device="cpu", max_num_seqs=100_000)
    most = int(str(caught.value).rstrip(".").rpartition(" ")[2])
    llm = LLM("tiny-mamba2", device="cpu", max_num_seqs=most)
    assert 0.99 * free < llm.core.info.cache_bytes <= free


@pytest.mark.slow
def test_two_ranks_that_split_heads_and_groups_compute_what_one_does(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)
    for name in CONFIGS:
        expected = logits_of(name)
        for rank in range(2):
            for ours, one in zip(torch.load(tmp_path / f"{rank}.pt")[name], expected, strict=True):
                assert ours.shape == one.shape
                assert (ours - one).abs().max() < 1e-5 * one.abs().max()


def test_groups_that_do_not_split_over_ranks_are_refused() -> None:
    with simulated_rank(0, 4), pytest.raises(ValueError, match="number of groups 2 cannot be split evenly over 4"):
        Mamba2ForCausalLM(Mamba2Config.tiny())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"num_heads": 5}, CheckpointError, "num_heads \\* head_dim is 80"),
        ({"n_groups": 3}, CheckpointError, "no multiple of n_groups 3"),
        ({"hidden_act": "gelu"}, UnsupportedError, "hidden_act 'gelu'"),
        ({"rms_norm": False}, UnsupportedError, "rms_norm false"),
        ({"model_type": "mamba"}, CheckpointError, "model_type 'mamba'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    sizes = {"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 32, "num_heads": 4}
    sizes |= {"head_dim": 16, "n_groups": 2, "num_hidden_layers": 1, "vocab_size": 512, **changes}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(error, match=message):
        LLM(tmp_path / "config.json", device="cpu")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"linear_num_key_heads": 3}, CheckpointError, "linear_num_value_heads 32 is no multiple"),
        ({"layer_types": ["full_attention"]}, CheckpointError, "names 1 of 48 layers"),
        ({"num_experts_per_tok": 513}, CheckpointError, "num_experts_per_tok 513"),
        ({"partial_rotary_factor": 0.001}, CheckpointError, "turns 0 dimensions"),
        ({"layer_types": ["sliding_attention"] * 48}, UnsupportedError, "'sliding_attention'"),
        ({"model_type": "qwen3"}, CheckpointError, "model_type 'qwen3'"),
    ],
)
def test_a_configuration_of_qwen3_next_that_cannot_be_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    sizes = {"architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next", **changes}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    with pytest.raises(error, match=message):
        LLM(tmp_path / "config.json", device="cpu")


def test_the_sizes_of_published_checkpoints_are_those_of_the_presets() -> None:
    for name, num_parameters in (("mamba-codestral-7b", 7.29e9), ("qwen3-next-80b-a3b", 79.67e9)):
        source = find_model(name)
        with torch.device("meta"):
            config = build_config(source)
            model = (Qwen3NextForCausalLM if name.startswith("qwen") else Mamba2ForCausalLM)(config)
        assert sum(p.numel() for p in model.parameters()) == pytest.approx(num_parameters, rel=1e-3)


def test_predicted_tokens_of_a_checkpoint_are_left_out_and_projections_are_regrouped() -> None:
    model = Qwen3NextForCausalLM(Qwen3NextConfig.tiny())
    assert list(model.convert_weight("mtp.fc.weight", torch.zeros(1))) == []
    rows = torch.arange(2 * (16 + 16 + 48 + 48)).view(-1, 1).float()
    ((_, source),) = model.convert_weight("model.layers.0.linear_attn.in_proj_qkvz.weight", rows)
    assert source.shape == (256, 1)
    wanted = [*range(0, 16), *range(128, 144), *range(16, 32), *range(144, 160)]  # both queries, then both keys
    assert source.narrow(0, 0, 64).flatten().tolist() == wanted
    assert source.narrow(0, 64, 3).flatten().tolist() == [32, 33, 34]


def test_an_infinite_step_limit_is_read_however_it_is_written() -> None:
    for written in ([0.0, float("inf")], [0.0, {"__float__": "Infinity"}]):
        assert Mamba2Config.from_hf({"time_step_limit": written}).time_step_limit == (0.0, float("inf"))


def test_the_library_norms_groups_whichever_version_it_is() -> None:
    sizes = ORACLE.tiny()["groups"]
    norm: Any = ORACLE.build(sizes, seed=1).backbone.layers[0].mixer.norm  # type: ignore[union-attr,index]
    x, gate = torch.randn(2, 3, 5, norm.weight.numel())
    assert torch.equal(GroupedNorm(norm, sizes["n_groups"])(x, gate), norm(x, gate))
