"""D_f, equation 1 of MacroEval: how far a candidate's answers lie from the reference's, in the measure of a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from fastkernels.scoring.answers import Answer, AnswerError, Compared
from fastkernels.scoring.boxes import compare_detections
from fastkernels.scoring.items import Family
from fastkernels.scoring.pictures import compare_images, compare_renderings
from fastkernels.scoring.rankings import compare_rankings
from fastkernels.scoring.text import compare_languages, compare_transcripts
from fastkernels.scoring.vectors import (
    compare_classifications,
    compare_embeddings,
    compare_points,
    compare_trajectories,
)

__all__ = ["Answer", "AnswerError", "Compared", "compare"]

_COMPARE: Mapping[Family, Callable[[Sequence[str], Sequence[Answer], Sequence[Answer]], Compared]] = {
    Family.LANGUAGE: compare_languages,
    Family.SPEECH: compare_transcripts,
    Family.EMBEDDING: compare_embeddings,
    Family.CLASSIFICATION: compare_classifications,
    Family.DETECTION: compare_detections,
    Family.RANKING: compare_rankings,
    Family.IMAGE: compare_images,
    Family.TRAJECTORY: compare_trajectories,
    Family.RENDERING: compare_renderings,
    Family.POINTS: compare_points,
}
_NAMELESS = (Family.LANGUAGE, Family.SPEECH, Family.DETECTION)
"""Families whose answers have the same names in every architecture."""


def compare(family: str, names: Sequence[str], reference: Sequence[Answer], candidate: Sequence[Answer]) -> Compared:
    """The discrepancy of each request, and figures beside it.

    names: of the tensors that are compared (registry.Architecture.answers); where there are several, the one that lies
    farthest off counts. Of language, speech and detection the names are fixed and these are not read.
    Errors: AnswerError when an answer of the candidate is missing, has another shape or dtype or is not finite: such
    an item is invalid, never a number. ValueError for an unknown family, no request, or a reference that cannot be
    compared with.
    """
    if family not in list(Family):
        raise ValueError(f"There is no family {family!r}. Known: {', '.join(Family)}.")
    if not reference:
        raise ValueError("There is no answer of the reference to compare with.")
    if len(reference) != len(candidate):
        raise AnswerError(
            "MISSING_ANSWER", f"{len(candidate)} answers were given; the reference gave {len(reference)}."
        )
    if not names and family not in _NAMELESS:
        raise ValueError(f"Answers of family {family!r} are compared by name, and no name is given.")
    return _COMPARE[Family(family)](names, reference, candidate)
