"""Draw one token a row after temperature, top-k and top-p, without sorting and without a generator's state.

A first kernel reads the logits once, in parallel over blocks of each row: it draws the row's token
where nothing is filtered and otherwise leaves the maxima and the mass of each strip. From these a
second kernel bounds the tokens that can survive, lists them, finds the two thresholds bit by bit
and draws among the survivors. The draw is the Gumbel-max of fastkernels.noise's bits by token id.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import check_dtypes, num_sms, tl, triton

BLOCK = 4096
STRIP = 256
"""Tokens over which the first kernel reduces; its maxima bound a top-k up to the number of strips."""
MAX_LISTED = 16384
"""Survivor candidates that are listed; when more pass the bound, every search step reads the whole row."""


@triton.jit
def _mix(x):
    """SplitMix64's finalizer on uint64 (https://doi.org/10.1145/2714064.2660195)."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@triton.jit
def _gumbel(state, ids):
    """-log(-log u), u = (top 52 bits + 1/2) / 2^52, in float32 with the tail u -> 1 kept to full precision."""
    bits = _mix(state + ids.to(tl.uint64) * 0x9E3779B97F4A7C15) >> 12
    is_upper = (bits >> 51) != 0
    tail = (tl.where(is_upper, 0xFFFFFFFFFFFFF - bits, bits).to(tl.float32) + 0.5) * 2.0**-52
    u = tl.where(is_upper, 1.0 - tail, tail)
    log_u = tl.log(u)
    # log1p(-tail) = log(u) * tail / (1 - u): the rounding of u = 1 - tail cancels.
    upper = tl.where(u == 1.0, tail, -log_u * (tail / tl.where(u == 1.0, 1.0, 1.0 - u)))
    return -tl.log(tl.where(is_upper, upper, -log_u))


@triton.jit
def _row_state(seed_ptr, row):
    return _mix(tl.load(seed_ptr + row).to(tl.uint64, bitcast=True) + 0x9E3779B97F4A7C15)


