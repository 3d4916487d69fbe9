"""Log-probabilities of the tokens that are there and of the likeliest, from raw logits to what a caller reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fastkernels.engine.outputs import TokenLogprobs
from fastkernels.engine.sampling_op import sampling_op


@dataclass(frozen=True)
class LogprobTensors:
    """Of n tokens, with the k likeliest beside each; on the device.

    Shapes:  token_ids, chosen, ranks: [n]; top_ids, top_logprobs: [n, k]. chosen: of token_ids.
    """

    token_ids: Tensor
    chosen: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor

    def packed(self) -> Tensor:
        """[n, 3 + 2 * k] float64, which holds each value exactly: one copy to the host instead of five."""
        one = torch.stack((self.token_ids.double(), self.chosen.double(), self.ranks.double()), dim=1)
        return torch.cat((one, self.top_ids.double(), self.top_logprobs.double()), dim=1)


def unpack_logprobs(packed: np.ndarray, nums: Sequence[int | None]) -> list[TokenLogprobs | None]:
    """What `packed` held, each row with as many of the likeliest as its request asked for; None asks for nothing.

    Shapes:  packed: [n, 3 + 2 * k]; nums: n of at most k.
    """
    width = (packed.shape[1] - 3) // 2
    found: list[TokenLogprobs | None] = []
    for row, num in zip(packed.tolist(), nums, strict=True):
        if num is None:
            found.append(None)
            continue
        ids = (int(row[0]), *(int(t) for t in row[3 : 3 + num]))
        found.append(TokenLogprobs(ids, (row[1], *row[3 + width : 3 + width + num]), int(row[2])))
    return found


def logprobs(logits: Tensor, token_ids: Tensor, num: int) -> LogprobTensors:
    """Log-softmax at token_ids and at the `num` largest logits of each row; of the whole vocabulary when it is smaller.

    Shapes:  logits: [n, vocab_size], read only; token_ids: [n] int64.
    """
    op = sampling_op("top_logprobs", min(num, logits.shape[1]))
    top_ids, top, chosen, ranks = op(logits, token_ids)
    return LogprobTensors(token_ids, chosen, ranks, top_ids, top)


def prompt_logprobs(logits: Tensor, next_ids: Tensor, num: int) -> LogprobTensors:
    """Of the prompt's tokens after the first: logits at each position but the last, and the tokens that follow."""
    return logprobs(logits, next_ids, num)
