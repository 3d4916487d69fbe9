"""The English prompts that ship with the project."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def prompts() -> tuple[str, ...]:
    """32 prompts of 5 to about 120 words, written for this project; one paragraph each in prompts.txt."""
    text = files("fastkernels.workloads").joinpath("prompts.txt").read_text(encoding="utf-8")
    return tuple(paragraph.strip() for paragraph in text.split("\n\n") if paragraph.strip())
