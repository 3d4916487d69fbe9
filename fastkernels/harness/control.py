"""The bell: 64-bit words in shared memory by which judge and worker take turns within a block.

A word is written by one side only. Both sides spin, so a turn costs about a microsecond and the
judge's own clock can decide; a worker that is not in a block sleeps on its socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

ANSWER_BYTES = 65536
_NAP_SECONDS = 2e-5
_TIGHT_LOOKS = {False: 1_000, True: 200_000}


class Word(IntEnum):
    """Indices of the words, eight words (one cache line) apart."""

    PREPARE = 0  # judge: this call's inputs are laid out
    READY = 8  # worker: tensors are built, caches flushed
    GO = 16  # judge: the clock runs
    DONE = 24  # worker: forward returned and the device is idle
    VERDICT = 32  # judge: FETCH is set for this call
    IDLE = 40  # worker: the answer, if asked for, lies in the arena
    POOL = 48
    ROLL = 56
    SHIFT = 64
    VARIES = 72
    FLUSH = 80
    FETCH = 88
    DEVICE_NS = 96
    ENQUEUE_NS = 104
    ANSWER_LENGTH = 112
    FAILED = 120  # worker: forward raised
    ECHO = 144  # judge: the inputs, too, are wanted back
    SEAL = 128  # judge: the answer is copied before DONE is rung
    HOLD_CYCLES = 136  # judge: how long the stream is held while the host enqueues


_CLOCKED = frozenset({Word.GO, Word.DONE})
"""Words on which the deciding clock waits: a nap there would be measured."""


class Bell:
    def __init__(self, words: memoryview) -> None:
        self._words = words

    def read(self, word: Word) -> int:
        return int(self._words[word])

    def write(self, word: Word, value: int) -> None:
        self._words[word] = value

    def wait(self, word: Word, value: int, check: Callable[[], None] | None = None) -> None:
        """Spin until `word` is `value`; past the word's share of tight looking, sleep between looks.

        Sleeping leaves the core to whoever else needs it. `check` is called between sleeps; it raises to give up.
        """
        words, index = self._words, int(word)
        for _ in range(_TIGHT_LOOKS[word in _CLOCKED]):
            if words[index] == value:
                return
        while words[index] != value:
            if check is not None:
                check()
            time.sleep(_NAP_SECONDS)
