"""The ranks' parts of a tensor, side by side."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.distributed.collectives import gather_ranks
from fastkernels.distributed.tensor_parallel import tp_size
from fastkernels.op import Op
from fastkernels.spec import Compare, OpSpec, TensorSpec


class AllGather(Op):
    """y = every rank's x joined along the last axis, in the order of the ranks. With one rank y is x itself.

    Shapes:  x: [..., part_size], alike on every rank; y: [..., ranks * part_size].
    Dtypes:  bf16, fp16 or fp32, moved bit for bit.
    Returns: y. No argument is written to.
    Errors:  EnvironmentProblem when a layer is split over ranks and there is no process group.
    Source:  as vLLM's tensor_model_parallel_all_gather.
    """

    spec = OpSpec(
        inputs={"x": TensorSpec(("...", "part_size"))},
        outputs={"y": TensorSpec(("...", "2*part_size"), compare=Compare.EXACT)},
        example_axes={"part_size": (64, 257)},
        num_ranks=2,
    )

    def forward(self, x: Tensor) -> Tensor:
        return self.reference(x)

    def reference(self, x: Tensor) -> Tensor:
        return x if tp_size() == 1 else torch.cat(gather_ranks(x), dim=-1)
