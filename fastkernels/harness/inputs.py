"""Inputs drawn from a secret seed by what the contract says of each argument.

Families of float values, each aimed at a class of wrong kernels; integer arguments by role and
bound; batches by one geometry. The judge alone runs this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.capture.case import Case
from fastkernels.harness.geometry import Geometry, redraw_pages
from fastkernels.harness.hidden_shapes import FAMILIES, Shape
from fastkernels.op import Op
from fastkernels.spec import Compare, Role, TensorSpec, axis_size

_EDGE_SHARE = 1 / 8
"""Of the rows of a sampler: greedy, without top-k, without a nucleus. Of tokens: not stored."""

_LOW_SHARE = 1 / 4
"""Of the rows of a sampler: a temperature and a top-p below 0.5."""

_FAMILY_ROLES = frozenset({Role.ACTIVATION, Role.LOGITS, Role.CACHE, Role.STATE})


def draw_floats(
    family: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype = torch.float32
) -> Tensor:
    """float32 values of one family; the last axis is the one that kernels reduce over.

    dtype: what they will be rounded to; in fp16 the product of two values of the last decade would overflow.
    """
    x = torch.randn(shape, generator=generator)
    if not shape or x.numel() == 0 or family == "normal":
        return x
    if family == "heavy_tailed":
        return (x * torch.exp(1.5 * torch.randn(shape, generator=generator))).clamp(-1e3, 1e3)
    if family == "integers":
        return torch.randint(-4, 5, shape, generator=generator).float()
    if family == "cancellation":
        half = x[..., : shape[-1] // 2] * 16
        x[..., : shape[-1] // 2] = half
        x[..., shape[-1] - shape[-1] // 2 :] = -half + 0.05 * torch.randn(half.shape, generator=generator)
        has_mean = _some((*shape[:-1], 1), _EDGE_SHARE, generator)  # that a variance must lose
        return torch.where(has_mean, 14 + torch.randn(shape, generator=generator), x)
    if family == "one_hot":
        hot = torch.randint(0, shape[-1], (*shape[:-1], 1), generator=generator)
        return torch.zeros(shape).scatter_(-1, hot, 1.0)
    if family == "wide_range":
        num_decades = 4 if dtype is torch.float16 else 5
        decade = torch.rand((*shape[:-1], 1), generator=generator) * num_decades - 3
        is_zero = _some((*shape[:-1], 1), _EDGE_SHARE, generator)
        return (x * 10**decade).masked_fill_(is_zero, 0.0)
    raise ValueError(f"{family!r} is not one of {FAMILIES}.")


def draw_params(op: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """A state_dict of plausible weights: matrices scaled by their fan-in, vectors about one, biases about zero.

    Persistent buffers keep their values.
    """
    state = {}
    owners = {id(p): (m, n) for m in op.modules() for n, p in m.named_parameters(recurse=False)}
    for name, tensor in op.state_dict(keep_vars=True).items():
        if not isinstance(tensor, nn.Parameter):
            state[name] = tensor.detach().clone()
            continue
        if tensor.dtype == torch.uint8:
            owner, own_name = owners[id(tensor)]
            assert isinstance(owner, Op)
            low, high = owner.byte_range(own_name, tensor.shape)
            state[name] = torch.randint(low, high, tensor.shape, dtype=torch.uint8, generator=generator)
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim >= 2:  # of a convolution's kernel every axis but the first is summed over
            noise = noise / (tensor[0].numel() if tensor.ndim >= 4 else tensor.shape[-1]) ** 0.5
        else:
            noise = 0.2 * noise + (0.0 if name.endswith("bias") else 1.0)
        state[name] = noise.to(tensor.dtype)
    for path, part in op.named_modules():
        for name, value in part.coupled_params(generator).items() if isinstance(part, Op) else ():
            key = f"{path}.{name}".lstrip(".")
            state[key] = value.to(state[key].dtype)
    return state


def draw_case(
    op: Op,
    init: Mapping[str, Any],
    dtype: torch.dtype,
    shape: Shape,
    family: str,
    params: dict[str, Tensor],
    generator: torch.Generator,
) -> Case:
    """One call of `op`, arguments by name. Values outside what a page table reaches are NaN: never to be read."""
    geometry = redraw_pages(shape.geometry, generator) if shape.geometry else None
    sizes = {**shape.axes, **_const_axes(op)}
    if geometry:
        sizes |= {
            "num_tokens": geometry.num_tokens,
            "num_seqs": geometry.num_seqs,
            "num_pages": geometry.num_pages,
            "page_size": geometry.page_size,
            "max_pages": geometry.max_pages,
            "num_slots": geometry.num_slots,
        }
    else:
        rows = shape.lead[-1]
        sizes |= {name: rows for name in ("num_tokens", "num_seqs") if name not in sizes}
    sizes |= op.derived_axes(sizes)
    coupled = op.coupled_inputs(sizes, generator)
    inputs: dict[str, Any] = {}
    for name, tensor in op.spec.inputs.items():
        if tensor.is_optional and not shape.has_optional:
            inputs[name] = None
            continue
        if name in coupled:
            inputs[name] = _as_dtype(coupled[name], tensor, dtype)
        elif tensor.role is Role.SCALAR:
            inputs[name] = sizes.get(name)
        else:
            inputs[name] = _draw_input(tensor, sizes, shape, geometry, family, dtype, generator)
    if any(output.compare is Compare.SAMPLE for output in op.spec.outputs.values()):
        _repeat_rows(op, inputs, generator)
    caches: tuple[Tensor, ...] = ()
    if op.spec.reads_context and geometry:
        caches = _draw_caches(op, geometry, family, dtype, generator)
    kinds = {layer.cache_spec.kind for layer in cached_layers(op)}
    has_kinds = (CacheKind.STATE in kinds, CacheKind.CROSS in kinds)
    context = geometry.context(*has_kinds) if geometry and op.spec.reads_context else None
    phase = geometry.phase if geometry else None
    return Case(
        op="",
        init=dict(init),
        inputs=inputs,
        params=params,
        dtype=dtype,
        context=context,
        caches=caches,
        phase=phase,
        family=family,
    )


def _as_dtype(value: Any, tensor: TensorSpec, dtype: torch.dtype) -> Any:
    is_float = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if is_float and tensor.dtype == "op" else value


def _repeat_rows(op: Op, inputs: dict[str, Any], generator: torch.Generator) -> None:
    """Some requests of a sampler come twice, in other places of the batch: the same seed must give the same token."""
    names = [n for n, tensor in op.spec.inputs.items() if tensor.axes[:1] == ("num_rows",) and inputs[n] is not None]
    num_rows = len(inputs[names[0]])
    sources = torch.randint(0, max(num_rows, 1), (num_rows // 8,), generator=generator)
    places = torch.randperm(num_rows, generator=generator)[: num_rows // 8]
    for name in names:
        inputs[name][places] = inputs[name][sources].clone()


def _const_axes(op: Op) -> dict[str, int]:
    return {name: value for name, value in vars(op).items() if isinstance(value, int) and not isinstance(value, bool)}


def _draw_input(
    tensor: TensorSpec,
    sizes: Mapping[str, int],
    shape: Shape,
    geometry: Geometry | None,
    family: str,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Any:
    if geometry is not None:
        fixed = _from_geometry(tensor.role, geometry)
        if tensor.role is Role.SLOT:  # tokens that are not stored, as a padded batch has
            return fixed.masked_fill(_some(tuple(fixed.shape), _EDGE_SHARE, generator), -1)
        if fixed is not None:
            return fixed
    dims = tuple(d for axis in tensor.axes for d in (shape.lead if axis == "..." else (axis_size(axis, sizes),)))
    if tensor.role in _FAMILY_ROLES:
        target = dtype if tensor.dtype == "op" else getattr(torch, tensor.dtype)
        if tensor.role is Role.CACHE and geometry is not None:
            values = _draw_cache(dims, 0, geometry, family, target, generator)
        elif tensor.role is Role.STATE and geometry is not None:
            values = _draw_state(dims, geometry, family, target, generator)
        elif tensor.role is Role.LOGITS:
            values = _draw_logits(tensor, dims, family, target, generator)
        else:
            values = draw_floats(family, dims, generator, target).to(target)
        return _strided(values, generator) if tensor.may_be_strided and shape.is_strided else values
    return _draw_special(tensor, sizes, dims, generator)


def _draw_logits(
    tensor: TensorSpec, dims: tuple[int, ...], family: str, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """In an eighth of the rows over a vocabulary, half of the tokens are ruled out, as by a grammar: minus infinity."""
    logits = 3 * draw_floats(family, dims, generator, dtype)
    if tensor.axes[-1] == "vocab_size":
        is_out = _some((*dims[:-1], 1), _EDGE_SHARE, generator) & _some(dims, 1 / 2, generator)
        logits.masked_fill_(is_out & (logits < logits.amax(-1, keepdim=True)), -math.inf)
    return logits.to(dtype)


def _some(shape: tuple[int, ...], share: float, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator) < share


def _draw_special(
    tensor: TensorSpec, sizes: Mapping[str, int], dims: tuple[int, ...], generator: torch.Generator
) -> Tensor:
    bound = axis_size(tensor.bound, sizes) if tensor.bound else 1 << 30
    share = torch.rand(dims, generator=generator)
    is_edge = _some(dims, _EDGE_SHARE, generator)
    if tensor.role is Role.TEMPERATURE:
        is_low = _some(dims, _LOW_SHARE, generator)
        return torch.where(is_low, 0.02 * 25**share, 0.5 * 16**share).masked_fill(is_edge, 0.0)
    if tensor.role is Role.TOP_P:
        is_low = _some(dims, _LOW_SHARE, generator)
        return torch.where(is_low, 0.5 * 0.02**share, share * 0.5 + 0.5).masked_fill(is_edge, 1.0)
    if tensor.role is Role.TOP_K:  # as many of few tokens as of many: there the last one is likely
        return (bound**share).masked_fill(is_edge, 0.0).to(getattr(torch, tensor.dtype))
    if tensor.role is Role.MIN_P:
        return (1e-3**share).masked_fill(is_edge, 0.0)
    if tensor.role is Role.PENALTY:
        return (4 * share - 2).masked_fill(is_edge, 0.0)
    if tensor.role is Role.REPETITION_PENALTY:
        return (0.5 * 4**share).masked_fill(is_edge, 1.0)
    if tensor.role is Role.TOKEN_COUNT:  # of a few tokens: in the prompt, made once, both, or often
        return (300**share).masked_fill(~is_edge, 0.0).to(getattr(torch, tensor.dtype))
    if tensor.role is Role.BITMASK:
        return torch.randint(-(1 << 31), 1 << 31, dims, generator=generator).to(getattr(torch, tensor.dtype))
    if tensor.role is Role.MASK:
        return (share < 0.7).scatter_(-1, torch.randint(0, dims[-1], (*dims[:-1], 1), generator=generator), True)
    if tensor.role is Role.OPTIONAL_INDEX:
        index = torch.randint(0, bound, dims, generator=generator).to(getattr(torch, tensor.dtype))
        return index.masked_fill(is_edge, -1)
    return torch.randint(0, bound, dims, generator=generator).to(getattr(torch, tensor.dtype))


def _from_geometry(role: Role, geometry: Geometry) -> Any:
    """The value that the batch fixes for this role, or None when it fixes none."""
    match role:
        case Role.SLOT:
            return geometry.slot_mapping()
        case Role.PAGE_TABLE:
            return geometry.block_table()
        case Role.QUERY_START:
            return geometry.query_start_loc()
        case Role.SEQ_LEN:
            return geometry.seq_lens_tensor()
        case Role.POSITION:
            return geometry.positions()
        case Role.STATE_SLOT:
            return geometry.state_slots()
        case Role.HAS_STATE:
            return geometry.has_initial_state()
        case Role.MAX_QUERY_LEN:
            return max(geometry.query_lens)
        case Role.MAX_SEQ_LEN:
            return max(geometry.seq_lens)
        case Role.NUM_DECODES:
            return geometry.num_decodes
    return None


def _draw_cache(
    dims: tuple[int, ...],
    page_axis: int,
    geometry: Geometry,
    family: str,
    dtype: torch.dtype,
    generator: torch.Generator,
) -> Tensor:
    """Pages that no sequence owns hold NaN; slots past a sequence's end hold large finite values, as in service."""
    cache = draw_floats(family, dims, generator, dtype)
    owned = {page for pages in geometry.pages for page in pages}
    strays = torch.tensor([page for page in range(geometry.num_pages) if page not in owned])
    cache.index_fill_(page_axis, strays, float("nan"))
    return cache.to(dtype)