@triton.jit
def _ordered_key(x):
    """uint32 in the order of float32 x; x must not be -0.0."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) != 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _is_filtered(temperature, top_k, top_p, vocab_size):
    return (temperature > 0.0) & (((top_k > 0) & (top_k < vocab_size)) | (top_p < 1.0))


@triton.jit(do_not_specialize=["num_blocks"])
def _reduce_blocks_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, best_ptr, best_id_ptr, strip_max_ptr, strip_mass_ptr,
    logits_stride, vocab_size, num_blocks, BLOCK: tl.constexpr, STRIP: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0)
    row = (pid // num_blocks).to(tl.int64)
    block = pid % num_blocks
    temperature = tl.load(temperature_ptr + row)
    divisor = tl.where(temperature > 0.0, temperature, 1.0)
    is_filtered = _is_filtered(temperature, tl.load(top_k_ptr + row), tl.load(top_p_ptr + row), vocab_size)
    NUM_STRIPS: tl.constexpr = BLOCK // STRIP
    ids = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits_ptr + row * logits_stride + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32)
    if is_filtered:
        strips = tl.reshape(x, [NUM_STRIPS, STRIP])
        top = tl.max(strips, axis=1)
        shift = tl.where(top == float("-inf"), 0.0, top)
        mass = tl.sum(tl.exp((strips - shift[:, None]) / divisor), axis=1)
        places = row * num_blocks * NUM_STRIPS + block * NUM_STRIPS + tl.arange(0, NUM_STRIPS)
        tl.store(strip_max_ptr + places, top)
        tl.store(strip_mass_ptr + places, mass)
    else:
        scores = x / divisor
        if temperature > 0.0:
            scores += _gumbel(_row_state(seed_ptr, row), ids)
        best, place = tl.max(scores, axis=0, return_indices=True)
        tl.store(best_ptr + row * num_blocks + block, best)
        tl.store(best_id_ptr + row * num_blocks + block, block * BLOCK + place)


@triton.jit
def _candidates(row_ptr, list_ptr, start, count, is_listed, BLOCK: tl.constexpr):
    """The next block of candidates in the order of their ids: (ids, logits, which are there)."""
    places = start + tl.arange(0, BLOCK)
    is_there = places < count
    ids = places
    if is_listed:
        ids = tl.load(list_ptr + places, mask=is_there, other=0)
    x = tl.load(row_ptr + ids, mask=is_there, other=float("-inf")).to(tl.float32) + 0.0
    return ids, x, is_there


@triton.jit
def _threshold(
    row_ptr, list_ptr, count, is_listed, top, temperature, target,
    BY_MASS: tl.constexpr, KEY_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key such that the candidates from it up reach `target`, in number or in mass; two bits a pass.

    Returns: the key; number and mass of the candidates above it; the mass of one candidate at it.
    """
    found = tl.full([], 0, dtype=tl.uint32)
    step = tl.full([], 1 << 30, dtype=tl.uint32)
    for _ in range(KEY_BITS // 2):
        reached_1 = tl.zeros([BLOCK], dtype=tl.float32)
        reached_2 = tl.zeros([BLOCK], dtype=tl.float32)
        reached_3 = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, count, BLOCK):
            _ids, x, is_there = _candidates(row_ptr, list_ptr, start, count, is_listed, BLOCK)
            weight = tl.exp((x - top) / temperature) if BY_MASS else tl.full([BLOCK], 1.0, dtype=tl.float32)
            weight = tl.where(is_there, weight, 0.0)
            key = _ordered_key(x)
            reached_1 += tl.where(key >= found + step, weight, 0.0)
            reached_2 += tl.where(key >= found + step * 2, weight, 0.0)
            reached_3 += tl.where(key >= found + step * 3, weight, 0.0)
        digit = (tl.sum(reached_1, axis=0).to(tl.float64) >= target).to(tl.uint32)
        digit += (tl.sum(reached_2, axis=0).to(tl.float64) >= target).to(tl.uint32)
        digit += (tl.sum(reached_3, axis=0).to(tl.float64) >= target).to(tl.uint32)
        found += digit * step
        step = step >> 2
    number = tl.zeros([BLOCK], dtype=tl.int32)
    mass = tl.zeros([BLOCK], dtype=tl.float32)
    weight_at = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, count, BLOCK):
        _ids, x, is_there = _candidates(row_ptr, list_ptr, start, count, is_listed, BLOCK)
        key = _ordered_key(x)
        weight = tl.exp((x - top) / temperature)
        number += (is_there & (key > found)).to(tl.int32)
        mass += tl.where(is_there & (key > found), weight, 0.0)
        weight_at = tl.maximum(weight_at, tl.where(is_there & (key == found), weight, 0.0))
    return found, tl.sum(number, axis=0), tl.sum(mass, axis=0).to(tl.float64), tl.max(weight_at, axis=0)


@triton.jit
def _kth_strip_key(keys, k):
    """The k-th largest of uint32 keys, which bounds the k-th largest logit from below."""
    found = tl.full([], 0, dtype=tl.uint32)
    bit = tl.full([], 0x80000000, dtype=tl.uint32)
    for _ in range(32):
        found = tl.where(tl.sum((keys >= (found | bit)).to(tl.int32), axis=0) >= k, found | bit, found)
        bit = bit >> 1
    return found


@triton.jit
def _list_candidates(row_ptr, list_ptr, vocab_size, least_key, least_mass, top, temperature,
                     max_listed, BLOCK: tl.constexpr):  # fmt: skip
    """Write the ids of the tokens over both bounds, ascending; their number, which may pass max_listed."""
    count = tl.full([], 0, dtype=tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        x = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32) + 0.0
        is_in = (ids < vocab_size) & (_ordered_key(x) >= least_key) & (tl.exp((x - top) / temperature) >= least_mass)
        number = tl.sum(is_in.to(tl.int32), axis=0)
        if number > 0:
            places = count + tl.cumsum(is_in.to(tl.int32), axis=0) - 1
            tl.store(list_ptr + places, ids, mask=is_in & (places < max_listed))
        count += number
    return count


