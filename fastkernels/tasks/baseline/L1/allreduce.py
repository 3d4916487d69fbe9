"""The sum of a tensor over the ranks that share a layer."""

from __future__ import annotations

from torch import Tensor

from fastkernels.context import uses_reference
from fastkernels.distributed.collectives import gather_ranks, sum_ranks
from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import TOKENS, OpSpec


class AllReduce(Op):
    """y = the sum of every rank's x; every rank gets it. With one rank y is x itself.

    Shapes:  x, y: [..., hidden_size], alike on every rank.
    Dtypes:  bf16, fp16 or fp32; the definition sums in fp32 and rounds once.
    Returns: y. No argument is written to.
    Errors:  EnvironmentProblem when a layer is split over ranks and there is no process group.
    Source:  as vLLM's tensor_model_parallel_all_reduce.
    """

    spec = OpSpec(inputs={"x": TOKENS}, outputs={"y": TOKENS}, example_axes={"hidden_size": (64, 257)}, num_ranks=2)

    def forward(self, x: Tensor) -> Tensor:
        if tp_size() == 1:
            return x
        return self.reference(x) if uses_reference(x) else sum_ranks(x)

    def reference(self, x: Tensor) -> Tensor:
        if tp_size() == 1:
            return x
        parts = [part.to(compute_dtype(x)) for part in gather_ranks(x)]
        return sum(parts[1:], start=parts[0]).to(x.dtype)