def _draw_state(
    dims: tuple[int, ...], geometry: Geometry, family: str, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Slots that hold nothing of a sequence yet are NaN: another request's, never to be read."""
    state = draw_floats(family, dims, generator, dtype)
    held = geometry.state_slots()[geometry.has_initial_state()].tolist()
    state[[slot for slot in range(dims[0]) if slot not in held]] = float("nan")
    return state.to(dtype)


def _draw_caches(
    op: Op, geometry: Geometry, family: str, dtype: torch.dtype, generator: torch.Generator
) -> tuple[Tensor, ...]:
    """Pages or states of every cached layer; a layer's states one after another."""
    caches = []
    for layer in cached_layers(op):
        spec = layer.cache_spec
        if spec.kind is CacheKind.STATE:
            shapes = [((geometry.num_slots, *shape), kind) for shape, kind in spec.state]
            caches += [_draw_state(shape, geometry, family, kind, generator) for shape, kind in shapes]
        else:
            axis = 0 if spec.kind is CacheKind.MLA else 1
            shape = spec.shape(geometry.num_pages, geometry.page_size)
            caches.append(_draw_cache(shape, axis, geometry, family, dtype, generator))
    return tuple(caches)


def _strided(x: Tensor, generator: torch.Generator) -> Tensor:
    """The same values, the last axis dense: rows padded, as a slice of a wider row has them, or only those of an axis
    further out, as heads have that are a slice of a fused projection."""
    if x.ndim < 2:
        return x
    axis = int(torch.randint(1, x.ndim, (1,), generator=generator))
    row = x[(0,) * axis].numel()
    wide = torch.zeros((*x.shape[:axis], row + 16), dtype=x.dtype)
    view = wide[..., 8 : 8 + row].unflatten(-1, x.shape[axis:])
    view.copy_(x)
    return view
