"""Two processes over gloo: the collectives, and a model whose layers are split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from paged_batches import PagedRun

from fastkernels.context import reference_mode
from fastkernels.distributed.tensor_parallel import (
    expert_parallel,
    kv_head_shard,
    padded_vocab_size,
    shard_size,
    simulated_rank,
    tp_rank,
    tp_size,
)
from fastkernels.engine.model import build_bare_model
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.errors import EnvironmentProblem, UsageError
from fastkernels.tasks.baseline.L1.allgather import AllGather
from fastkernels.tasks.baseline.L1.allreduce import AllReduce
from fastkernels.tasks.baseline.L2.fused_experts import FusedExperts
from fastkernels.tasks.baseline.L2.parallel_linear import ColumnParallelLinear, RowParallelLinear
from fastkernels.tasks.baseline.L4.gpt_oss import GptOssForCausalLM
from fastkernels.tasks.baseline.L4.llama import LlamaForCausalLM
from fastkernels.tasks.baseline.L4.mixtral import MixtralForCausalLM
from fastkernels.tasks.configs.gpt_oss import GptOssConfig
from fastkernels.tasks.configs.llama import LlamaConfig
from fastkernels.tasks.configs.mixtral import MixtralConfig
from fastkernels.weights import random_weights

CONFIGS = {
    "split": LlamaConfig.tiny(vocab_size=301, attention_bias=True, mlp_bias=True),
    "repeated": LlamaConfig.tiny(num_key_value_heads=1, tie_word_embeddings=True),
    "experts": MixtralConfig.tiny(num_local_experts=5),
    "sinks": GptOssConfig.tiny(quantization=None),
    "mxfp4": GptOssConfig.tiny(intermediate_size=64),
}
WHOLE_EXPERTS = {
    "odd": CONFIGS["experts"],
    "sinks": CONFIGS["sinks"],
    "mxfp4": GptOssConfig.tiny(num_local_experts=5),  # of 32 features each, which two ranks cannot split
}
MODELS: dict[type, type[Any]] = {
    LlamaConfig: LlamaForCausalLM,
    MixtralConfig: MixtralForCausalLM,
    GptOssConfig: GptOssForCausalLM,
}
PROMPTS = [list(range(3, 40)), [5], [159, 160, 161, 300, *range(290, 200, -7)]]  # 160: rank 1's first token


def logits_of(config: LlamaConfig, has_whole_experts: bool = False) -> list[torch.Tensor]:
    with expert_parallel(has_whole_experts):
        model = MODELS[type(config)](config)
    random_weights(model, 2)
    run = PagedRun(model, [[*p, 1] for p in PROMPTS], 64, seed=0)
    first = run.step({i: len(p) for i, p in enumerate(PROMPTS)})
    second = run.step({0: 1, 1: 1, 2: 1})
    return [*first.values(), *second.values()]


def linears() -> list[torch.Tensor]:
    column = ColumnParallelLinear(10, 6, bias=True, gather_output=True)
    row = RowParallelLinear(10, 6, bias=True, input_is_parallel=False)
    x = torch.arange(30.0).view(3, 10) / 10
    outputs = []
    for layer in (column, row):
        random_weights(layer, 4)
        outputs.append(layer(x)[0].detach())
    return outputs


def run_rank(rank: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/store", rank=rank, world_size=2)
    x = torch.arange(6, dtype=torch.bfloat16).view(2, 3) * (rank + 1)
    before = x.clone()
    with reference_mode():
        by_definition = AllReduce()(x)
    results = {
        "rank": (tp_rank(), tp_size()),
        "sum": AllReduce()(x),
        "by_definition": by_definition,
        "gathered": AllGather()(x),
        "is_unchanged": torch.equal(x, before),
        "linears": linears(),
        "logits": {name: logits_of(config) for name, config in CONFIGS.items()},
        "whole_experts": {name: logits_of(config, True) for name, config in WHOLE_EXPERTS.items()},
    }
    torch.save(results, f"{directory}/{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_compute_what_one_does(tmp_path: Path) -> None:
    mp.spawn(run_rank, (str(tmp_path),), nprocs=2)
    x = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    expected = {
        "logits": {name: logits_of(config) for name, config in CONFIGS.items()},
        "whole_experts": {name: logits_of(config) for name, config in WHOLE_EXPERTS.items()},
    }
    expected_linears = linears()
    for rank in range(2):
        got = torch.load(tmp_path / f"{rank}.pt")
        assert got["rank"] == (rank, 2)
        assert torch.equal(got["sum"], 3 * x)
        assert torch.equal(got["by_definition"], 3 * x)
        assert torch.equal(got["gathered"], torch.cat((x, 2 * x), dim=-1))
        assert got["is_unchanged"]
        for ours, one in zip(got["linears"], expected_linears, strict=True):
            torch.testing.assert_close(ours, one)
        for kind, name in ((kind, name) for kind, models in expected.items() for name in models):
            for ours, one in zip(got[kind][name], expected[kind][name], strict=True):
                assert ours.shape == one.shape
                assert (ours - one).abs().max() < 1e-5


def test_one_rank_needs_no_process_group() -> None:
    x = torch.ones(2, 3)
    assert (tp_rank(), tp_size()) == (0, 1)
    assert AllReduce()(x) is x
    assert AllGather()(x) is x


def test_a_split_layer_without_a_process_group_is_refused() -> None:
    with simulated_rank(1, 2), pytest.raises(EnvironmentProblem, match="over 2 ranks needs a process group"):
        AllReduce()(torch.ones(2))


def test_shard_arithmetic() -> None:
    assert shard_size(12, 4, "heads") == 3
    with pytest.raises(ValueError, match="heads 10 cannot be split evenly over 4 ranks"):
        shard_size(10, 4, "heads")
    assert [kv_head_shard(8, rank, 4) for rank in range(4)] == [(0, 2), (2, 2), (4, 2), (6, 2)]
    assert [kv_head_shard(2, rank, 4) for rank in range(4)] == [(0, 1), (0, 1), (1, 1), (1, 1)]
    assert [padded_vocab_size(*sizes) for sizes in ((301, 64, 1), (320, 64, 2), (128256, 64, 8), (7, 4, 3))] == [
        320,
        320,
        128256,
        12,
    ]
    with pytest.raises(ValueError, match="3 key-value heads cannot be shared evenly by 4 ranks; choose a divisor or a"):
        kv_head_shard(3, 0, 4)
    with pytest.raises(ValueError, match=r"rank must be in \[0, 2\), got 2"), simulated_rank(2, 2):
        pass


def test_experts_in_mxfp4_say_how_many_ranks_they_split_over() -> None:
    def build(ranks: int) -> FusedExperts:
        with simulated_rank(0, ranks):
            return FusedExperts(4, 2, 64, 192, activation="swiglu_oai", quant_config="mxfp4")

    assert build(3).intermediate_size_per_partition == 64
    with pytest.raises(ValueError, match=r"intermediate_size 192 over 4 ranks is 48 each.* that go are 1, 2, 3, 6"):
        build(4)


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("tiny-mamba2", "The number of groups 2 cannot be split evenly over 4 ranks; choose a divisor of 2"),
        ("tiny-gpt-oss", "numbers of ranks that go are 1"),
    ],
)
def test_a_model_that_does_not_split_names_the_option(preset: str, message: str) -> None:
    source = find_model(preset)
    with simulated_rank(0, 4), pytest.raises(UsageError, match=f"tensor_parallel_size is 4.*{preset}.*{message}"):
        build_bare_model(source, build_config(source), torch.float32, torch.device("meta"))
