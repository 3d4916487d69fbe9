"""Of an op that greedy requests do not need."""

from __future__ import annotations

from fastkernels.tasks.baseline.L1 import top_logprobs as baseline


class TopLogprobs(baseline.TopLogprobs):
    pass
