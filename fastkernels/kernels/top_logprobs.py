"""Log-probabilities of one token a row and of the likeliest, with its rank, without writing a softmax.

A first kernel reads the logits once: mass, count of larger logits, and the largest of each strip. A second one
takes the likeliest token from the strips' largest, then that strip's next, as often as asked.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, tl, triton
from fastkernels.kernels.greedy_sample import _ordered_key

BLOCK = 4096
STRIP = 128


@triton.jit
def _place_key(x, ids):
    """int64 in the order of float32 x, then of the lower id; unlike for all tokens of a row."""
    return (_ordered_key(x).to(tl.int64) << 32) | (0x7FFFFFFF - ids).to(tl.int64)


@triton.jit(do_not_specialize=["num_blocks"])
def _reduce_blocks_kernel(
    logits_ptr, chosen_ptr, max_ptr, mass_ptr, larger_ptr, strip_ptr, logits_stride, vocab_size, num_blocks,
    HAS_TOP: tl.constexpr, BLOCK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    block = pid % num_blocks
    row_ptr = logits_ptr + row * logits_stride
    NUM_STRIPS: tl.constexpr = BLOCK // STRIP
    ids = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    chosen = tl.load(row_ptr + tl.load(chosen_ptr + row)).to(tl.float32)
    top = tl.max(x, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    tl.store(max_ptr + pid, top)
    tl.store(mass_ptr + pid, tl.sum(tl.exp(x - shift), axis=0))
    tl.store(larger_ptr + pid, tl.sum((x > chosen).to(tl.int32), axis=0))
    if HAS_TOP:
        keys = tl.max(tl.reshape(_place_key(x, ids), [NUM_STRIPS, STRIP]), axis=1)
        tl.store(strip_ptr + pid.to(tl.int64) * NUM_STRIPS + tl.arange(0, NUM_STRIPS), keys)


@triton.jit(do_not_specialize=["num_blocks", "num_strips", "num_top"])
def _top_kernel(
    logits_ptr, chosen_ptr, max_ptr, mass_ptr, larger_ptr, strip_ptr,
    top_id_ptr, top_logprob_ptr, chosen_logprob_ptr, rank_ptr,
    logits_stride, vocab_size, num_blocks, num_strips, num_top,
    HAS_TOP: tl.constexpr, STRIP: tl.constexpr, BLOCK_BLOCKS: tl.constexpr, BLOCK_STRIPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * logits_stride
    blocks = tl.arange(0, BLOCK_BLOCKS)
    is_block = blocks < num_blocks
    tops = tl.load(max_ptr + row * num_blocks + blocks, mask=is_block, other=float("-inf"))
    masses = tl.load(mass_ptr + row * num_blocks + blocks, mask=is_block, other=0.0)
    top = tl.max(tops, axis=0)
    shift = tl.where(top == float("-inf"), 0.0, top)
    log_mass = tl.log(tl.sum(masses * tl.exp(tops - shift), axis=0))
    chosen = tl.load(row_ptr + tl.load(chosen_ptr + row)).to(tl.float32)
    tl.store(chosen_logprob_ptr + row, (chosen - shift) - log_mass)
    larger = tl.sum(tl.load(larger_ptr + row * num_blocks + blocks, mask=is_block, other=0), axis=0)
    tl.store(rank_ptr + row, larger.to(tl.int64) + 1)
    if HAS_TOP:
        LEAST: tl.constexpr = -0x8000000000000000
        strips = tl.arange(0, BLOCK_STRIPS)
        keys = tl.load(strip_ptr + row * num_strips + strips, mask=strips < num_strips, other=LEAST)
        for place in range(num_top):
            key = tl.max(keys, axis=0)
            token = 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)
            x = tl.load(row_ptr + token).to(tl.float32)
            tl.store(top_id_ptr + row * num_top + place, token.to(tl.int64))
            tl.store(top_logprob_ptr + row * num_top + place, (x - shift) - log_mass)
            strip = token // STRIP
            ids = strip * STRIP + tl.arange(0, STRIP)
            x = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
            rest = _place_key(x, ids)
            rest = tl.where((rest < key) & (ids < vocab_size), rest, LEAST)
            keys = tl.where(strips == strip, tl.max(rest, axis=0), keys)


def top_logprobs(logits: Tensor, token_ids: Tensor, num_logprobs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(ids of the likeliest, their log-probabilities, those of token_ids, their ranks).

    Shapes:  logits: [num_rows, vocab_size], rows may be strided; token_ids, the last two: [num_rows]; the first two:
             [num_rows, num_logprobs].
    Dtypes:  logits bf16, fp16 or fp32; log-probabilities fp32; token_ids, ids and ranks int64.
    Errors:  UnsupportedError for another dtype of logits.
    """
    check_dtypes("top_logprobs", logits=logits)
    num_rows, vocab_size = logits.shape
    device = logits.device
    top_ids = torch.empty((num_rows, num_logprobs), dtype=torch.int64, device=device)
    top = torch.empty((num_rows, num_logprobs), dtype=torch.float32, device=device)
    chosen = torch.empty(num_rows, dtype=torch.float32, device=device)
    ranks = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return top_ids, top, chosen, ranks
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    block = min(BLOCK, max(STRIP, triton.next_power_of_2(vocab_size)))
    num_blocks = triton.cdiv(vocab_size, block)
    num_strips = num_blocks * (block // STRIP)
    tops, masses = torch.empty((2, num_rows, num_blocks), dtype=torch.float32, device=device)
    larger = torch.empty((num_rows, num_blocks), dtype=torch.int32, device=device)
    strips = torch.empty((num_rows, num_strips if num_logprobs else 0), dtype=torch.int64, device=device)
    _reduce_blocks_kernel[(num_rows * num_blocks,)](
        logits, token_ids, tops, masses, larger, strips, logits.stride(0), vocab_size, num_blocks,
        HAS_TOP=num_logprobs > 0, BLOCK=block, STRIP=STRIP, num_warps=4,
    )  # fmt: skip
    _top_kernel[(num_rows,)](
        logits, token_ids, tops, masses, larger, strips, top_ids, top, chosen, ranks,
        logits.stride(0), vocab_size, num_blocks, num_strips, num_logprobs, HAS_TOP=num_logprobs > 0,
        STRIP=STRIP,
        BLOCK_BLOCKS=triton.next_power_of_2(num_blocks), BLOCK_STRIPS=triton.next_power_of_2(num_strips), num_warps=4,
    )  # fmt: skip
    return top_ids, top, chosen, ranks
