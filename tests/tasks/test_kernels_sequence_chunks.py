"""Each chunk of packed sequences is found by its number: run by test_kernels_interpreter.py, or TRITON_INTERPRET=1."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastkernels.env import triton_interpreted

if not triton_interpreted():
    pytest.skip("needs TRITON_INTERPRET=1; test_kernels_interpreter.py sets it", allow_module_level=True)

from fastkernels.kernels.backend import tl, triton
from fastkernels.kernels.sequence_chunks import chunk_of, num_chunks


@triton.jit
def _write_kernel(starts_ptr, num_seqs, out_ptr, CHUNK: tl.constexpr):  # noqa: N803
    number = tl.program_id(0)
    seq, first, end = chunk_of(starts_ptr, num_seqs, number, CHUNK)
    tl.store(out_ptr + number * 3, seq)
    tl.store(out_ptr + number * 3 + 1, first)
    tl.store(out_ptr + number * 3 + 2, end)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=9))
def test_every_chunk_has_one_number(lengths: list[int]) -> None:
    starts = torch.tensor([0, *lengths]).cumsum(0).int()
    found = torch.full((num_chunks(int(starts[-1]), len(lengths), 16), 3), -1, dtype=torch.int32)
    _write_kernel[(len(found),)](starts, len(lengths), found, CHUNK=16)
    chunks = [(seq, first, end) for seq, first, end in found.tolist() if first < end]
    bounds = [(int(starts[seq]), int(starts[seq + 1])) for seq in range(len(lengths))]
    assert chunks == [(s, at, end) for s, (start, end) in enumerate(bounds) for at in range(start, end, 16)]
