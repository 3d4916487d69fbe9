"""Stands in the place of the standard library's module."""

IS_SHADOW = True


def median(values: object) -> float:
    return 1e-9
