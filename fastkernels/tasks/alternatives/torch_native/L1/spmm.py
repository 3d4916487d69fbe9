"""SpMM by torch.sparse.mm: cuSPARSE on a GPU, MKL on a CPU, which has float32 and float64 alone."""

from __future__ import annotations

import torch
from torch import Tensor

from fastkernels.op import compute_dtype
from fastkernels.tasks.baseline.L1.spmm import SpMM as Baseline
from fastkernels.tasks.baseline.L1.spmm import let_sparse_warn_once


class SpMM(Baseline):
    """Source: https://docs.pytorch.org/docs/stable/generated/torch.sparse.mm.html."""

    def forward(self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
        let_sparse_warn_once()
        dtype, shape = x.dtype if x.is_cuda else compute_dtype(x), (len(crow_indices) - 1, len(x))
        matrix = torch.sparse_csr_tensor(crow_indices, col_indices, values.to(dtype), shape, check_invariants=False)
        return torch.sparse.mm(matrix, x.to(dtype)).to(x.dtype)
