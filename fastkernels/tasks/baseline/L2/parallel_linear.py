"""Dense layers split over the ranks of a tensor-parallel group; each returns (output, bias)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.distributed.sharded_layer import Shard, ShardedLayer, ShardId, refuse_quantization
from fastkernels.distributed.sharded_rows import load_segments
from fastkernels.distributed.tensor_parallel import WeightSource, kv_head_shard, shard_size, tp_rank, tp_size
from fastkernels.op import Op
from fastkernels.spec import Compare, Cost, OpSpec, TensorSpec
from fastkernels.tasks.baseline.L1.allgather import AllGather
from fastkernels.tasks.baseline.L1.allreduce import AllReduce
from fastkernels.tasks.baseline.L1.linear import Linear

_OUTPUT_BIAS = TensorSpec(("output_size_per_partition",), compare=Compare.EXACT).optional()


def _linear_cost(
    layer: ColumnParallelLinear | RowParallelLinear, inputs: dict[str, Any], outputs: dict[str, Tensor]
) -> Cost:
    weight = layer.weight
    num_rows = inputs["x"].numel() // inputs["x"].shape[-1]
    return Cost(Op.cost(layer, inputs, outputs).num_bytes, 2 * num_rows * weight.numel())


class ColumnParallelLinear(ShardedLayer, Op):
    """output = x @ weight.T (+ bias), the rows of weight split over the ranks.

    Shapes:  x: [..., input_size]; output: [..., output_size_per_partition], [..., output_size] when gather_output.
    Dtypes:  x and weight alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: (output, bias): the bias is added and None unless skip_bias_add. No argument is written to.
    Errors:  ValueError when output_size does not split evenly; UnsupportedError when quant_config is given.
    Source:  Shoeybi et al. 2019 (https://arxiv.org/abs/1909.08053); signature as vLLM's ColumnParallelLinear.
    """

    inner = "linear"
    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "input_size")).strided()},
        outputs={"output": TensorSpec(("...", "num_outputs")), "output_bias": _OUTPUT_BIAS},
        examples=(
            {"input_size": 64, "output_size": 96, "bias": False},
            {"input_size": 131, "output_size": 67, "bias": True},
            {"input_size": 48, "output_size": 5, "bias": True, "skip_bias_add": True},
        ),
        is_exact_on_integers=True,
    )

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: None = None,
        output_sizes: Sequence[int] | None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        refuse_quantization(quant_config, prefix or type(self).__name__)
        self.tp_rank, self.tp_size = tp_rank(), tp_size()
        self.input_size = input_size
        self.output_size = output_size
        self.output_sizes = list(output_sizes or [output_size])
        self.output_size_per_partition = sum(shard_size(n, self.tp_size, "output_size") for n in self.output_sizes)
        self.gather_output = gather_output
        self.num_outputs = output_size if gather_output else self.output_size_per_partition
        self.skip_bias_add = skip_bias_add
        self.linear = Linear(input_size, self.output_size_per_partition, bias=bias and not skip_bias_add)
        has_separate_bias = bias and skip_bias_add
        self.separate_bias = nn.Parameter(torch.zeros(self.output_size_per_partition)) if has_separate_bias else None
        self.allgather = AllGather()
        if params_dtype is not None:
            self.to(params_dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self.linear(x)
        if self.gather_output:
            output = self.allgather(output)
        return output, self.separate_bias

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        size = self.output_size_per_partition
        return Shard(0, self.output_size, self.tp_rank * size, size)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return _linear_cost(self, inputs, outputs)


class MergedColumnParallelLinear(ColumnParallelLinear):
    """Several column-parallel layers of one input as one matrix: output = [x @ w0.T, x @ w1.T, ...].

    Shapes:  x: [..., input_size]; output: [..., output_size_per_partition], this rank's part of each in turn.
    Dtypes:  x and weight alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: (output, bias): the bias is added and None unless skip_bias_add. No argument is written to.
    Errors:  ValueError when an output size does not split evenly; UnsupportedError when quant_config is given.
    Source:  signature as vLLM's MergedColumnParallelLinear; shards are numbered, or come as one tensor.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "input_size")).strided()},
        outputs={"output": TensorSpec(("...", "num_outputs")), "output_bias": _OUTPUT_BIAS},
        examples=(
            {"input_size": 64, "output_sizes": [176, 176], "bias": False},
            {"input_size": 37, "output_sizes": [11, 3, 5], "bias": True},
        ),
        is_exact_on_integers=True,
    )

    def __init__(
        self,
        input_size: int,
        output_sizes: Sequence[int],
        bias: bool = True,
        gather_output: bool = False,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: None = None,
        prefix: str = "",
    ) -> None:
        super().__init__(
            input_size,
            sum(output_sizes),
            bias,
            gather_output,
            skip_bias_add,
            params_dtype,
            quant_config,
            output_sizes,
            prefix,
        )

    def checkpoint_shape(self, param: Tensor, shard_id: ShardId = None) -> tuple[int, ...]:
        if shard_id is None:
            return (self.output_size, *param.shape[1:])
        return super().checkpoint_shape(param, shard_id)

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        if shard_id is None:  # the checkpoint, too, holds them as one
            return load_segments(param, loaded_weight, self.output_sizes)
        return super().weight_loader(param, loaded_weight, shard_id)

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        assert isinstance(shard_id, int)
        size = self.output_sizes[shard_id] // self.tp_size
        offset = sum(self.output_sizes[:shard_id]) // self.tp_size
        return Shard(0, self.output_sizes[shard_id], self.tp_rank * size, size, offset)


