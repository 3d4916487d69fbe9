"""The shapes of one op that a candidate is judged at: sizes, batches and layouts inside the contract's axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from fastkernels.cache import CacheKind, cached_layers
from fastkernels.context import Phase
from fastkernels.harness.geometry import Geometry, draw_geometry
from fastkernels.op import Op
from fastkernels.spec import Compare, Role

FAMILIES = ("normal", "heavy_tailed", "integers", "cancellation", "one_hot", "wide_range")
"""Of float values, beside "captured". integers: sums are exact; cancellation: large terms that nearly cancel;
wide_range: rows over six decades, which a lower precision or an absolute tolerance does not survive."""

_LARGE_FAMILIES = ("normal", "wide_range")

_NUM_DRAWS = 1021
"""Rows of one call by which a sampler's distribution is told from another's."""

_MANY_ROWS, _MANY_SEQS = 1031, 33
"""Of the one shape that is large: of 256, 512 or 1,024 rows, or of 32 sequences, it leaves some over."""
_LARGE_INDEX, _LARGE_MAX_LEN = 4, 33
_MOST_WIDE = 1024
"""Rows that are wider are long enough to be slow: there are no more of them than in other shapes."""

_NUM_FRONT = (1, 0, 2)
"""Of mixed batches one after another: sequences at the front that decode. The second is a prompt's chunk alone."""

_PRIMES, _TAILS = (2, 3, 5, 7, 11, 13, 17, 29, 37), (31, 33, 63, 65)

_GEOMETRY_AXES = frozenset(
    {"num_tokens", "num_seqs", "num_pages", "page_size", "max_pages", "num_seqs_plus_1", "num_slots"}
)


@dataclass(frozen=True)
class Shape:
    """Sizes of the variable axes of one call. lead: what "..." stands for. families: of its values."""

    lead: tuple[int, ...]
    axes: Mapping[str, int]
    geometry: Geometry | None
    is_strided: bool
    has_optional: bool
    families: tuple[str, ...] = FAMILIES


def phases_of(op: Op) -> tuple[Phase, ...]:
    """The kinds of batch that an op's arguments can describe."""
    roles = {tensor.role for tensor in op.spec.inputs.values()}
    if op.spec.reads_context:
        return (Phase.PREFILL, Phase.DECODE, Phase.MIXED)
    if Role.STATE_SLOT in roles:
        return (Phase.PREFILL, Phase.MIXED) if Role.QUERY_START in roles else (Phase.DECODE,)
    if Role.SEQ_LEN in roles and Role.QUERY_START not in roles:
        return (Phase.DECODE,)
    if Role.QUERY_START in roles and Role.PAGE_TABLE not in roles:
        return (Phase.PREFILL,)
    return (Phase.MIXED,)


def hidden_shapes(op: Op, generator: torch.Generator, count: int) -> list[Shape]:
    """Shapes inside the declared axes: one row, primes, tails of a tile, strided rows, scattered pages, one request, a
    long one beside a single token, many rows or sequences; no row at all, as one more, where the op says that an axis
    may be empty.

    Each size that an axis is declared with comes before any comes again: two shapes are never both of the least.
    """

    def pick(options: tuple[int, ...]) -> int:
        return _pick(options, generator)

    def shuffled(options: tuple[int, ...]) -> list[int]:
        return [options[i] for i in torch.randperm(len(options), generator=generator).tolist()]

    shapes = []
    sizes = {name: shuffled(op.spec.example_axes.get(name, _PRIMES)) for name in sorted(free_axes(op))}
    phases = phases_of(op)
    sampled = {output.axes[0] for output in op.spec.outputs.values() if output.compare is Compare.SAMPLE}
    counted = {"num_rows"} & sizes.keys() - op.spec.example_axes.keys()
    for index in range(count):
        free = {name: options[index % len(options)] for name, options in sizes.items()}
        is_large = index == _LARGE_INDEX
        rows = (1, pick(_PRIMES), pick(_TAILS))[index % 3]
        if is_large:
            free |= {name: options[0] for name, options in op.spec.example_axes.items()}
            rows = _MANY_ROWS if _width(op, free) <= _MOST_WIDE else pick(_TAILS)
            free |= dict.fromkeys(counted, rows)
        free |= {name: _NUM_DRAWS for name in sampled if index % 3 == 1}
        geometry = None
        if op.spec.uses_pages:
            phase = phases[index % len(phases)]
            is_padded = phase is Phase.DECODE and index >= 2 and _takes_padding(op)
            geometry = _draw_batch(generator, phase, index, is_padded=is_padded)
        lead = (rows,) if index % 2 == 0 else (pick((1, 2, 3)), rows)
        families = _LARGE_FAMILIES if is_large and not sampled else FAMILIES
        has_optional = index % 4 in (0, 3)
        shapes.append(Shape(lead, free, geometry, index % 2 == 1, has_optional, families))
    if shapes and op.spec.may_be_empty:
        free = {**shapes[0].axes, **dict.fromkeys(op.spec.may_be_empty, 0)}
        shapes.append(Shape((0,), free, None, is_strided=False, has_optional=True))
    return shapes


def free_axes(op: Op) -> set[str]:
    """Axes whose size is neither the op's nor the batch's."""
    names = set(op.spec.example_axes)
    for tensor in op.spec.inputs.values():
        for axis in tensor.axes:
            name = axis.split("*")[-1]
            if name != "..." and not name.isdigit() and not isinstance(getattr(op, name, None), int):
                names.add(name)
    return names - _GEOMETRY_AXES


def _width(op: Op, sizes: Mapping[str, int]) -> int:
    """Of the widest row that the sizes of the op and of this call give."""
    known = {**sizes, **{name: value for name, value in vars(op).items() if isinstance(value, int)}}
    ends = (tensor.axes[-1] for tensor in op.spec.inputs.values() if tensor.axes)
    return max((known.get(end.split("*")[-1], 1) for end in ends), default=1)


def _takes_padding(op: Op) -> bool:
    """Whether a batch of decodes may hold rows of no request, as in a CUDA graph: states would have a slot for them."""
    kinds = {layer.cache_spec.kind for layer in cached_layers(op)}
    has_slots = any(tensor.role is Role.STATE_SLOT for tensor in op.spec.inputs.values())
    return not has_slots and kinds <= {CacheKind.FULL, CacheKind.WINDOW}


def _draw_batch(generator: torch.Generator, phase: Phase, index: int, *, is_padded: bool) -> Geometry:
    """The batch of the shape of that number."""
    is_long, is_alone, is_ragged, is_large = (index == i for i in (0, 1, 2, _LARGE_INDEX))
    lengths = (70,) if is_long else (40, 70) if is_ragged else (_LARGE_MAX_LEN,) if is_large else (1, 9, 17, 40, 70)
    num_front = _NUM_FRONT[index % len(_NUM_FRONT)]
    counts = (1,) if is_alone else (_MANY_SEQS,) if is_large else (2, 3, 5) if num_front == 2 else (1, 2, 3, 5)
    return draw_geometry(
        generator,
        phase,
        num_seqs=_pick(counts, generator),
        max_len=_pick(lengths, generator),
        page_size=_pick((1, 8, 16), generator),
        is_fixed=is_long,  # a kernel may look at the last tokens alone
        is_ragged=is_ragged,
        num_front=num_front,
        is_padded=is_padded,
    )


def _pick(options: tuple[int, ...], generator: torch.Generator) -> int:
    return options[int(torch.randint(0, len(options), (1,), generator=generator))]
