"""The knee of a curve of task quality against discrepancy: where the quality has its cliff.

Source: Satopaa, Albrecht, Irwin & Raghavan 2011, https://doi.org/10.1109/ICDCSW.2011.20
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WORTHLESS = 0.05
"""Share of its quality that a model has left where a curve ends: beyond it there is nothing more to lose."""

COLLAPSED = 0.2
"""A damage that leaves more than this share is no cliff: its curve has no knee."""

LEAST_DISTANCE = 0.1
"""Of a knee from the chord, both axes from 0 to 1; nearer to it a curve is a straight line with noise."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Knee:
    """discrepancy, retained: of the point. distance: from the chord, along the axis of quality."""

    discrepancy: float
    retained: float
    distance: float


def falling_envelope(discrepancies: Sequence[float], retained: Sequence[float]) -> tuple[Floats, Floats]:
    """The points that no other beats by lying farther off and being worth more, by discrepancy: the quality falls.

    Begins at (0, 1), the undamaged model; ends at the first point that is WORTHLESS.
    """
    order = np.argsort(np.asarray(discrepancies, dtype=np.float64), kind="stable")
    x = np.concatenate([[0.0], np.asarray(discrepancies, dtype=np.float64)[order]])
    y = np.concatenate([[1.0], np.asarray(retained, dtype=np.float64)[order]])
    best_beyond = np.append(np.maximum.accumulate(y[::-1])[::-1][1:], -np.inf)
    is_kept = y > best_beyond
    is_kept[0] = True
    x, y = x[is_kept], np.minimum(y[is_kept], 1.0)
    ends = np.flatnonzero(y <= WORTHLESS)
    num = int(ends[0]) + 1 if len(ends) else len(x)
    return x[:num], y[:num]


def find_knee(discrepancies: Sequence[float], retained: Sequence[float]) -> Knee | None:
    """The point of the falling envelope that lies farthest from the chord between its ends.

    retained: share of the undamaged model's quality, 0 that of answers at random. None where the quality does not
    collapse, or falls in a straight line.
    """
    x, y = falling_envelope(discrepancies, retained)
    if y[-1] > COLLAPSED or x[-1] <= 0:
        return None
    distances = np.abs(x / x[-1] + (y - y[-1]) / (y[0] - y[-1]) - 1)
    farthest = int(distances.argmax())
    if distances[farthest] < LEAST_DISTANCE:
        return None
    return Knee(float(x[farthest]), float(y[farthest]), float(distances[farthest]))
