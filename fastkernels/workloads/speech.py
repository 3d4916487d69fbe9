"""The recording that ships with the project: a spoken English sentence."""

from __future__ import annotations

import io
import wave
from functools import cache
from importlib.resources import files

import numpy as np
from numpy.typing import NDArray

SPEECH_RATE = 16000
"""Of the recording, in Hz."""


@cache
def speech() -> NDArray[np.float32]:
    """[samples] in [-1, 1] at SPEECH_RATE, 1.8 s; what is said, and how it was made, is in speech.json."""
    content = files("fastkernels.workloads").joinpath("speech.wav").read_bytes()
    with wave.open(io.BytesIO(content)) as file:
        given = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    samples = (given / 32768).astype(np.float32)
    samples.setflags(write=False)  # one array for every caller
    return samples
