"""Draw one token a row after temperature, top-k and top-p, without sorting and without a generator's state.

A first kernel reads the logits once, in parallel over blocks of each row: it draws the row's token
where nothing is filtered and otherwise leaves the maximum and the mass of each strip. From these a
second kernel bounds the tokens that can survive and lists them from the strips that hold any. Where
they fit one tile, both thresholds are found bit by bit in registers, else by passes over the row.
The draw is the Gumbel-max of fastkernels.noise's bits by token id.
"""
# mypy: allow-untyped-defs
# ruff: noqa: N803

import torch
from torch import Tensor

from fastkernels.kernels.backend import ROW_POINTERS, check_dtypes, num_sms, tl, triton

BLOCK = 4096
STRIP = 256
"""Tokens over which the first kernel reduces; its maxima bound a top-k up to the number of strips."""
TILE = 4096
"""Candidates that one program holds in registers; where more pass the bounds, the row is searched in passes."""


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


@triton.jit(do_not_specialize=["num_blocks"], do_not_specialize_on_alignment=ROW_POINTERS)
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
        # A reduction over NaN may give the place of a padded lane. The likeliest token is the first NaN, as torch's.
        scores = tl.where(scores == scores, scores, tl.where(temperature > 0.0, float("-inf"), float("inf")))
        best, place = tl.max(scores, axis=0, return_indices=True)
        tl.store(best_ptr + row * num_blocks + block, best)
        tl.store(best_id_ptr + row * num_blocks + block, block * BLOCK + place)


@triton.jit
def _load_row(row_ptr, start, vocab_size, BLOCK: tl.constexpr):
    """(ids, logits) of a block of a row; 0.0 is added to turn -0.0, which equals it, into it."""
    ids = start + tl.arange(0, BLOCK)
    return ids, tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32) + 0.0


@triton.jit
def _whole_key(found, KEY_BITS: tl.constexpr):
    """The key of a logit of fewer bits than float32, of its leading bits: the others of a negative one's are ones."""
    return tl.where((found >> 31) != 0, found, found | ((1 << (32 - KEY_BITS)) - 1))