@triton.jit
def _draw(row_ptr, list_ptr, count, is_listed, key_at, num_tied, temperature, state, BLOCK: tl.constexpr):
    """Gumbel-max over the candidates above key_at and the first num_tied of those at it."""
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    best_id = tl.full([BLOCK], 0, dtype=tl.int32)
    seen = tl.full([], 0, dtype=tl.int32)
    for start in range(0, count, BLOCK):
        ids, x, is_there = _candidates(row_ptr, list_ptr, start, count, is_listed, BLOCK)
        key = _ordered_key(x)
        is_tied = (is_there & (key == key_at)).to(tl.int32)
        number = tl.sum(is_tied, axis=0)
        if seen + number > num_tied:
            is_tied = is_tied & (seen + tl.cumsum(is_tied, axis=0) <= num_tied).to(tl.int32)
        seen += number
        is_kept = is_there & ((key > key_at) | (is_tied > 0))
        scores = tl.where(is_kept, x / temperature + _gumbel(state, ids), float("-inf"))
        best_id = tl.where(scores > best, ids, best_id)
        best = tl.maximum(best, scores)
    is_best = best == tl.max(best, axis=0)
    return tl.min(tl.where(is_best, best_id, 0x7FFFFFFF), axis=0)


@triton.jit(do_not_specialize=["num_blocks", "num_strips", "max_listed"])
def _sample_rows_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, best_ptr, best_id_ptr, strip_max_ptr, strip_mass_ptr,
    list_ptr, out_ptr, logits_stride, vocab_size, num_blocks, num_strips, max_listed,
    KEY_BITS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_BLOCKS: tl.constexpr, BLOCK_STRIPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    k = tl.load(top_k_ptr + row).to(tl.int32)
    p = tl.load(top_p_ptr + row)
    if not _is_filtered(temperature, k, p, vocab_size):
        blocks = tl.arange(0, BLOCK_BLOCKS)
        mask = blocks < num_blocks
        best = tl.load(best_ptr + row * num_blocks + blocks, mask=mask, other=float("-inf"))
        place = tl.argmax(best, axis=0)
        tl.store(out_ptr + row, tl.load(best_id_ptr + row * num_blocks + place).to(tl.int64))
        return

    strips = tl.arange(0, BLOCK_STRIPS)
    mask = strips < num_strips
    strip_max = tl.load(strip_max_ptr + row * num_strips + strips, mask=mask, other=float("-inf")) + 0.0
    strip_mass = tl.load(strip_mass_ptr + row * num_strips + strips, mask=mask, other=0.0)
    top = tl.max(strip_max, axis=0)
    top = tl.where(top == float("-inf"), 0.0, top)
    is_k = (k > 0) & (k < vocab_size)
    total = tl.sum(strip_mass * tl.exp((strip_max - top) / temperature), axis=0).to(tl.float64)
    least_key = tl.full([], 0, dtype=tl.uint32)
    least_mass = tl.full([], 0.0, dtype=tl.float32)
    if is_k:
        if k <= num_strips:
            least_key = _kth_strip_key(_ordered_key(strip_max), k)
    else:
        # Tokens this light weigh less than 1 - p together, so the nucleus ends before them; halved for rounding.
        least_mass = (0.5 * (1.0 - p) * (total / vocab_size)).to(tl.float32)

    row_ptr = logits_ptr + row * logits_stride
    list_ptr += row * max_listed
    count = _list_candidates(
        row_ptr, list_ptr, vocab_size, least_key, least_mass, top, temperature, max_listed, BLOCK * 2
    )  # fmt: skip
    tl.debug_barrier()
    is_listed = count <= max_listed
    count = tl.where(is_listed, count, vocab_size)
    key_at = tl.full([], 0, dtype=tl.uint32)
    num_tied = tl.full([], 0x7FFFFFFF, dtype=tl.int32)
    if is_k:
        key_at, above, mass, weight = _threshold(
            row_ptr, list_ptr, count, is_listed, top, temperature, k.to(tl.float64), False, KEY_BITS, BLOCK
        )
        num_tied = k - above
        total = mass + num_tied.to(tl.float64) * weight.to(tl.float64)
    if p < 1.0:
        target = p.to(tl.float64) * total
        nucleus_key, above, mass, weight = _threshold(
            row_ptr, list_ptr, count, is_listed, top, temperature, target, True, KEY_BITS, BLOCK
        )
        if nucleus_key >= key_at:
            reach = tl.ceil((target - mass) / tl.maximum(weight, 1e-38).to(tl.float64))
            kept = tl.minimum(tl.maximum(reach, 1.0), 2147483647.0).to(tl.int32)
            num_tied = tl.where(nucleus_key == key_at, tl.minimum(kept, num_tied), kept)
            key_at = nucleus_key
    token = _draw(
        row_ptr, list_ptr, count, is_listed, key_at, num_tied, temperature, _row_state(seed_ptr, row), BLOCK
    )  # fmt: skip
    tl.store(out_ptr + row, token.to(tl.int64))


