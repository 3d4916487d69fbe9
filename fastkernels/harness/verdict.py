"""The words in which a judgement is given: one enum for correctness, one for speed."""

from __future__ import annotations

from enum import StrEnum


class Verdict(StrEnum):
    PASSED = "PASSED"
    INCORRECT_SHAPE = "INCORRECT_SHAPE"
    INCORRECT_DTYPE = "INCORRECT_DTYPE"
    INCORRECT_NUMERICAL = "INCORRECT_NUMERICAL"
    UNDECLARED_MUTATION = "UNDECLARED_MUTATION"
    IMPORT_ERROR = "IMPORT_ERROR"
    RUNTIME_ERROR = "RUNTIME_ERROR"
    TIMEOUT = "TIMEOUT"
    NEVER_CALLED = "NEVER_CALLED"
    CHEATING = "CHEATING"
    UNTESTABLE = "UNTESTABLE"
    JUDGE_ERROR = "JUDGE_ERROR"

    @property
    def sentence(self) -> str:
        return _SENTENCES[self]


_SENTENCES = {
    Verdict.PASSED: "Every answer agreed with the definition on every input tried.",
    Verdict.INCORRECT_SHAPE: "An answer had another shape, stride contract or number of tensors than the definition's.",
    Verdict.INCORRECT_DTYPE: "An answer had another dtype than the definition's.",
    Verdict.INCORRECT_NUMERICAL: "An answer's values left the tolerance of the definition in float64.",
    Verdict.UNDECLARED_MUTATION: "An argument that the contract does not name as mutable was written to.",
    Verdict.IMPORT_ERROR: "The candidate's file could not be imported, or its class is not the contract's.",
    Verdict.RUNTIME_ERROR: "The candidate raised, ran out of memory or died while it was called.",
    Verdict.TIMEOUT: "No answer came within the time limit.",
    Verdict.NEVER_CALLED: "The implementation was installed and no call reached it.",
    Verdict.CHEATING: "The answers or times were not what they claimed to be; the witness says how.",
    Verdict.UNTESTABLE: "A wrong answer would pass here, or this machine cannot run the op: nothing was decided.",
    Verdict.JUDGE_ERROR: "The judge itself failed or could not tell whose failure it saw: nothing was decided.",
}


class Speed(StrEnum):
    WIN = "WIN"
    LOSS = "LOSS"
    TIE = "TIE"


class Rejection(Exception):
    """A verdict other than PASSED, with its evidence; raised inside the judge, kept in the record."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict = verdict
        self.message = message


class BaselineFailed(Rejection):
    """UNTESTABLE, since the baseline itself failed. cause: what would be said of a candidate."""

    def __init__(self, cause: Verdict, message: str) -> None:
        super().__init__(Verdict.UNTESTABLE, message)
        self.cause = cause
