"""The bell: 64-bit words in shared memory by which judge and worker take turns within a block.

A word is written by one side only. Both sides spin while a clock runs, so a turn costs about a microsecond and
the judge's own clock can decide; a worker that is not in a block sleeps on its socket.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

ANSWER_BYTES = 8192
"""Of an answer's description, at most: a few hundred bytes a returned tensor, or the end of a traceback."""
HELD_ANSWERS = 3
"""Answers that a worker keeps, of the cases that it was given last; while answers are checked, all (Pool.num_held)."""
_NAP_SECONDS = 2e-5
_TIGHT_LOOKS = {False: 1_000, True: 200_000}


class Word(IntEnum):
    """Indices of the words, eight words (one cache line) apart."""

    PREPARE = 0  # judge: this call's case and place are chosen
    READY = 8  # worker: tensors are built; on a GPU their memory is poisoned and the device idle
    GO = 16  # judge: on a CPU the clock runs; on a GPU the call may be enqueued behind RELEASE
    ENQUEUED = 24  # worker (GPU): the call, its events and the copy of its answer wait in the stream
    RELEASE = 32  # judge (GPU): the clock runs; the stream itself waits for the low 32 bits of this word
    DONE = 40  # worker: forward returned and the device is idle
    VERDICT = 48  # judge: FETCH is set for this call, or SAMPLE
    IDLE = 56  # worker: the answer, if asked for, lies in the arena
    POOL = 64  # judge: which case
    PLACE = 72  # judge (GPU): at which of several addresses its inputs lie
    ROLL = 80
    VARIES = 88
    FLUSH = 96
    FETCH = 104
    SEAL = 112  # judge: the answer is copied before DONE is rung
    ECHO = 120  # judge: the inputs, too, are wanted back
    DEVICE_NS = 128  # worker (GPU): between the events around forward
    STAGE_NS = 136  # worker (GPU): between RELEASE and the first of those events
    ENQUEUE_NS = 144  # worker (GPU): host time of forward
    ANSWER_LENGTH = 152
    FAILED = 160  # worker: forward raised
    SAMPLE = 168  # judge: 0, or 1 + what chooses the bytes of a large answer that are wanted first
    SAMPLED = 176  # worker: they lie in the arena
    WANTED = 184  # judge: FETCH is set, now that they do
    PAUSES = 192  # judge (CPU): between READY and WAKE the worker is stopped, and its inputs are written
    WAKE = 200  # judge (CPU): they are
    AWAKE = 208  # worker (CPU): it runs again


_CLOCKED = frozenset({Word.GO, Word.DONE, Word.ENQUEUED, Word.VERDICT, Word.IDLE, Word.SAMPLED, Word.AWAKE})
"""Words on which a clock waits: a nap there would be measured."""


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

    def wait_until(self, word: Word, value: int, deadline_ns: int) -> bool:
        """Spin until `word` is `value` or the clock (perf_counter_ns) has passed `deadline_ns`; whether it is."""
        words, index = self._words, int(word)
        while words[index] != value:
            if time.perf_counter_ns() > deadline_ns:
                return False
        return True
