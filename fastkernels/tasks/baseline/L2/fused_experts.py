"""The experts of a mixture, each token through the few it was sent to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.context import uses_reference
from fastkernels.distributed.sharded_layer import Shard, ShardedLayer, ShardId
from fastkernels.distributed.tensor_parallel import (
    PartSource,
    WeightSource,
    ep_size,
    own_experts,
    shard_size,
    tp_rank,
    tp_size,
)
from fastkernels.errors import UnsupportedError
from fastkernels.op import Op
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec
from fastkernels.tasks.baseline.L1.moe_align import MoEAlign
from fastkernels.tasks.baseline.L1.moe_grouped_gemm import MoEGroupedGemm
from fastkernels.tasks.baseline.L1.moe_sum import MoESum
from fastkernels.tasks.baseline.L1.mxfp4_moe import MXFP4MoE
from fastkernels.tasks.baseline.L1.silu_and_mul import SiluAndMul
from fastkernels.tasks.baseline.L1.swiglu_oai_and_mul import SwigluOAIAndMul

_HIDDEN = TensorSpec(("num_tokens", "hidden_size"))
_MXFP4_BLOCK = 32
"""Inputs under one scale."""


def expert_modules(
    num_experts: int, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> dict[str, dict[str, ShardId]]:
    """packed_modules of FusedExperts where a checkpoint names each expert's matrices: "experts.3.gate_proj.weight"."""
    halves = {f"{e}.{name}": 2 * e + half for e in range(num_experts) for half, name in enumerate((gate, up))}
    return {"w13": dict(halves), "w2": {f"{e}.{down}": e for e in range(num_experts)}}


def split_stacked_experts(
    name: str, source: WeightSource, gate: str = "gate_proj", up: str = "up_proj", down: str = "down_proj"
) -> Iterator[tuple[str, WeightSource]]:
    """A tensor of all experts ("experts.gate_up_proj", gates above ups) as each expert's; any other as it is."""
    stem, _, last = name.removesuffix(".weight").rpartition(".")
    if not stem.endswith("experts") or last not in ("gate_up_proj", "down_proj") or len(source.shape) != 3:
        yield name, source
        return
    half = source.shape[1] // 2
    for expert in range(source.shape[0]):
        matrix = PartSource(source, expert)
        if last == "down_proj":
            yield f"{stem}.{expert}.{down}.weight", matrix
        else:
            yield f"{stem}.{expert}.{gate}.weight", PartSource(source, expert, 0, half)
            yield f"{stem}.{expert}.{up}.weight", PartSource(source, expert, half, source.shape[1] - half)


