"""Chunks of packed sequences, numbered so that a program finds its own: no length is read on the host."""
# mypy: allow-untyped-defs
# ruff: noqa: N803

from fastkernels.kernels.backend import tl, triton


def num_chunks(num_tokens: int, num_seqs: int, chunk: int) -> int:
    """At least as many as there are numbers; some of those stand for no chunk."""
    return num_tokens // chunk + num_seqs


@triton.jit
def first_number(starts_ptr, seq, CHUNK: tl.constexpr):
    """Of a sequence's chunks; the others follow one by one, and end before the next sequence's first."""
    return tl.load(starts_ptr + seq) // CHUNK + seq


@triton.jit
def chunk_of(starts_ptr, num_seqs, number, CHUNK: tl.constexpr):
    """The sequence of the chunk of this number, the chunk's first row and the sequence's end; nothing is left of rows
    where first >= end.

    starts: [num_seqs + 1], int32, not decreasing, the first 0.
    """
    low, high = 0, num_seqs - 1
    while low < high:
        middle = (low + high + 1) // 2
        if first_number(starts_ptr, middle, CHUNK) <= number:
            low = middle
        else:
            high = middle - 1
    start, end = tl.load(starts_ptr + low), tl.load(starts_ptr + low + 1)
    return low, start + (number - start // CHUNK - low) * CHUNK, end