class QKVParallelLinear(ColumnParallelLinear):
    """Query, key and value projections as one matrix, split by heads; key-value heads are repeated when too few.

    Shapes:  x: [..., input_size = hidden_size]; output: [..., (num_heads + 2 * num_kv_heads) * head_size].
    Dtypes:  x and weight alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: (output, bias): the bias is added and None unless skip_bias_add. No argument is written to.
    Errors:  ValueError when heads and ranks do not divide; UnsupportedError when quant_config is given.
    Source:  signature as vLLM's QKVParallelLinear; shards are "q", "k" and "v".
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "input_size")).strided()},
        outputs={"output": TensorSpec(("...", "num_outputs")), "output_bias": _OUTPUT_BIAS},
        examples=(
            {"hidden_size": 64, "head_size": 16, "total_num_heads": 4, "total_num_kv_heads": 2, "bias": False},
            {"hidden_size": 51, "head_size": 10, "total_num_heads": 7, "total_num_kv_heads": 1, "bias": True},
        ),
        is_exact_on_integers=True,
    )

    def __init__(
        self,
        hidden_size: int,
        head_size: int,
        total_num_heads: int,
        total_num_kv_heads: int | None = None,
        bias: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        quant_config: None = None,
        prefix: str = "",
    ) -> None:
        rank, size = tp_rank(), tp_size()
        total_kv_heads = total_num_heads if total_num_kv_heads is None else total_num_kv_heads
        num_heads = shard_size(total_num_heads, size, "The number of attention heads")
        first_kv_head, num_kv_heads = kv_head_shard(total_kv_heads, rank, size)
        sizes = [n * size * head_size for n in (num_heads, num_kv_heads, num_kv_heads)]
        super().__init__(hidden_size, sum(sizes), bias, False, skip_bias_add, params_dtype, quant_config, sizes, prefix)
        self.hidden_size = hidden_size
        self.head_size = head_size
        self.total_num_heads = total_num_heads
        self.total_num_kv_heads = total_kv_heads
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.first_kv_head = first_kv_head

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        d, q, kv = self.head_size, self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        if shard_id == "q":
            return Shard(0, self.total_num_heads * d, self.tp_rank * q, q)
        offset = {"k": q, "v": q + kv}[str(shard_id)]
        return Shard(0, self.total_num_kv_heads * d, self.first_kv_head * d, kv, offset)

    def checkpoint_shape(self, param: Tensor, shard_id: ShardId = None) -> tuple[int, ...]:
        if shard_id is not None:
            return super().checkpoint_shape(param, shard_id)
        return ((self.total_num_heads + 2 * self.total_num_kv_heads) * self.head_size, *param.shape[1:])

    def weight_loader(self, param: nn.Parameter, loaded_weight: WeightSource, shard_id: ShardId = None) -> None:
        """Without a shard_id the checkpoint's tensor holds the rows of q, k and v behind each other."""
        if shard_id is not None:
            super().weight_loader(param, loaded_weight, shard_id)
            return
        first = 0
        for part in ("q", "k", "v"):
            shard = self.shard(param.dim(), part)
            place = param.data.narrow(0, shard.offset, shard.size)
            place.copy_(loaded_weight.narrow(0, first + shard.start, shard.size))
            first += shard.full_size


