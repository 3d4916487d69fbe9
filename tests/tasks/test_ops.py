"""Every op that is registered, on its own examples: what each must hold whatever it computes."""

from __future__ import annotations

import copy
import importlib
import inspect
import math
from typing import Any

import pytest
import torch
from op_inputs import OpInputs, make_inputs, phases_of, strided_view
from paged_batches import shapes_of
from torch import Tensor, nn

from fastkernels import registry
from fastkernels.cache import bind_caches, cached_layers
from fastkernels.capture.case import decode_value, encode_value
from fastkernels.context import Phase, set_forward_context
from fastkernels.op import Op
from fastkernels.spec import Compare, TensorSpec, axis_size

OPS: dict[str, type[Op]] = {
    name: getattr(importlib.import_module(entry.module), entry.class_name) for name, entry in registry.ops().items()
}
EXPECTED_NAMES = {
    *("rms_norm", "silu_and_mul", "rotary_embedding", "linear", "embedding", "store_kvcache", "allreduce", "allgather"),
    *("flash_attn_prefill", "flash_attn_decode", "flash_attn_varlen", "greedy_sample", "top_k_top_p_sample"),
    *("column_parallel_linear", "merged_column_parallel_linear", "qkv_parallel_linear", "row_parallel_linear"),
    *("vocab_parallel_embedding", "parallel_lm_head", "attention", "llama_attention", "llama_mlp"),
    *("llama_decoder_layer", "llama_model", "llama_for_causal_lm"),
    *("apply_logit_bias", "apply_penalties", "apply_token_bitmask", "draw_seeds", "min_p", "top_logprobs"),
}
CALLS = [
    pytest.param(name, example, phase, id=f"{name}-{example}" + (f"-{phase}" if phase else ""))
    for name, cls in OPS.items()
    for example in range(max(len(cls.spec.examples), *map(len, cls.spec.example_axes.values()), 1))
    for phase in phases_of(cls)
]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
# Largest root-mean-square error over root-mean-square value: one rounding for L1, a few for what is composed.
RMS_LIMITS = {
    torch.float32: {1: 1e-6, 2: 2e-6, 3: 2e-6, 4: 4e-6},
    torch.bfloat16: {1: 2e-3, 2: 1e-2, 3: 1e-2, 4: 3e-2},
}


def rms_limit(op: Op, level: int, dtype: torch.dtype) -> float:
    """Of a layer that holds several of its kind, as UNet's blocks do, errors add up like independent ones."""
    held = [len(part) for part in op.children() if isinstance(part, nn.ModuleList)] if level == 3 else []
    return RMS_LIMITS[dtype][level] * math.sqrt(max(held, default=1) or 1)


def build(name: str, example: int) -> Op:
    torch.manual_seed(example)
    examples = OPS[name].spec.examples
    op = OPS[name](**examples[example % len(examples)]).eval()
    for param_name, param in op.named_parameters():
        if "norm" in param_name or "bias" in param_name:
            param.data.normal_(mean=float("norm" in param_name), std=0.2)
    return op


def call(op: Op, inputs: OpInputs, is_reference: bool = False) -> tuple[list[Any], OpInputs]:
    """(outputs in the order of the spec, the inputs as they are after the call)."""
    inputs = inputs.clone() if not any(isinstance(v, Tensor) and is_view(v) for v in inputs.kwargs.values()) else inputs
    bind_caches(op, inputs.caches)
    with torch.no_grad(), set_forward_context(inputs.context):
        result = (op.reference if is_reference else op)(**inputs.kwargs)
    outputs = list(result) if isinstance(result, tuple) else [] if result is None else [result]
    return outputs + [None] * (len(op.spec.outputs) - len(outputs)), inputs


def is_view(x: Tensor) -> bool:
    return not x.is_contiguous()


def rms_ratio(got: Tensor, expected: Tensor) -> float:
    """Over the finite elements; the infinite ones must be the same."""
    is_finite = torch.isfinite(expected)
    assert torch.equal(got[~is_finite].double(), expected[~is_finite])
    got, expected = got[is_finite], expected[is_finite]
    error = (got.detach().double() - expected.detach().double()).square().mean().sqrt()
    return float(error / expected.detach().double().square().mean().sqrt().clamp_min(1e-30))


