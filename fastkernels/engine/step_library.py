"""A decode step as a C++ library: traced by torch.export, compiled by torch.compile's code generator, and kept.

Tracing takes seconds and compiling some ten times as long; a step whose graph has been compiled on this machine before
is found by that graph.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import warnings
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.errors import EnvironmentProblem
from fastkernels.kernels.paged_cpu import C_SHIMS, built_for, kept_folder, library


def step_library(module: nn.Module, inputs: tuple[Any, ...], least_seqs: int) -> str:
    """The path of the library that runs a step. Errors: EnvironmentProblem.

    inputs: (weights, caches, last token), whose sizes are constants, and tensors of as many rows as there are
    sequences, `least_seqs` or more.
    """
    library()
    num_seqs = torch.export.Dim("num_seqs", min=least_seqs)
    fixed = torch.utils._pytree.tree_map(lambda _: None, inputs[:3])
    rows = torch.utils._pytree.tree_map(lambda _: {0: num_seqs}, inputs[3:])
    shapes = (fixed[0], (*fixed[1:], *rows))
    shims = {getattr(torch.ops.fastkernels, name).default: [text] for name, text in C_SHIMS.items()}
    options = {
        "aot_inductor.custom_ops_to_c_shims": shims,
        "aot_inductor.package": False,
        "cpp.dynamic_threads": True,
    }
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, of torch's own
            program = torch.export.export(module, inputs, dynamic_shapes=shapes, strict=False)
            traced = program.module(check_guards=False)
            _use_few_rows(traced)
            digest = _digest(traced, options)
            kept = None if digest is None else kept_folder() / f"step_{digest}.so"
            if kept is not None and kept.is_file():
                return str(kept)
            made = str(torch._inductor.aot_compile(traced, inputs, options=options))
            return made if kept is None else _copied(made, kept)
    except Exception as error:  # whatever a model does that cannot be traced, it can still run eagerly
        raise EnvironmentProblem(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}") from error


def _digest(traced: torch.fx.GraphModule, options: dict[str, Any]) -> str | None:
    """Of all that decides what is compiled: the graph, the constants in it, sizes, settings, compiler and processor.

    None of a graph with graphs inside, which it does not look into.
    """
    from torch._inductor import config

    told = [built_for(), torch.version.git_version, torch.get_num_threads(), config.get_hash(), options, traced.graph]
    digest = hashlib.sha256("\n".join(map(str, told)).encode())
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            value = node.meta["val"]
            digest.update(str((value.dtype, value.device, *value.shape, *value.stride())).encode())
        elif node.op == "get_attr":
            constant = attrgetter(node.target)(traced)
            if not isinstance(constant, Tensor):
                return None
            digest.update(constant.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def _copied(made: str, kept: Path) -> str:
    """Its path; there whole or not at all."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        os.replace(shutil.copy(made, folder), kept)
    return str(kept)


def _use_few_rows(traced: torch.fx.GraphModule) -> None:
    """Products in float32 go through linear_few_rows where sixteen sums of two vectors fit into registers."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return
    for node in list(traced.graph.find_nodes(op="call_function", target=torch.ops.aten.linear.default)):
        x, weight = (argument.meta["val"] for argument in node.args[:2])
        is_dense = x.dim() == weight.dim() == 2 and x.stride(1) == 1 and weight.is_contiguous()
        if is_dense and x.dtype == weight.dtype == torch.float32:
            node.target = torch.ops.fastkernels.linear_few_rows.default
            node.args = (*node.args, None)[:3]
    traced.recompile()
