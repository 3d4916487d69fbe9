"""Log-probabilities against log_softmax, and their way to what a caller reads."""

from __future__ import annotations

import pytest
import torch

from fastkernels.engine.logprobs import logprobs, prompt_logprobs, unpack_logprobs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num", [0, 1, 20])
def test_logprobs_are_log_softmax_with_exact_ranks(num: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(num)
    logits = (torch.randn(9, 1021, generator=generator) * 4).to(dtype)
    token_ids = torch.randint(0, 1021, (9,), generator=generator)
    token_ids[0] = logits[0].argmax()
    token_ids[1] = logits[1].argmin()
    got = logprobs(logits, token_ids, num)
    exact = logits.double().log_softmax(-1)
    assert got.chosen.dtype == got.top_logprobs.dtype == torch.float32
    torch.testing.assert_close(got.chosen.double(), exact.gather(1, token_ids[:, None])[:, 0], rtol=0, atol=1e-5)
    for row in range(9):
        order = sorted(range(1021), key=lambda t: (-logits[row, t].item(), t))
        assert got.top_ids[row].tolist() == order[:num]
        torch.testing.assert_close(got.top_logprobs[row].double(), exact[row, order[:num]], rtol=0, atol=1e-5)
        larger = [t for t in order if logits[row, t] > logits[row, token_ids[row]]]
        assert int(got.ranks[row]) == 1 + len(larger)


def test_logprobs_of_masked_logits_stay_finite_where_tokens_are_left() -> None:
    logits = torch.full((1, 50), float("-inf"))
    logits[0, [3, 7]] = torch.tensor([1.0, 1.0])
    got = logprobs(logits, torch.tensor([7]), 2)
    assert got.top_ids.tolist() == [[3, 7]]
    torch.testing.assert_close(got.top_logprobs, torch.full((1, 2), 0.5).log())
    assert got.ranks.tolist() == [1]


def test_more_logprobs_than_tokens_are_all_of_them() -> None:
    got = prompt_logprobs(torch.randn(4, 6), torch.tensor([0, 1, 2, 3]), 20)
    assert got.top_ids.sort(-1).values.tolist() == [list(range(6))] * 4


def test_unpacked_rows_hold_what_their_request_asked_for() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).bfloat16()
    tensors = logprobs(logits, torch.tensor([5, 299, 0, 7]), 4)
    packed = tensors.packed()
    assert packed.shape == (4, 3 + 8)
    first, none, second, zero = unpack_logprobs(packed.numpy(), [4, None, 2, 0])
    assert none is None
    assert first is not None
    assert second is not None
    assert zero is not None
    assert first.token_ids == (5, *tensors.top_ids[0].tolist())
    assert first.logprobs == (tensors.chosen[0].item(), *tensors.top_logprobs[0].tolist())
    assert first.rank == tensors.ranks[0]
    assert second.token_ids == (0, *tensors.top_ids[2, :2].tolist())
    assert second.logprobs == (tensors.chosen[2].item(), *tensors.top_logprobs[2, :2].tolist())
    assert (zero.token_ids, zero.logprobs) == ((7,), (tensors.chosen[3].item(),))