def compared(op: Op, outputs: list[Any], after: OpInputs) -> list[Tensor]:
    """Float outputs and everything that was declared to be written to."""
    mutated = [after.kwargs[n] for n in op.spec.mutates if n != "kv_cache"]
    return [t for t in (*outputs, *mutated, *after.caches) if isinstance(t, Tensor) and t.is_floating_point()]


def dtypes_compared(op: Op, outputs: list[Any], after: OpInputs, dtype: torch.dtype) -> list[torch.dtype]:
    """Those that the spec promises of what `compared` gives, when the op computes in `dtype`."""
    names = [n for n in op.spec.mutates if n != "kv_cache"]
    kinds = [kind for layer in cached_layers(op) for _, kind in shapes_of(layer.cache_spec, 1, 1)]
    caches = [TensorSpec(dtype="op" if kind is None else str(kind).removeprefix("torch.")) for kind in kinds]
    specs = [*op.spec.outputs.values(), *(op.spec.inputs[n] for n in names), *caches]
    tensors = [*outputs, *(after.kwargs[n] for n in names), *after.caches]
    return [
        dtype if spec.dtype == "op" else getattr(torch, spec.dtype)
        for spec, tensor in zip(specs, tensors, strict=True)
        if isinstance(tensor, Tensor) and tensor.is_floating_point()
    ]


def test_registry_finds_every_op_of_llama() -> None:
    assert set(OPS) >= EXPECTED_NAMES


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", list(RMS_LIMITS), ids=str)
@pytest.mark.parametrize(("name", "example", "phase"), CALLS)
def test_forward_is_as_near_to_the_float64_definition_as_its_dtype_allows(
    name: str, example: int, phase: Phase | None, dtype: torch.dtype, device: str
) -> None:
    if str(dtype).removeprefix("torch.") not in OPS[name].spec.dtypes:
        pytest.skip("The op does not take this dtype.")
    op = build(name, example).to(device, dtype)
    inputs = make_inputs(op, phase, example).cast(op, dtype).to(device)
    exact_inputs = inputs.map_floats(torch.Tensor.double)
    outputs, after = call(op, inputs)
    exact_outputs, exact_after = call(copy.deepcopy(op).double(), exact_inputs, is_reference=True)
    got, expected = compared(op, outputs, after), compared(op, exact_outputs, exact_after)
    assert len(got) == len(expected)
    assert [one.dtype for one in got] == dtypes_compared(op, outputs, after, dtype)
    for one, exact in zip(got, expected, strict=True):
        assert exact.dtype == torch.float64
        assert rms_ratio(one, exact) <= rms_limit(op, registry.ops()[name].level, dtype)
    for tensor, one, exact in zip(op.spec.outputs.values(), outputs, exact_outputs, strict=True):
        if tensor.compare is Compare.EXACT and one is not None:
            assert torch.equal(one.double(), exact)


@pytest.mark.parametrize(("name", "example", "phase"), CALLS)
def test_outputs_have_the_shapes_and_dtypes_of_the_spec(name: str, example: int, phase: Phase | None) -> None:
    op = build(name, example)
    if op.spec.num_ranks > 1:
        pytest.skip("Its shapes are those of several ranks: tests/tasks/test_tensor_parallel.py.")
    for with_optional in (True, False):
        inputs = make_inputs(op, phase, example, with_optional=with_optional)
        outputs, _ = call(op, inputs)
        for out_name, tensor, output in zip(op.spec.outputs, op.spec.outputs.values(), outputs, strict=True):
            source = op.spec.returned_with.get(out_name)
            if source is not None:
                assert (output is None) == (inputs.kwargs[source] is None)
            if output is None:
                assert tensor.is_optional
                continue
            tail = [axis_size(axis, inputs.sizes) for axis in tensor.axes if axis != "..."]
            assert list(output.shape[len(output.shape) - len(tail) :]) == tail
            assert ("..." in tensor.axes) == (output.dim() > len(tail))
            assert str(output.dtype) == ("torch.float32" if tensor.dtype == "op" else f"torch.{tensor.dtype}")
            is_last = tensor.is_image and output.is_contiguous(memory_format=torch.channels_last)
            assert tensor.may_be_strided or is_last or output.is_contiguous(), f"{out_name}: {output.stride()}"