class RowParallelLinear(ShardedLayer, Op):
    """output = x @ weight.T (+ bias), the columns of weight split over the ranks and the products summed over them.

    Shapes:  x: [..., input_size_per_partition], [..., input_size] unless input_is_parallel; output: [..., output_size].
    Dtypes:  x and weight alike, bf16, fp16 or fp32; products are summed in at least fp32.
    Returns: (output, bias): the bias is added, by rank 0, and None unless skip_bias_add. No argument is written to.
    Errors:  ValueError when input_size does not split evenly; UnsupportedError when quant_config is given.
    Source:  Shoeybi et al. 2019 (https://arxiv.org/abs/1909.08053); signature as vLLM's RowParallelLinear.
    """

    inner = "linear"
    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "num_inputs")).strided()},
        outputs={
            "output": TensorSpec(("...", "output_size")),
            "output_bias": TensorSpec(("output_size",), compare=Compare.EXACT).optional(),
        },
        examples=(
            {"input_size": 176, "output_size": 64, "bias": False},
            {"input_size": 131, "output_size": 67, "bias": True},
            {"input_size": 48, "output_size": 5, "bias": True, "skip_bias_add": True},
        ),
        is_exact_on_integers=True,
    )

    def __init__(
        self,
        input_size: int,
        output_size: int,
        bias: bool = True,
        input_is_parallel: bool = True,
        skip_bias_add: bool = False,
        params_dtype: torch.dtype | None = None,
        reduce_results: bool = True,
        quant_config: None = None,
        prefix: str = "",
    ) -> None:
        super().__init__()
        refuse_quantization(quant_config, prefix or type(self).__name__)
        self.tp_rank, self.tp_size = tp_rank(), tp_size()
        if bias and not reduce_results and not skip_bias_add:
            raise ValueError("RowParallelLinear adds its bias once, to the sum: without reduce_results skip_bias_add.")
        self.input_size = input_size
        self.output_size = output_size
        self.input_size_per_partition = shard_size(input_size, self.tp_size, "input_size")
        self.input_is_parallel = input_is_parallel
        self.num_inputs = self.input_size_per_partition if input_is_parallel else input_size
        self.skip_bias_add = skip_bias_add
        self.reduce_results = reduce_results
        adds_bias = bias and not skip_bias_add and self.tp_rank == 0
        self.linear = Linear(self.input_size_per_partition, output_size, bias=adds_bias)
        self.separate_bias = nn.Parameter(torch.zeros(output_size)) if bias and not adds_bias else None
        self.allreduce = AllReduce()
        if params_dtype is not None:
            self.to(params_dtype)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        if not self.input_is_parallel:
            x = x.narrow(-1, self.tp_rank * self.input_size_per_partition, self.input_size_per_partition)
        output = self.linear(x)
        if self.reduce_results and self.tp_size > 1:
            output = self.allreduce(output)
        return output, self.separate_bias if self.skip_bias_add else None

    def shard(self, num_dims: int, shard_id: ShardId) -> Shard:
        if num_dims == 1:
            return Shard(0, self.output_size, 0, self.output_size)
        size = self.input_size_per_partition
        return Shard(1, self.input_size, self.tp_rank * size, size)

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        return _linear_cost(self, inputs, outputs)