_KEY_BITS = {torch.bfloat16: 16, torch.float16: 20, torch.float32: 32}
"""Leading bits of an ordered key that can differ, even: float16 has 13 mantissa bits less than float32."""


def top_k_top_p_sample(logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, seeds: Tensor) -> Tensor:
    """Token ids drawn from softmax(logits / temperature), cut to the top k and then to the nucleus of p.

    Equal logits are ordered by id, and the token that crosses p is kept. Temperature 0 is the argmax.

    Shapes:  logits: [num_rows, vocab_size], rows may be strided; all others and the result: [num_rows].
    Dtypes:  logits bf16, fp16 or fp32; temperature, top_p fp32; top_k int32 or int64 (0: off); seeds and ids int64.
    Errors:  UnsupportedError for another dtype of logits.
    """
    check_dtypes("top_k_top_p_sample", logits=logits)
    num_rows, vocab_size = logits.shape
    device = logits.device
    ids = torch.empty(num_rows, dtype=torch.int64, device=device)
    if num_rows == 0:
        return ids
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    block = min(BLOCK, max(STRIP, triton.next_power_of_2(vocab_size)))
    num_blocks = triton.cdiv(vocab_size, block)
    num_strips = num_blocks * (block // STRIP)
    best = torch.empty((num_rows, num_blocks), dtype=torch.float32, device=device)
    best_id = torch.empty((num_rows, num_blocks), dtype=torch.int32, device=device)
    strip_max = torch.empty((num_rows, num_strips), dtype=torch.float32, device=device)
    strip_mass = torch.empty_like(strip_max)
    listed = torch.empty((num_rows, min(MAX_LISTED, vocab_size)), dtype=torch.int32, device=device)
    rows = (temperature.float(), top_k, top_p.float(), seeds)
    partial = (best, best_id, strip_max, strip_mass)
    _reduce_blocks_kernel[(num_rows * num_blocks,)](
        logits, *rows, *partial, logits.stride(0), vocab_size, num_blocks, BLOCK=block, STRIP=STRIP, num_warps=8
    )
    # Up to one row a multiprocessor: all of its threads; more rows: two at once.
    warps = 16 if num_rows <= num_sms(device) else 8
    _sample_rows_kernel[(num_rows,)](
        logits, *rows, *partial, listed, ids, logits.stride(0), vocab_size, num_blocks, num_strips,
        listed.shape[1], KEY_BITS=_KEY_BITS[logits.dtype], BLOCK=min(block, 256 * warps),
        BLOCK_BLOCKS=triton.next_power_of_2(num_blocks), BLOCK_STRIPS=triton.next_power_of_2(num_strips),
        num_warps=warps,
    )  # fmt: skip
    return ids
