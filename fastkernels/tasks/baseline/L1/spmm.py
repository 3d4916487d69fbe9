"""A sparse matrix times a dense one."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fastkernels.context import is_reference_asked
from fastkernels.kernels.spmm import spmm
from fastkernels.op import Op, compute_dtype
from fastkernels.spec import Cost, OpSpec, Role, TensorSpec


class SpMM(Op):
    """y[i] = sum over e from crow_indices[i] to crow_indices[i + 1] of values[e] * x[col_indices[e]].

    Shapes:  crow_indices: [num_rows + 1]; col_indices, values: [num_values]; x: [num_cols, dim]; y: [num_rows, dim].
    Dtypes:  indices int64; values and x alike, bf16, fp16 or fp32; sums in fp32.
    Returns: y; a row without values is 0. No argument is written to.
    Errors:  ValueError when col_indices and values differ in length.
    Source:  compressed sparse rows as torch.sparse_csr_tensor names them.
    """

    spec = OpSpec(
        inputs={
            "crow_indices": TensorSpec(("num_starts",), dtype="int64", role=Role.COUPLED),
            "col_indices": TensorSpec(("num_values",), dtype="int64", role=Role.INDEX, bound="num_cols"),
            "values": TensorSpec(("num_values",)),
            "x": TensorSpec(("num_cols", "dim")),
        },
        outputs={"y": TensorSpec(("num_rows", "dim"))},
        example_axes={"num_rows": (29, 11), "num_values": (97, 31), "num_cols": (31, 5), "dim": (64, 13)},
    )

    def forward(self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
        if col_indices.shape != values.shape:
            raise ValueError(f"SpMM got {len(col_indices)} col_indices and {len(values)} values.")
        if is_reference_asked():
            return self.reference(crow_indices, col_indices, values, x)
        if not x.is_cuda:
            return _multiply(crow_indices, col_indices, values, x)
        return spmm(crow_indices, col_indices, values, x)

    def reference(self, crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
        dtype = compute_dtype(x)
        num_rows = len(crow_indices) - 1
        row = torch.arange(num_rows, device=x.device).repeat_interleave(crow_indices.diff())
        products = values.to(dtype)[:, None] * x.to(dtype)[col_indices]
        return torch.zeros(num_rows, x.shape[1], dtype=dtype, device=x.device).index_add_(0, row, products).to(x.dtype)

    def derived_axes(self, sizes: Mapping[str, int]) -> dict[str, int]:
        return {"num_starts": sizes["num_rows"] + 1}

    def coupled_inputs(self, sizes: Mapping[str, int], generator: torch.Generator) -> dict[str, Any]:
        """Some rows are empty, one has most of the values."""
        num_rows, num_values = sizes["num_rows"], sizes["num_values"]
        weights = torch.rand(num_rows, generator=generator) ** 4 + 1e-6
        row = torch.multinomial(weights, num_values, replacement=True, generator=generator)
        counts = torch.bincount(row, minlength=num_rows)
        return {"crow_indices": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])}

    def cost(self, inputs: dict[str, Any], outputs: dict[str, Tensor]) -> Cost:
        """Of x the rows that a value stands beside."""
        x, columns = inputs["x"], inputs["col_indices"]
        num_bytes = super().cost({**inputs, "x": x[: columns.unique().numel()]}, outputs).num_bytes
        return Cost(num_bytes, 2 * columns.numel() * x.shape[1])


def _multiply(crow_indices: Tensor, col_indices: Tensor, values: Tensor, x: Tensor) -> Tensor:
    """On a CPU: the library's product, which takes float32 and float64."""
    let_sparse_warn_once()
    dtype, shape = compute_dtype(x), (len(crow_indices) - 1, len(x))
    matrix = torch.sparse_csr_tensor(crow_indices, col_indices, values.to(dtype), shape, check_invariants=False)
    return (matrix @ x.to(dtype)).to(x.dtype)


@cache
def let_sparse_warn_once() -> None:
    """torch says of the first sparse rows of a process that they are in beta state: here, and to nobody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        none = torch.zeros(1, dtype=torch.int64)
        torch.sparse_csr_tensor(none, none[:0], torch.zeros(0), (0, 0), check_invariants=False)