class _ExpertShards(ShardedLayer):
    """One matrix an expert, its inputs (is_down) or outputs split over the ranks; its sums are partial if is_down.

    Under expert parallelism it holds whole matrices, of this rank's experts alone. A shard id is the number of an
    expert among all (is_down), or twice that, plus 1 for its upper half; None is all of them.
    """

    inner = "gemm"
    parameter_names: tuple[str, ...] = ("weight", "bias")  # type: ignore[misc]  # of the instance, by its weights' form

    def __init__(self, gemm: MoEGroupedGemm | MXFP4MoE, num_experts: int, is_down: bool, num_halves: int) -> None:
        super().__init__()
        if isinstance(gemm, MXFP4MoE):
            self.parameter_names = ("weight_blocks", "weight_scales", "bias")
        self.tp_rank, self.tp_size = (tp_rank(), tp_size()) if ep_size() == 1 else (0, 1)
        self.num_experts = num_experts
        self.experts = own_experts(num_experts)
        self.gemm = gemm
        self.is_down = is_down
        self.num_halves = num_halves

    def forward(self, x: Tensor, alignment: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return self.gemm(x, *alignment)

    @property
    def weight_blocks(self) -> nn.Parameter:
        return self.gemm.weight_blocks  # type: ignore[return-value]

    @property
    def weight_scales(self) -> nn.Parameter:
        return self.gemm.weight_scales  # type: ignore[return-value]

    def published_names(self) -> dict[str, str]:
        return {f"{self.inner}.{name}": name for name in self.parameter_names}

    def _shard_of(self, param: Tensor) -> Shard:
        """Of the tensor without its axis of experts."""
        if self.is_down and param.dim() == 2:
            return Shard(0, param.shape[1], 0, param.shape[1])
        dim = 1 if self.is_down else 0
        size = param.shape[1 + dim] // self.num_halves
        return Shard(dim, size * self.tp_size, self.tp_rank * size, size)

    def checkpoint_shape(self, param: Tensor, shard_id: ShardId = None) -> tuple[int, ...]:
        shard = self._shard_of(param)
        num_halves = 1 if shard_id is not None else self.num_halves
        one = tuple(num_halves * shard.full_size if d == shard.dim else n for d, n in enumerate(param.shape[1:]))
        return one if shard_id is not None else (self.num_experts, *one)

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        shard = self._shard_of(param)
        if self.is_down and param.dim() == 2 and self.tp_rank:
            param.data.zero_()  # added once, by rank 0
        elif shard_id is not None:
            expert, half = divmod(int(shard_id), self.num_halves)
            if expert in self.experts:
                place = param.data[expert - self.experts.start].narrow(shard.dim, half * shard.size, shard.size)
                place.copy_(loaded_weight.narrow(shard.dim, shard.start, shard.size))
        elif self.tp_size == 1:
            param.data.copy_(loaded_weight.narrow(0, self.experts.start, len(self.experts)))
        else:
            for half in range(self.num_halves):
                place = param.data.narrow(1 + shard.dim, half * shard.size, shard.size)
                place.copy_(loaded_weight.narrow(1 + shard.dim, half * shard.full_size + shard.start, shard.size))


def align_block_size(num_slots: int, num_experts: int) -> int:
    """Rows of a tile: about as many as an expert gets, for what is filled up is computed too; some more, for a second
    tile reads the weights again."""
    share = num_slots // num_experts
    return 16 if share <= 12 else 32 if share <= 48 else 64 if share <= 128 else 128


def _features_of_rank(intermediate_size: int, quant_config: str | None) -> int:
    """Errors: ValueError when they do not split evenly, or not between the blocks of MXFP4."""
    if ep_size() > 1:
        return intermediate_size
    size = shard_size(intermediate_size, tp_size(), "intermediate_size")
    num_blocks, rest = divmod(intermediate_size, _MXFP4_BLOCK)
    if quant_config is not None and not rest and size % _MXFP4_BLOCK:
        possible = ", ".join(str(ranks) for ranks in range(1, num_blocks + 1) if num_blocks % ranks == 0)
        raise ValueError(
            f"intermediate_size {intermediate_size} over {tp_size()} ranks is {size} each, and MXFP4 keeps blocks of "
            f"{_MXFP4_BLOCK} whole; numbers of ranks that go are {possible}, or any with enable_expert_parallel, which "
            "splits no expert."
        )
    return size


def _numbers_here(num_experts: int, own: range, device: torch.device | None = None) -> Tensor:
    """[num_experts] int32: each expert's number among a rank's own, or -1."""
    numbers = torch.full((num_experts,), -1, dtype=torch.int32, device=device)
    numbers[own.start : own.stop] = torch.arange(len(own), dtype=torch.int32, device=device)
    return numbers


class FusedExperts(Op):
    """y[i] = sum over j of topk_weights[i, j] * w2[e] @ act(w13[e] @ hidden_states[i]), e = topk_ids[i, j].

    w13 holds each expert's gate above its up projection with activation "silu", their rows in turn with "swiglu_oai".
    quant_config "mxfp4" keeps both as MXFP4MoE does. Over several ranks the experts' intermediate features are split;
    with expert parallelism a rank holds num_experts / ranks of them whole, and leaves out slots of the others. Either
    way y is this rank's part of the sum: who calls adds the ranks'.

    Shapes:  hidden_states, y: [num_tokens, hidden_size]; topk_weights, topk_ids: [num_tokens, top_k], of all experts;
             w13.weight: [num_local_experts, 2 * intermediate_size_per_partition, hidden_size]; w2.weight:
             [num_local_experts, hidden_size, intermediate_size_per_partition].
    Dtypes:  hidden_states and weights alike, bf16, fp16 or fp32; topk_weights fp32; topk_ids int32.
    Returns: y. No argument is written to.
    Errors:  UnsupportedError for another activation or quantisation; ValueError when intermediate_size does not split
             over the ranks, in MXFP4 by whole blocks of 32, when a rank would hold no whole expert, or a token has not
             top_k experts.
    Source:  Fedus et al. 2021 (https://arxiv.org/abs/2101.03961); arguments as vLLM's fused_experts.
    """

    spec = OpSpec(
        inputs={
            "hidden_states": _HIDDEN.strided(),
            "topk_weights": TensorSpec(("num_tokens", "top_k"), dtype="float32", role=Role.COUPLED),
            "topk_ids": TensorSpec(("num_tokens", "top_k"), dtype="int32", role=Role.COUPLED, bound="num_experts"),
        },
        outputs={"y": _HIDDEN},
        examples=(
            {"num_experts": 8, "top_k": 2, "hidden_size": 64, "intermediate_size": 48},
            {"num_experts": 37, "top_k": 5, "hidden_size": 51, "intermediate_size": 29, "bias": True},
            {
                **{"num_experts": 5, "top_k": 2, "hidden_size": 64, "intermediate_size": 32, "bias": True},
                **{"activation": "swiglu_oai", "quant_config": "mxfp4"},
            },
        ),
    )

    def __init__(
        self,
        num_experts: int,
        top_k: int,
        hidden_size: int,
        intermediate_size: int,
        activation: str = "silu",
        bias: bool = False,
        quant_config: str | None = None,
        prefix: str = "",
        swiglu_alpha: float = 1.702,
        swiglu_limit: float = 7.0,
    ) -> None:
        super().__init__()
        if activation not in ("silu", "swiglu_oai"):
            raise UnsupportedError(f"FusedExperts has no activation {activation!r}; 'silu' and 'swiglu_oai' it has.")
        if quant_config not in (None, "mxfp4"):
            raise UnsupportedError(f"{prefix or 'FusedExperts'} has no quantisation {quant_config!r}; 'mxfp4' it has.")
        is_silu, gemm = activation == "silu", MoEGroupedGemm if quant_config is None else MXFP4MoE
        self.num_experts = num_experts
        self.own_experts = own_experts(num_experts)
        self.num_local_experts = len(self.own_experts)
        self.top_k = top_k
        self.hidden_size = hidden_size
        self.intermediate_size_per_partition = _features_of_rank(intermediate_size, quant_config)
        expert_map = _numbers_here(num_experts, self.own_experts) if ep_size() > 1 else None
        self.register_buffer("expert_map", expert_map, persistent=False)
        self.expert_map: Tensor | None
        self.moe_align = MoEAlign(self.num_local_experts)
        up = gemm(self.num_local_experts, hidden_size, 2 * self.intermediate_size_per_partition, bias, top_k)
        self.w13 = _ExpertShards(up, num_experts, is_down=False, num_halves=2 if is_silu else 1)
        self.act_fn = SiluAndMul() if is_silu else SwigluOAIAndMul(swiglu_alpha, swiglu_limit)
        down = gemm(self.num_local_experts, self.intermediate_size_per_partition, hidden_size, bias)
        self.w2 = _ExpertShards(down, num_experts, is_down=True, num_halves=1)
        self.moe_sum = MoESum()

    def forward(self, hidden_states: Tensor, topk_weights: Tensor, topk_ids: Tensor) -> Tensor:
        if not topk_weights.shape == topk_ids.shape == (len(hidden_states), self.top_k):
            raise ValueError(
                f"FusedExperts sends each of {len(hidden_states)} tokens to {self.top_k} experts, got topk_weights of "
                f"{tuple(topk_weights.shape)} and topk_ids of {tuple(topk_ids.shape)}."
            )
        is_tiled = not uses_reference(hidden_states)
        block_size = align_block_size(topk_ids.numel(), self.num_experts) if is_tiled else 1
        alignment = self.moe_align(self._ids_here(topk_ids), block_size)
        y = self.w2(self.act_fn(self.w13(hidden_states, alignment)), alignment)
        return self.moe_sum(y.unflatten(0, topk_ids.shape), topk_weights)

    def _ids_here(self, topk_ids: Tensor) -> Tensor:
        """Experts by their numbers on this rank, -1 where they are another's; one launch, and nothing for the host."""
        if self.expert_map is None:
            return topk_ids
        return self.expert_map.index_select(0, topk_ids.flatten()).view_as(topk_ids)

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """A softmax over distinct experts of each token, the last of all left without any."""
        logits = torch.randn(sizes["num_tokens"], self.num_experts, generator=generator)
        if self.num_experts > self.top_k:
            logits[:, -1] = float("-inf")
        chosen, ids = logits.topk(self.top_k)
        return {"topk_weights": chosen.softmax(dim=-1), "topk_ids": ids.int()}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Of the weights those of the experts that have tokens; of the products those of the experts that are here."""
        ids = self._ids_here(inputs["topk_ids"])
        ids = ids[ids >= 0]
        num_bytes = sum(t.numel() * t.element_size() for t in (*inputs.values(), *outputs.values()))
        return Cost(num_bytes + self._weight_bytes(ids.unique().numel()), self._num_flops(ids.numel()))

    def cost_of_routed(self, num_tokens: int) -> Cost:
        """Of the weights and products alone, for tokens that each go to any top_k of the experts."""
        num_hit = self.num_local_experts * (1 - (1 - self.top_k / self.num_experts) ** num_tokens)
        num_slots = num_tokens * self.top_k * self.num_local_experts // self.num_experts
        return Cost(self._weight_bytes(num_hit), self._num_flops(num_slots))

    def _num_flops(self, num_slots: int) -> int:
        return 6 * num_slots * self.hidden_size * self.intermediate_size_per_partition

    def _weight_bytes(self, num_hit: float) -> int:
        total = sum(p.numel() * p.element_size() for p in self.parameters())
        return int(total * num_hit / self.num_local_experts)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedExperts:
        super()._apply(fn, recurse)
        if self.expert_map is not None:  # leaving the meta device gives it no values
            self.expert_map = _numbers_here(self.num_experts, self.own_experts, self.expert_map.device)
        return self