@pytest.mark.parametrize(("name", "example", "phase"), CALLS)
def test_only_declared_buffers_are_written_to(name: str, example: int, phase: Phase | None) -> None:
    op = build(name, example)
    inputs = make_inputs(op, phase, example)
    params = {n: p.clone() for n, p in op.state_dict().items()}
    _, after = call(op, inputs)
    for argument, value in inputs.kwargs.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, after.kwargs[argument]) == (argument not in op.spec.mutates), argument
    assert all(torch.equal(params[n], p) for n, p in op.state_dict().items())
    assert ("kv_cache" in op.spec.mutates) == bool(cached_layers(op))
    is_state = [kind is not None for layer in cached_layers(op) for _, kind in shapes_of(layer.cache_spec, 1, 1)]
    for before, cache, is_slots in zip(inputs.caches, after.caches, is_state, strict=True):
        assert inputs.context is not None
        if is_slots:
            assert inputs.context.state_slots is not None
            changed = (before != cache).flatten(1).any(-1).nonzero().flatten()
            assert changed.tolist() == sorted(inputs.context.state_slots.tolist())
            continue
        changed = (before != cache).flatten(3).any(-1).any(0).flatten().nonzero().flatten()
        assert changed.tolist() == sorted(inputs.context.slot_mapping.tolist())


@pytest.mark.parametrize(("name", "example", "phase"), CALLS)
def test_strided_inputs_give_what_dense_ones_give(name: str, example: int, phase: Phase | None) -> None:
    op = build(name, example)
    inputs = make_inputs(op, phase, example)
    names = [n for n, t in op.spec.inputs.items() if t.may_be_strided]
    if not names:
        pytest.skip("No input of this op may be strided.")
    strided = inputs.clone()
    strided.kwargs.update({n: strided_view(strided.kwargs[n]) for n in names})
    outputs, after = call(op, inputs)
    got, got_after = call(op, strided)
    assert not any(strided.kwargs[n].is_contiguous() and strided.kwargs[n].numel() > 1 for n in names)
    for one, dense in zip(compared(op, got, got_after), compared(op, outputs, after), strict=True):
        torch.testing.assert_close(one, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPS)
def test_docstring_says_shapes_dtypes_and_source(name: str) -> None:
    lines = [line.strip().split(":")[0] for line in (OPS[name].__doc__ or "").splitlines()]
    assert {"Shapes", "Dtypes", "Returns", "Source"} <= set(lines)


@pytest.mark.parametrize("name", OPS)
def test_no_op_inherits_from_one_of_another_file(name: str) -> None:
    """It would inherit from whatever candidate stands in for that one, of whose insides nothing is promised."""
    files = {base.__module__ for base in OPS[name].__mro__}
    assert {file for file in files if ".baseline.L" in file} == {OPS[name].__module__}


@pytest.mark.parametrize("name", OPS)
def test_spec_names_are_those_of_forward_and_reference(name: str) -> None:
    cls = OPS[name]
    assert list(cls.spec.inputs) == list(inspect.signature(cls.forward).parameters)[1:]
    if cls.reference is not Op.reference:
        assert list(cls.spec.inputs) == list(inspect.signature(cls.reference).parameters)[1:]


@pytest.mark.parametrize("name", OPS)
def test_examples_survive_being_written_to_a_case(name: str) -> None:
    for example in OPS[name].spec.examples:
        assert decode_value(encode_value(dict(example))) == dict(example)


@pytest.mark.parametrize(("name", "example", "phase"), CALLS)
def test_cost_counts_at_least_what_is_written(name: str, example: int, phase: Phase | None) -> None:
    op = build(name, example)
    inputs = make_inputs(op, phase, example)
    outputs, _ = call(op, inputs)
    by_name = {n: t for n, t in zip(op.spec.outputs, outputs, strict=True) if t is not None}
    with set_forward_context(inputs.context):
        cost = op.cost(inputs.kwargs, by_name)
    written = sum(t.numel() * t.element_size() for t in by_name.values())
    pool = sum(t.numel() * t.element_size() for t in (*inputs.kwargs.values(), *inputs.caches) if isinstance(t, Tensor))
    params = sum(p.numel() * p.element_size() for p in op.parameters())
    in_place = [*inputs.caches, *(v for n, v in inputs.kwargs.items() if n in op.spec.mutates)]
    pool += sum(t.numel() * t.element_size() for t in in_place)  # read, and written to
    assert written < cost.num_bytes <= written + pool + params + 2 * written
    assert cost.num_flops >= 0
