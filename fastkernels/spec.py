"""What an op promises about its tensors: axes, dtypes, roles, mutation. Data only.

Axis names are resolved on a constructed op: an axis is constant when the op has an int attribute
of that name (hidden_size), otherwise it varies with the call (num_tokens). "..." stands for any
number of leading axes; "2*d" for twice an axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from fastkernels.errors import UsageError


class Role(StrEnum):
    """What a tensor means: decides how test values are drawn and what a capture keeps by value."""

    ACTIVATION = "activation"  # floats, drawn from the input families
    LOGITS = "logits"  # floats over a vocabulary
    CACHE = "cache"  # floats in pages; only touched pages are captured
    STATE = "state"  # [num_slots, ...] floats, a slot a sequence; only touched slots are captured
    TOKEN_ID = "token_id"  # ints in [0, bound)
    POSITION = "position"  # ints in [0, bound): place of a token in its sequence
    INDEX = "index"  # ints in [0, bound)
    OPTIONAL_INDEX = "optional_index"  # ints in [-1, bound); -1: none
    SLOT = "slot"  # page * page_size + offset per token; -1: not stored
    PAGE_TABLE = "page_table"  # [num_seqs, max_pages]; negative entries are never read
    QUERY_START = "query_start"  # [num_seqs + 1]: first query row of each sequence
    SEQ_LEN = "seq_len"  # [num_seqs]: cached plus new tokens of each sequence
    STATE_SLOT = "state_slot"  # [num_seqs]: the slot of each sequence's states, none twice
    HAS_STATE = "has_state"  # [num_seqs] bool: whether the slot holds anything of the sequence yet
    TEMPERATURE = "temperature"  # floats >= 0; 0 is greedy
    TOP_K = "top_k"  # ints in [0, vocab]; 0 is off
    TOP_P = "top_p"  # floats in (0, 1]; 1 is off
    MIN_P = "min_p"  # floats in [0, 1]; 0 is off
    PENALTY = "penalty"  # floats in [-2, 2]; 0 is off
    REPETITION_PENALTY = "repetition_penalty"  # floats > 0; 1 is off
    TOKEN_COUNT = "token_count"  # ints, mostly 0: 2 * (times a token was made) + (1 if it is in the prompt)
    BITMASK = "bitmask"  # int32 words, bit i of word w for token 32 * w + i
    SEED = "seed"  # int64 per row; the same seed gives the same sample
    MASK = "mask"  # bool; True takes part, at least one in each row of the last axis
    COUPLED = "coupled"  # values that make sense only beside others: drawn by the op's `coupled_inputs`
    SCALAR = "scalar"  # a Python number or bool; one named as an axis is that axis' size
    MAX_QUERY_LEN = "max_query_len"  # Python int: the largest query length of the batch
    MAX_SEQ_LEN = "max_seq_len"  # Python int: the largest sequence length of the batch
    NUM_DECODES = "num_decodes"  # Python int: so many sequences at the front have a single new token, or more of them


GEOMETRY_ROLES = frozenset(
    {
        Role.SLOT,
        Role.PAGE_TABLE,
        Role.QUERY_START,
        Role.SEQ_LEN,
        Role.STATE_SLOT,
        Role.HAS_STATE,
        Role.MAX_QUERY_LEN,
        Role.MAX_SEQ_LEN,
        Role.NUM_DECODES,
    }
)
"""Roles whose values only make sense together: one batch geometry fills them all."""


class Compare(StrEnum):
    """How an output is judged."""

    VALUES = "values"  # elementwise, per row and by bias against the definition
    EXACT = "exact"  # bit for bit: data movement
    VALUE_AT_INDEX = "value_at_index"  # an index may differ when the value it points at is as good
    SAMPLE = "sample"  # a statistical test over many draws


@dataclass(frozen=True)
class Vary:
    """How a coupled input differs from one timed call to the next and stays one that the op can be given.

    rolls: the axis along which all inputs that name it are rolled alike. share: by how much of itself, at most, every
    float becomes smaller, in (0, 0.4]; one that nobody can guess by up to twice as much. is_few: one in 4093
    alone.
    """

    rolls: str | None = None
    share: float = 0.0
    is_few: bool = False


_AXIS = re.compile(r"^(?:\.\.\.|(?:\d+|[a-z_][a-z0-9_]*|\d+\*[a-z_][a-z0-9_]*))$")


@dataclass(frozen=True)
class TensorSpec:
    """One argument or result: axes by name, dtype, role.

    dtype "op" means the op's activation dtype; otherwise a torch dtype name ("int64", "float32").
    `bound` names the axis that bounds integer values, or the op's attribute with a bound for each index of the last
    axis but one; coupled integers that have one are shifted within it in timed calls. `of` names the input whose
    values an index output points at (for Compare.VALUE_AT_INDEX). `vary`: of Role.COUPLED.
    """

    axes: tuple[str, ...] = ()
    dtype: str = "op"
    role: Role = Role.ACTIVATION
    is_optional: bool = False
    bound: str | None = None
    compare: Compare = Compare.VALUES
    of: str | None = None
    may_be_strided: bool = False
    vary: Vary | None = None

    def __post_init__(self) -> None:
        for axis in self.axes:
            if not _AXIS.match(axis):
                raise UsageError(f"Axis {axis!r} is not a name, a number, 'n*name' or '...'.")
        if "..." in self.axes[1:]:
            raise UsageError(f"'...' may only be the first axis, got {self.axes}.")

    def optional(self) -> TensorSpec:
        return replace(self, is_optional=True)

    def strided(self) -> TensorSpec:
        """The last axis is dense, the others may have any stride: an op must not assume contiguity."""
        return replace(self, may_be_strided=True)

    @property
    def is_image(self) -> bool:
        """Whether it may lie in memory as an image does: plane by plane, or channels last."""
        return len(self.axes) == 4 and self.axes[2].endswith("height") and self.axes[3].endswith("width")


TOKENS = TensorSpec(("...", "hidden_size"))
"""Activations, one row a token."""


def scalar(role: Role = Role.SCALAR, *, is_optional: bool = False) -> TensorSpec:
    return TensorSpec(role=role, dtype="python", is_optional=is_optional)


@dataclass(frozen=True)
class Cost:
    """The fewest bytes an op must move through device memory and the operations it must do."""

    num_bytes: int
    num_flops: int = 0

    def plus_bytes(self, num_bytes: int) -> Cost:
        return Cost(self.num_bytes + num_bytes, self.num_flops)


@dataclass(frozen=True)
class OpSpec:
    """The contract of an op's `forward`, by argument name.

    inputs, outputs: in the order of the signature and of the returned tuple. An optional output is
        returned exactly when the optional input named in `returned_with` (output -> input) is given.
    mutates: arguments that are written to, and "kv_cache" for caches reached through the layer.
    reads_context: whether forward reads fastkernels.context (positions of a batch in its pages).
    dtypes: accepted activation dtypes.
    examples: keyword arguments of `__init__` at which every test and every judge builds the op,
        beside the captured ones; include an awkward one (odd or prime sizes).
    example_axes: sizes at which variable axes are tried first; the judge adds hidden ones to those not named here. Also
        sizes that no tensor has, from which the op's `derived_axes` makes others.
    is_exact_on_integers: sums of products of small integers must come out without any error.
    num_ranks: how many processes a call needs (collectives: 2).
    may_be_empty: variable axes that may be 0; every other is at least 1.
    """

    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    mutates: tuple[str, ...] = ()
    returned_with: Mapping[str, str] = field(default_factory=dict)
    reads_context: bool = False
    dtypes: tuple[str, ...] = ("bfloat16", "float16", "float32")
    examples: tuple[Mapping[str, Any], ...] = ({},)
    example_axes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    is_exact_on_integers: bool = False
    num_ranks: int = 1
    may_be_empty: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in self.mutates:
            if name not in self.inputs and name != "kv_cache":
                raise UsageError(f"mutates names {name!r}, which is not an input: {list(self.inputs)}.")
        for output, source in self.returned_with.items():
            if output not in self.outputs or source not in self.inputs:
                raise UsageError(f"returned_with {output!r}: {source!r} names no output or no input.")

    @property
    def uses_pages(self) -> bool:
        """Whether inputs only make sense together as one batch geometry."""
        roles = {tensor.role for tensor in self.inputs.values()}
        return self.reads_context or bool(roles & GEOMETRY_ROLES)


def axis_size(axis: str, sizes: Mapping[str, int]) -> int:
    """The size of one axis expression ("7", "d", "2*d") given sizes by name.

    Errors: KeyError when a name is unknown.
    """
    if axis.isdigit():
        return int(axis)
    if "*" in axis:
        factor, name = axis.split("*")
        return int(factor) * sizes[name]
    return sizes[axis]
