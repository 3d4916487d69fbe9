"""The sampler against a plain definition, row by row; no part may depend on what else is in the batch."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastkernels.engine.sampler import MAX_BIASES, Sampled, Sampler
from fastkernels.engine.sampling_params import SamplingParams, SamplingParamsError, StructuredOutputsParams

CPU = torch.device("cpu")
VOCAB_SIZE, MAX_ROWS, EOS = 97, 40, 5
MASK = (1 << 64) - 1
GREEDY = SamplingParams(temperature=0)


def mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def row_seed(seed: int, position: int) -> int:
    return mix((seed + (position + 1) * 0x9E3779B97F4A7C15) & MASK) >> 1


def gumbel(seed: int, token: int) -> float:
    gamma = 0x9E3779B97F4A7C15
    bits = mix((mix((seed + gamma) & MASK) + token * gamma) & MASK)
    return -math.log(-math.log(((bits >> 12) + 0.5) * 2.0**-52))


def edited(logits: Tensor, params: SamplingParams, prompt: Sequence[int], output: Sequence[int]) -> list[float]:
    """One row's logits after masks, biases, penalties and min-p, in Python's numbers."""
    x = logits.double().tolist()
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else (EOS,))}
    for token in range(len(x)):
        if params.allowed_token_ids is not None and token not in params.allowed_token_ids:
            x[token] = -math.inf
        if len(output) < params.min_tokens and token in ends:
            x[token] = -math.inf
        x[token] += params.logit_bias.get(token, 0.0)
        if token in prompt or token in output:
            r = params.repetition_penalty
            x[token] = x[token] / r if x[token] > 0 else x[token] * r
        x[token] -= params.frequency_penalty * list(output).count(token)
        x[token] -= params.presence_penalty * (token in output)
    if params.min_p > 0 and not params.is_greedy:
        limit = max(x) + params.temperature * math.log(params.min_p)
        x = [v if v >= limit else -math.inf for v in x]
    return x


def drawn(x: list[float], params: SamplingParams, seed: int) -> int:
    """top-k, top-p and the Gumbel-max over what is left."""
    order = sorted(range(len(x)), key=lambda t: (-x[t], t))
    if params.is_greedy:
        return order[0]
    if params.top_k:
        order = order[: params.top_k]
    weights = [math.exp((x[t] - x[order[0]]) / params.temperature) for t in order]
    kept, before = [], 0.0
    for token, weight in zip(order, weights, strict=True):
        if params.top_p < 1 and before >= params.top_p * sum(weights):
            break
        kept.append(token)
        before += weight
    return max(kept, key=lambda t: x[t] / params.temperature + gumbel(seed, t))


def sample(sampler: Sampler, logits: Tensor, rows: Sequence[int], positions: Sequence[int]) -> Sampled:
    before = logits.clone()
    out = sampler(logits, rows, torch.tensor(rows), torch.tensor(positions))
    assert torch.equal(before, logits), "the model's logits were written to"
    return out


def a_request(rng: random.Random) -> dict[str, Any]:
    """Any mixture of fields; about half of the rows are plain."""

    def maybe(value: Any, default: Any) -> Any:
        return value if rng.random() < 0.3 else default

    params = SamplingParams(
        temperature=rng.choice([0.0, 0.3, 1.0, 2.5]),
        top_k=maybe(rng.randint(1, VOCAB_SIZE + 9), 0),
        top_p=maybe(rng.uniform(0.05, 1), 1.0),
        min_p=maybe(rng.uniform(0.01, 1), 0.0),
        presence_penalty=maybe(rng.uniform(-2, 2), 0.0),
        frequency_penalty=maybe(rng.uniform(-2, 2), 0.0),
        repetition_penalty=maybe(rng.uniform(0.5, 2), 1.0),
        logit_bias=maybe({t: rng.uniform(-100, 100) for t in rng.sample(range(VOCAB_SIZE), rng.randint(1, 20))}, {}),
        allowed_token_ids=maybe(tuple(rng.sample(range(VOCAB_SIZE), rng.randint(1, VOCAB_SIZE))), None),
        stop_token_ids=maybe((7, 9), ()),
        ignore_eos=maybe(True, False),
        max_tokens=100,
        min_tokens=maybe(rng.randint(1, 9), 0),
    )
    prompt = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randint(1, 60))]
    output = [rng.randrange(VOCAB_SIZE) for _ in range(rng.choice([0, 0, 1, 8, 30]))]
    return {"params": params, "seed": rng.randrange(2**63), "prompt": prompt, "output": output}


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    return Sampler(VOCAB_SIZE, CPU, MAX_ROWS, eos_token_ids=(EOS,))


def add(sampler: Sampler, row: int, request: dict[str, Any]) -> None:
    sampler.add(row, request["params"], request["seed"], request["prompt"], request["output"])


def position_of(request: dict[str, Any]) -> int:
    return len(request["prompt"]) + len(request["output"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_mixture_of_fields_equals_the_plain_definition(sampler: Sampler, dtype: torch.dtype) -> None:
    rng, generator = random.Random(3), torch.Generator().manual_seed(3)
    for _ in range(12):
        rows = rng.sample(range(MAX_ROWS), rng.choice([1, 7, 30]))
        requests = [a_request(rng) for _ in rows]
        for row, request in zip(rows, requests, strict=True):
            add(sampler, row, request)
        logits = (torch.randn(len(rows), VOCAB_SIZE, generator=generator) * 3).to(dtype)
        positions = [position_of(r) for r in requests]
        got = sample(sampler, logits, rows, positions).token_ids
        assert got.dtype == torch.int64
        for i, request in enumerate(requests):
            x = edited(logits[i], request["params"], request["prompt"], request["output"])
            x = torch.tensor(x).float().double().tolist()  # edits are rounded to float32
            expected = drawn(x, request["params"], row_seed(request["seed"], positions[i]))
            assert int(got[i]) == expected, request


def test_tokens_are_the_same_alone_and_in_any_batch(sampler: Sampler) -> None:
    rng = random.Random(8)
    logits = torch.randn(30, VOCAB_SIZE, generator=torch.Generator().manual_seed(8)) * 2
    requests = [a_request(rng) for _ in range(30)]
    alone = []
    for i, request in enumerate(requests):
        lone = Sampler(VOCAB_SIZE, CPU, 1, eos_token_ids=(EOS,))
        add(lone, 0, request)
        alone.append(int(sample(lone, logits[i : i + 1], [0], [position_of(request)]).token_ids))
    for _ in range(10):
        chosen = rng.sample(range(30), rng.randint(1, 30))
        rows = rng.sample(range(MAX_ROWS), len(chosen))
        for row, i in zip(rows, chosen, strict=True):
            add(sampler, row, requests[i])
        got = sample(sampler, logits[chosen], rows, [position_of(requests[i]) for i in chosen])
        assert got.token_ids.tolist() == [alone[i] for i in chosen]


def run(sampler: Sampler, row: int, request: dict[str, Any], num: int, beside: Sequence[int] = ()) -> list[int]:
    """`num` more tokens of one request whose logits depend on the position alone."""
    tokens: list[int] = []
    rows = [*beside, row]
    for step in range(num):
        position = position_of(request) + step
        logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(position)) * 2
        out = sample(sampler, logits.expand(len(rows), -1), rows, [position] * len(rows))
        tokens.append(int(out.token_ids[-1]))
    return tokens


@pytest.mark.parametrize("seed", range(6))
def test_a_preempted_request_makes_the_same_tokens(sampler: Sampler, seed: int) -> None:
    rng = random.Random(seed)
    request = a_request(rng) | {"output": []}
    request["params"] = SamplingParams(
        temperature=rng.choice([0.0, 0.9]), presence_penalty=1.1, frequency_penalty=0.7, repetition_penalty=1.3,
        min_tokens=12, max_tokens=99, logit_bias={EOS: 4.0},
    )  # fmt: skip
    add(sampler, 3, request)
    whole = run(sampler, 3, request, 24)
    assert EOS not in whole[:12]
    add(sampler, 4, request)
    first = run(sampler, 4, request, 9)
    sampler.remove(4)
    add(sampler, 4, a_request(rng))
    for row in (9, 17):
        add(sampler, row, a_request(rng))
    later = request | {"output": first}
    add(sampler, 21, later)
    assert first + run(sampler, 21, later, 15, beside=[9, 4, 17]) == whole


def test_penalties_count_what_the_row_itself_drew(sampler: Sampler) -> None:
    """Equal logits and a frequency penalty: no token comes twice before all have come."""
    flat = torch.zeros(2, VOCAB_SIZE)
    sampler.add(1, SamplingParams(temperature=0.5, frequency_penalty=2.0, presence_penalty=2.0), 1, [0, 1])
    sampler.add(2, SamplingParams(temperature=0.01, frequency_penalty=2.0), 2, [0, 1])
    made = [sample(sampler, flat, [2, 1], [2 + i, 2 + i]).token_ids.tolist() for i in range(VOCAB_SIZE)]
    assert len({two for two, _ in made}) == VOCAB_SIZE
    assert len({one for _, one in made}) > VOCAB_SIZE * 0.8


def test_rows_keep_nothing_of_the_request_before(sampler: Sampler) -> None:
    rng = random.Random(1)
    logits = torch.randn(1, VOCAB_SIZE) * 2
    for _ in range(20):
        add(sampler, 0, a_request(rng))
        sample(sampler, logits, [0], [50])
        if rng.random() < 0.5:
            sampler.remove(0)
        sampler.add(0, GREEDY, 0, [1, 2])
        sampler.add(1, SamplingParams(temperature=0, logit_bias={3: 1.0}, frequency_penalty=0.1), 0, [1])
        both = sample(sampler, logits.expand(2, -1), [0, 1], [2, 1])
        assert int(both.token_ids[0]) == int(logits.argmax())


def test_a_row_table_grows_without_losing_biases(sampler: Sampler) -> None:
    logits = torch.zeros(2, VOCAB_SIZE)
    sampler.add(0, SamplingParams(temperature=0, logit_bias={11: 5.0}), 0, [1])
    assert sample(sampler, logits[:1], [0], [1]).token_ids.tolist() == [11]
    many = dict.fromkeys(range(40), -1.0) | {60: 2.0}
    sampler.add(1, SamplingParams(temperature=0, logit_bias=many), 0, [1])
    assert sample(sampler, logits, [1, 0], [1, 2]).token_ids.tolist() == [60, 11]


def test_draws_follow_the_distribution() -> None:
    """temperature, min-p and top-k together over 20,000 positions of one request."""
    num = 20_000
    logits = torch.randn(12, generator=torch.Generator().manual_seed(5)) * 2
    params = SamplingParams(temperature=1.4, min_p=0.03, top_k=9, top_p=0.97, logit_bias={2: 1.5})
    sampler = Sampler(12, CPU, num)
    for row in range(num):
        sampler.add(row, params, 77, [0])
    got = sample(sampler, logits.expand(num, -1).contiguous(), range(num), [1 + i for i in range(num)])
    x = edited(logits, params, [0], [])
    order = sorted(range(12), key=lambda t: -x[t])[:9]
    weights = {t: math.exp(x[t] / 1.4) for t in order}
    total, kept = sum(weights.values()), {}
    for token in order:
        if sum(kept.values()) < 0.97 * total:
            kept[token] = weights[token]
    counts = torch.bincount(got.token_ids, minlength=12).tolist()
    assert {t for t in range(12) if counts[t]} == {t for t in kept if kept[t] > 0}
    expected = {t: num * w / sum(kept.values()) for t, w in kept.items() if w}
    statistic = sum((counts[t] - e) ** 2 / e for t, e in expected.items())
    assert statistic < 45, "99.9999 % of chi-squared with 8 degrees of freedom lie below 45"


def test_seeds_and_positions_give_different_tokens(sampler: Sampler) -> None:
    flat = torch.zeros(20, VOCAB_SIZE)
    for row in range(20):
        sampler.add(row, SamplingParams(), row_seed(5, row), [1])
    by_seed = sample(sampler, flat, range(20), [9] * 20).token_ids.tolist()
    assert len(set(by_seed)) > 12
    for row in range(20):
        sampler.add(row, SamplingParams(), 5, [1])
    assert len(set(sample(sampler, flat, range(20), [9] * 20).token_ids.tolist())) == 1
    assert len(set(sample(sampler, flat, range(20), range(20)).token_ids.tolist())) > 12


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 0x123456789ABCDEF])
def test_draw_seeds_are_splitmix64_of_seed_and_position(sampler: Sampler, seed: int) -> None:
    rows, positions = [4, 39, 0], [0, 131_071, 2**31]
    for row in rows:
        sampler.add(row, SamplingParams(), seed, [1])
    sample(sampler, torch.zeros(3, VOCAB_SIZE), rows, positions)
    got = sampler._draw_seeds(sampler._table.seeds, torch.tensor(rows), torch.tensor(positions))
    assert got.tolist() == [row_seed(seed, p) for p in positions]


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_greedy_batch_is_one_argmax(sampler: Sampler) -> None:
    logits, index = torch.randn(3, VOCAB_SIZE).bfloat16(), torch.tensor([1, 2, 3])
    sampler.add(0, SamplingParams(frequency_penalty=1, min_p=0.1, logit_bias={1: 2.0}, logprobs=2), 0, [1])
    for row in (1, 2, 3):
        sampler.add(row, GREEDY, 0, [1])
    sampler(logits, [1, 2, 3], index, index)
    with Operations() as seen:
        out = sampler(logits, [1, 2, 3], index, index)
    assert seen.names == ["argmax.default"]
    assert sampler.is_plain_greedy([1, 2, 3])
    for field in ({"temperature": 1.0}, {"logprobs": 0}, {"min_tokens": 2}, {"allowed_token_ids": (1,)}):
        sampler.add(4, SamplingParams(**({"temperature": 0.0} | field)), 0, [1])
        assert not sampler.is_plain_greedy([1, 4])
    assert out.token_ids.equal(logits.argmax(-1))
    assert out.logprobs is None


def test_logprobs_are_of_the_raw_logits_and_as_wide_as_the_widest_asks(sampler: Sampler) -> None:
    logits = torch.randn(3, VOCAB_SIZE)
    sampler.add(0, SamplingParams(temperature=0, logit_bias={4: 100.0}, logprobs=0), 0, [1])
    sampler.add(1, SamplingParams(temperature=0.2, logprobs=3), 0, [1])
    sampler.add(2, GREEDY, 0, [1])
    out = sample(sampler, logits, [0, 1, 2], [1, 1, 1])
    assert out.logprobs is not None
    exact = logits.double().log_softmax(-1)
    assert out.token_ids[0] == 4
    assert out.logprobs.top_ids.equal(exact.topk(3).indices)
    torch.testing.assert_close(out.logprobs.chosen.double(), exact.gather(1, out.token_ids[:, None])[:, 0])
    assert sample(sampler, logits[:1], [0], [1]).logprobs.top_ids.shape == (1, 0)  # type: ignore[union-attr]


def test_allowed_tokens_alone_are_drawn(sampler: Sampler) -> None:
    sampler.add(0, SamplingParams(temperature=5, allowed_token_ids=(3, 31, 32, 96)), 0, [1])
    logits = torch.randn(1, VOCAB_SIZE, generator=torch.Generator().manual_seed(0)) * 9
    got = {int(sample(sampler, logits, [0], [i]).token_ids) for i in range(200)}
    assert got == {3, 31, 32, 96}


def test_what_no_row_can_do_is_refused_by_name(sampler: Sampler) -> None:
    sampler.check(SamplingParams(logit_bias=dict.fromkeys(range(MAX_BIASES), 1.0)))
    with pytest.raises(SamplingParamsError, match=rf"holds {MAX_BIASES + 1} tokens; at most {MAX_BIASES}") as many:
        sampler.check(SamplingParams(logit_bias=dict.fromkeys(range(MAX_BIASES + 1), 1.0)))
    assert many.value.parameter == "logit_bias"
    with pytest.raises(SamplingParamsError, match="need a tokenizer"):
        sampler.check(SamplingParams(structured_outputs=StructuredOutputsParams(regex="a+")))


def test_warming_up_touches_no_row(sampler: Sampler) -> None:
    request = a_request(random.Random(0))
    add(sampler, 0, request)
    logits = torch.randn(1, VOCAB_SIZE)
    before = int(sample(sampler, logits, [0], [70]).token_ids)
    add(sampler, 0, request)
    sampler.warm_up(torch.bfloat16)
    assert int(sample(sampler, logits, [0], [70]).token_ids) == before
