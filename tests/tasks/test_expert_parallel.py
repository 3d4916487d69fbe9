"""Whole experts on each rank: what a rank reads of a checkpoint and holds, and sums that equal one rank's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastkernels.distributed.tensor_parallel import ep_size, expert_parallel, own_experts, simulated_rank
from fastkernels.engine.model import build_bare_model
from fastkernels.engine.model_source import build_config, find_model
from fastkernels.errors import UsageError
from fastkernels.oracles import gpt_oss, mixtral, qwen3_next
from fastkernels.oracles.language import LanguageOracle
from fastkernels.tasks.baseline.L1.topk_softmax import TopKSoftmax
from fastkernels.tasks.baseline.L2.fused_experts import FusedExperts
from fastkernels.tasks.baseline.L2.qwen3_next_moe import Qwen3NextMoE
from fastkernels.tasks.configs.qwen3_next import Qwen3NextConfig
from fastkernels.weights import load_weights, random_weights, read_checkpoint

LAYOUTS: dict[str, tuple[LanguageOracle, str, int]] = {
    "an expert a tensor": (mixtral.ORACLE, "top2", 8),
    "experts in one tensor": (mixtral.ORACLE, "stacked_experts", 3),
    "experts in one tensor, inputs first": (gpt_oss.ORACLE, "bf16_layout", 8),
    "MXFP4": (gpt_oss.ORACLE, "mxfp4", 5),
    "beside a shared expert": (qwen3_next.ORACLE, "grouped", 8),
}
KINDS: dict[str, dict[str, Any]] = {
    "silu": {},
    "swiglu_oai": {"activation": "swiglu_oai", "bias": True},
    "mxfp4": {"activation": "swiglu_oai", "bias": True, "quant_config": "mxfp4"},
}


@contextmanager
def rank_of(rank: int, size: int) -> Iterator[None]:
    with simulated_rank(rank, size), expert_parallel():
        yield


@dataclass
class Watched:
    """A checkpoint's tensor that notes which of its first axis are read."""

    tensor: Any
    read: set[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        self.read.update(range(start, start + length) if dim == 0 else range(self.shape[0]))
        found: Tensor = self.tensor.narrow(dim, start, length)
        return found


def bare(folder: Path) -> nn.Module:
    source = find_model(folder)
    model = build_bare_model(source, build_config(source), torch.float32, torch.device("cpu"))
    for param in model.parameters():
        param.data.fill_(77)
    return model


def mixtures(model: nn.Module) -> list[FusedExperts]:
    return [module for module in model.modules() if isinstance(module, FusedExperts)]


def test_experts_are_given_to_ranks_in_blocks() -> None:
    def shares(num_experts: int, size: int) -> list[range]:
        found = []
        for rank in range(size):
            with rank_of(rank, size):
                assert ep_size() == size
                found.append(own_experts(num_experts))
        return found

    assert shares(8, 2) == [range(4), range(4, 8)]
    assert shares(5, 3) == [range(2), range(2, 4), range(4, 5)]
    with expert_parallel():
        assert (ep_size(), own_experts(5)) == (1, range(5))
    with simulated_rank(1, 2):
        assert (ep_size(), own_experts(5)) == (1, range(5)), "Without it each rank has a slice of all."
    with rank_of(0, 4), pytest.raises(ValueError, match="3 experts do not give each of 4 ranks one; choose at most 3"):
        own_experts(3)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rank_reads_and_holds_its_own_experts_alone(name: str, tmp_path: Path) -> None:
    oracle, sizes, num_experts = LAYOUTS[name]
    oracle.save(oracle.build(oracle.tiny()[sizes], seed=1), tmp_path)
    whole = bare(tmp_path)
    load_weights(whole, tmp_path)
    held: list[int] = []
    for rank in range(2):
        with rank_of(rank, 2):
            part = bare(tmp_path)
        read: set[int] = set()
        others: set[int] = set()

        def sources(read: set[int] = read, others: set[int] = others) -> Iterator[tuple[str, Any]]:
            for tensor_name, tensor in read_checkpoint(tmp_path):
                _, is_routed, rest = tensor_name.partition(".experts.")
                number = rest.partition(".")[0]
                of_one: set[int] = set()
                yield tensor_name, Watched(tensor, others if not is_routed else of_one if number.isdigit() else read)
                if of_one:
                    read.add(int(number))

        with rank_of(rank, 2):
            load_weights(part, sources())
        first, *rest = mixtures(part)
        own = first.own_experts
        assert read == set(own), "No other expert's weights are read."
        assert all(one.own_experts == own for one in rest)
        held += own
        for ours, one in zip(mixtures(part), mixtures(whole), strict=True):
            for own_param, param in zip(ours.parameters(), one.parameters(), strict=True):
                assert own_param.shape == (len(own), *param.shape[1:])
                assert torch.equal(own_param, param[own.start : own.stop])
    assert held == list(range(num_experts))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_experts", "size"), [(8, 2), (5, 2), (5, 3)])
def test_ranks_together_give_what_one_gives(num_experts: int, size: int, kind: str) -> None:
    """Biases are added once, experts without tokens and ranks without any change nothing."""
    torch.manual_seed(3)
    arguments = (num_experts, 2, 32, 64)
    whole = FusedExperts(*arguments, **KINDS[kind])
    random_weights(whole, 5)
    x = torch.randn(11, 32)
    weights, ids = TopKSoftmax(num_experts, 2)(torch.randn(11, num_experts))
    alone = torch.tensor([[0, 1]], dtype=torch.int32).expand(11, 2).contiguous()
    parts = []
    for rank in range(size):
        with rank_of(rank, size):
            parts.append(FusedExperts(*arguments, **KINDS[kind]))
        random_weights(parts[-1], 5)
    for chosen in (ids, alone):
        total = torch.stack([part(x, weights, chosen) for part in parts]).sum(0)
        torch.testing.assert_close(total, whole(x, weights, chosen), rtol=1e-5, atol=1e-6)
    assert (parts[-1](x, weights, alone) == 0).all(), "It holds none of the experts that were chosen."
    num_weights = [sum(p.numel() for p in part.parameters()) for part in parts]
    assert sum(num_weights) == sum(p.numel() for p in whole.parameters())
    assert [n * num_experts for n in num_weights] == [sum(num_weights) * part.num_local_experts for part in parts]
    inputs = {"hidden_states": x, "topk_weights": weights, "topk_ids": ids}
    costs = [part.cost(inputs, {}).num_flops for part in parts]
    assert sum(costs) == whole.cost(inputs, {}).num_flops
    assert whole.cost_of_routed(30).num_bytes == pytest.approx(
        sum(p.cost_of_routed(30).num_bytes for p in parts), abs=9
    )


def test_a_shared_expert_stays_split_by_features() -> None:
    config = Qwen3NextConfig.tiny()
    with rank_of(1, 2):
        block = Qwen3NextMoE(config)
    assert block.experts.own_experts == range(4, 8)
    assert block.experts.intermediate_size_per_partition == config.moe_intermediate_size
    shared = block.shared_expert.down_proj.weight
    assert shared.shape == (config.hidden_size, config.shared_expert_intermediate_size // 2)


def test_experts_know_their_ranks_after_leaving_the_meta_device() -> None:
    with rank_of(1, 3), torch.device("meta"):
        experts = FusedExperts(7, 2, 32, 48)
    experts.to_empty(device="cpu")
    assert experts.expert_map is not None
    assert experts.expert_map.tolist() == [-1, -1, -1, 0, 1, -1, -1]


def test_mxfp4_experts_that_no_slice_fits_are_held_whole() -> None:
    source = find_model("tiny-gpt-oss")
    meta = (build_config(source), torch.float32, torch.device("meta"))
    with simulated_rank(0, 2), pytest.raises(UsageError, match="ranks that go are 1, or any with enable_expert_par"):
        build_bare_model(source, *meta)
    with rank_of(0, 2):
        assert [one.num_local_experts for one in mixtures(build_bare_model(source, *meta))] == [4, 4]