@triton.jit
def _row_threshold(
    row_ptr, vocab_size, top, temperature, target,
    BY_MASS: tl.constexpr, KEY_BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest key such that the row's tokens from it up reach `target`, in number or in mass; two bits a pass.

    Returns: the key; number and mass of the tokens above it; the mass of one token at it.
    """
    found = tl.full([], 0, dtype=tl.uint32)
    step = tl.full([], 1 << 30, dtype=tl.uint32)
    for _ in range(KEY_BITS // 2):
        reached_1 = tl.zeros([BLOCK], dtype=tl.float32)
        reached_2 = tl.zeros([BLOCK], dtype=tl.float32)
        reached_3 = tl.zeros([BLOCK], dtype=tl.float32)
        for start in range(0, vocab_size, BLOCK):
            ids, x = _load_row(row_ptr, start, vocab_size, BLOCK)
            weight = tl.exp((x - top) / temperature) if BY_MASS else (ids < vocab_size).to(tl.float32)
            key = _ordered_key(x)
            reached_1 += tl.where(key >= found + step, weight, 0.0)
            reached_2 += tl.where(key >= found + step * 2, weight, 0.0)
            reached_3 += tl.where(key >= found + step * 3, weight, 0.0)
        digit = (tl.sum(reached_1, axis=0).to(tl.float64) >= target).to(tl.uint32)
        digit += (tl.sum(reached_2, axis=0).to(tl.float64) >= target).to(tl.uint32)
        digit += (tl.sum(reached_3, axis=0).to(tl.float64) >= target).to(tl.uint32)
        found += digit * step
        step = step >> 2
    found = _whole_key(found, KEY_BITS)
    number = tl.zeros([BLOCK], dtype=tl.int32)
    mass = tl.zeros([BLOCK], dtype=tl.float32)
    weight_at = tl.zeros([BLOCK], dtype=tl.float32)
    for start in range(0, vocab_size, BLOCK):
        _ids, x = _load_row(row_ptr, start, vocab_size, BLOCK)
        key = _ordered_key(x)
        weight = tl.exp((x - top) / temperature)
        number += (key > found).to(tl.int32)
        mass += tl.where(key > found, weight, 0.0)
        weight_at = tl.maximum(weight_at, tl.where(key == found, weight, 0.0))
    return found, tl.sum(number, axis=0), tl.sum(mass, axis=0).to(tl.float64), tl.max(weight_at, axis=0)


@triton.jit
def _tile_threshold(keys, is_there, weights, target, BY_MASS: tl.constexpr, KEY_BITS: tl.constexpr):
    """As _row_threshold over candidates in registers, one bit a pass."""
    found = tl.full([], 0, dtype=tl.uint32)
    bit = tl.full([], 0x80000000, dtype=tl.uint32)
    weights = tl.where(is_there, weights, 0.0)
    counted = weights if BY_MASS else is_there.to(tl.float32)
    for _ in range(KEY_BITS):
        reached = tl.sum(tl.where(keys >= (found | bit), counted, 0.0), axis=0).to(tl.float64)
        found = tl.where(reached >= target, found | bit, found)
        bit = bit >> 1
    found = _whole_key(found, KEY_BITS)
    number = tl.sum((is_there & (keys > found)).to(tl.int32), axis=0)
    mass = tl.sum(tl.where(keys > found, weights, 0.0), axis=0).to(tl.float64)
    return found, number, mass, tl.max(tl.where(keys == found, weights, 0.0), axis=0)


@triton.jit
def _mass_of_top_k(k, above, mass, weight):
    """(kept ties, total mass): the k tokens are those above the threshold and the first of those at it."""
    num_tied = k - above
    return num_tied, mass + num_tied.to(tl.float64) * weight.to(tl.float64)


@triton.jit
def _narrow_to_nucleus(key_at, num_tied, nucleus_key, target, mass, weight):
    """(threshold, kept ties) of the nucleus, unless top-k cut deeper; the token that crosses p is kept."""
    reach = tl.ceil((target - mass) / tl.maximum(weight, 1e-38).to(tl.float64))
    kept = tl.minimum(tl.maximum(reach, 1.0), 2147483647.0).to(tl.int32)
    kept = tl.where(nucleus_key == key_at, tl.minimum(kept, num_tied), kept)
    is_deeper = nucleus_key >= key_at
    return tl.where(is_deeper, nucleus_key, key_at), tl.where(is_deeper, kept, num_tied)


@triton.jit
def _is_kept(keys, is_there, key_at, num_tied, seen):
    """(which tokens survive, the ties seen so far): those above key_at and the first num_tied at it."""
    is_tied = (is_there & (keys == key_at)).to(tl.int32)
    number = tl.sum(is_tied, axis=0)
    if seen + number > num_tied:
        is_tied = is_tied & (seen + tl.cumsum(is_tied, axis=0) <= num_tied).to(tl.int32)
    return is_there & ((keys > key_at) | (is_tied > 0)), seen + number


@triton.jit
def _argmax_id(scores, ids):
    return tl.min(tl.where(scores == tl.max(scores, axis=0), ids, 0x7FFFFFFF), axis=0)


@triton.jit
def _draw_from_row(
    row_ptr, vocab_size, k, p, total, top, temperature, state, KEY_BITS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    key_at = tl.full([], 0, dtype=tl.uint32)
    num_tied = tl.full([], 0x7FFFFFFF, dtype=tl.int32)
    if (k > 0) & (k < vocab_size):
        key_at, above, mass, weight = _row_threshold(
            row_ptr, vocab_size, top, temperature, k.to(tl.float64), False, KEY_BITS, BLOCK
        )
        num_tied, total = _mass_of_top_k(k, above, mass, weight)
    if p < 1.0:
        target = p.to(tl.float64) * total
        nucleus_key, above, mass, weight = _row_threshold(
            row_ptr, vocab_size, top, temperature, target, True, KEY_BITS, BLOCK
        )
        key_at, num_tied = _narrow_to_nucleus(key_at, num_tied, nucleus_key, target, mass, weight)
    best = tl.full([BLOCK], float("-inf"), dtype=tl.float32)
    best_id = tl.full([BLOCK], 0, dtype=tl.int32)
    seen = tl.full([], 0, dtype=tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids, x = _load_row(row_ptr, start, vocab_size, BLOCK)
        is_kept, seen = _is_kept(_ordered_key(x), ids < vocab_size, key_at, num_tied, seen)
        scores = tl.where(is_kept, x / temperature + _gumbel(state, ids), float("-inf"))
        best_id = tl.where(scores > best, ids, best_id)
        best = tl.maximum(best, scores)
    return _argmax_id(best, best_id)


@triton.jit
def _draw_from_tile(
    row_ptr, list_ptr, count, vocab_size, k, p, total, top, temperature, state,
    KEY_BITS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    places = tl.arange(0, TILE)
    is_there = places < count
    ids = tl.load(list_ptr + places, mask=is_there, other=0)
    x = tl.load(row_ptr + ids, mask=is_there, other=float("-inf")).to(tl.float32) + 0.0
    keys = _ordered_key(x)
    weights = tl.exp((x - top) / temperature)
    key_at = tl.full([], 0, dtype=tl.uint32)
    num_tied = tl.full([], 0x7FFFFFFF, dtype=tl.int32)
    if (k > 0) & (k < vocab_size):
        key_at, above, mass, weight = _tile_threshold(keys, is_there, weights, k.to(tl.float64), False, KEY_BITS)
        num_tied, total = _mass_of_top_k(k, above, mass, weight)
    if p < 1.0:
        target = p.to(tl.float64) * total
        nucleus_key, above, mass, weight = _tile_threshold(keys, is_there, weights, target, True, KEY_BITS)
        key_at, num_tied = _narrow_to_nucleus(key_at, num_tied, nucleus_key, target, mass, weight)
    is_kept, _seen = _is_kept(keys, is_there, key_at, num_tied, 0)
    return _argmax_id(tl.where(is_kept, x / temperature + _gumbel(state, ids), float("-inf")), ids)


@triton.jit
def _kth_strip_key(keys, k, KEY_BITS: tl.constexpr):
    """The k-th largest of uint32 keys, which bounds the k-th largest logit from below."""
    found = tl.full([], 0, dtype=tl.uint32)
    bit = tl.full([], 0x80000000, dtype=tl.uint32)
    for _ in range(KEY_BITS):
        found = tl.where(tl.sum((keys >= (found | bit)).to(tl.int32), axis=0) >= k, found | bit, found)
        bit = bit >> 1
    return found


@triton.jit
def _list_candidates(
    row_ptr, list_ptr, strip_list_ptr, num_listed_strips, vocab_size, least_key, least_mass, top, temperature,
    STRIP: tl.constexpr, TILE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the ids of the listed strips' tokens over both bounds, ascending; their number, which may pass TILE."""
    ROWS: tl.constexpr = BLOCK // STRIP
    count = tl.full([], 0, dtype=tl.int32)
    for start in range(0, num_listed_strips, ROWS):
        places = start + tl.arange(0, ROWS)
        strips = tl.load(strip_list_ptr + places, mask=places < num_listed_strips, other=0x7FFFFFFF // STRIP)
        ids = strips[:, None] * STRIP + tl.arange(0, STRIP)[None, :]
        x = tl.load(row_ptr + ids, mask=ids < vocab_size, other=float("-inf")).to(tl.float32) + 0.0
        is_in = (ids < vocab_size) & (_ordered_key(x) >= least_key) & (tl.exp((x - top) / temperature) >= least_mass)
        flags = tl.reshape(is_in, [BLOCK]).to(tl.int32)
        places = count + tl.cumsum(flags, axis=0) - 1
        tl.store(list_ptr + places, tl.reshape(ids, [BLOCK]), mask=(flags > 0) & (places < TILE))
        count += tl.sum(flags, axis=0)
    return count


@triton.jit(do_not_specialize=["num_blocks", "num_strips"], do_not_specialize_on_alignment=ROW_POINTERS)
def _sample_rows_kernel(
    logits_ptr, temperature_ptr, top_k_ptr, top_p_ptr, seed_ptr, best_ptr, best_id_ptr, strip_max_ptr, strip_mass_ptr,
    list_ptr, strip_list_ptr, out_ptr, logits_stride, vocab_size, num_blocks, num_strips,
    KEY_BITS: tl.constexpr, STRIP: tl.constexpr, TILE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_BLOCKS: tl.constexpr, BLOCK_STRIPS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    k = tl.load(top_k_ptr + row).to(tl.int32)
    p = tl.load(top_p_ptr + row)
    if not _is_filtered(temperature, k, p, vocab_size):
        blocks = tl.arange(0, BLOCK_BLOCKS)
        best = tl.load(best_ptr + row * num_blocks + blocks, mask=blocks < num_blocks, other=float("-inf"))
        place = tl.argmax(best, axis=0)
        tl.store(out_ptr + row, tl.load(best_id_ptr + row * num_blocks + place).to(tl.int64))
        return

    strips = tl.arange(0, BLOCK_STRIPS)
    is_strip = strips < num_strips
    strip_max = tl.load(strip_max_ptr + row * num_strips + strips, mask=is_strip, other=float("-inf")) + 0.0
    strip_mass = tl.load(strip_mass_ptr + row * num_strips + strips, mask=is_strip, other=0.0)
    top = tl.max(strip_max, axis=0)
    top = tl.where(top == float("-inf"), 0.0, top)
    strip_scale = tl.exp((strip_max - top) / temperature)
    total = tl.sum(strip_mass * strip_scale, axis=0).to(tl.float64)
    least_key = tl.full([], 0, dtype=tl.uint32)
    least_mass = tl.full([], 0.0, dtype=tl.float32)
    if (k > 0) & (k < vocab_size):
        if k <= num_strips:
            least_key = _kth_strip_key(_ordered_key(strip_max), k, KEY_BITS)
    else:
        # Tokens this light weigh less than 1 - p together, so the nucleus ends before them; halved for rounding.
        least_mass = (0.5 * (1.0 - p) * (total / vocab_size)).to(tl.float32)
    is_listed = (is_strip & (_ordered_key(strip_max) >= least_key) & (strip_scale >= least_mass)).to(tl.int32)
    strip_list_ptr += row * num_strips
    tl.store(strip_list_ptr + tl.cumsum(is_listed, axis=0) - 1, strips, mask=is_listed > 0)
    tl.debug_barrier()
    row_ptr = logits_ptr + row * logits_stride
    list_ptr += row * TILE
    count = _list_candidates(
        row_ptr, list_ptr, strip_list_ptr, tl.sum(is_listed, axis=0), vocab_size, least_key, least_mass,
        top, temperature, STRIP, TILE, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    state = _row_state(seed_ptr, row)
    if count <= TILE:
        token = _draw_from_tile(
            row_ptr, list_ptr, count, vocab_size, k, p, total, top, temperature, state, KEY_BITS, TILE
        )  # fmt: skip
    else:
        token = _draw_from_row(row_ptr, vocab_size, k, p, total, top, temperature, state, KEY_BITS, BLOCK)
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
    # Up to one row a multiprocessor: all of its threads; more rows: two at once.
    warps = 16 if num_rows <= num_sms(device) else 8
    tile = min(TILE, 256 * warps)
    listed = torch.empty((num_rows, tile), dtype=torch.int32, device=device)
    listed_strips = torch.empty((num_rows, num_strips), dtype=torch.int32, device=device)
    rows = (temperature.float(), top_k, top_p.float(), seeds)
    partial = (best, best_id, strip_max, strip_mass)
    _reduce_blocks_kernel[(num_rows * num_blocks,)](
        logits, *rows, *partial, logits.stride(0), vocab_size, num_blocks, BLOCK=block, STRIP=STRIP, num_warps=8
    )
    _sample_rows_kernel[(num_rows,)](
        logits, *rows, *partial, listed, listed_strips, ids, logits.stride(0), vocab_size, num_blocks, num_strips,
        KEY_BITS=_KEY_BITS[logits.dtype], STRIP=STRIP, TILE=tile, BLOCK=min(block, 256 * warps),
        BLOCK_BLOCKS=triton.next_power_of_2(num_blocks), BLOCK_STRIPS=triton.next_power_of_2(num_strips),
        num_warps=warps,
    )  # fmt: skip
    return ids
