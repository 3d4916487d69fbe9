"""Ranks of figures with intervals, by their properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastkernels.scoring.ranks import Figure, Rank, ranks

NUMBERS = st.floats(0.01, 100, allow_nan=False)
INTERVALS = st.lists(NUMBERS, min_size=3, max_size=3).map(sorted).map(lambda v: Figure(v[1], v[0], v[2]))
FIGURES = st.lists(st.one_of(INTERVALS, NUMBERS.map(Figure), st.none()), max_size=12)


def apart(a: Figure, b: Figure) -> bool:
    return a.bounds[0] > b.bounds[1] or b.bounds[0] > a.bounds[1]


def ranges(found: list[Rank | None]) -> list[tuple[int, int]]:
    return [(rank.best, rank.worst) for rank in found if rank]


@given(FIGURES)
def test_a_range_counts_what_lies_wholly_above_and_wholly_below(figures: list[Figure | None]) -> None:
    found = ranks(figures)
    assert [rank is None for rank in found] == [figure is None for figure in figures]
    known = [f for f in figures if f is not None]
    for figure, rank in zip(figures, found, strict=True):
        if figure is None or rank is None:
            continue
        assert rank.best == 1 + sum(other.bounds[0] > figure.bounds[1] for other in known)
        assert rank.worst == len(known) - sum(other.bounds[1] < figure.bounds[0] for other in known)
        assert 1 <= rank.best <= rank.worst <= len(known)
        assert rank.worst - rank.best == len(rank.alike)


@given(FIGURES)
def test_the_place_in_the_order_of_values_is_in_the_range(figures: list[Figure | None]) -> None:
    pairs = [(figure, rank) for figure, rank in zip(figures, ranks(figures), strict=True) if figure and rank]
    pairs.sort(key=lambda pair: -pair[0].value)
    for place, (_, rank) in enumerate(pairs, 1):
        assert rank.best <= place <= rank.worst


@given(FIGURES)
def test_not_told_apart_is_said_by_both_sides_and_of_overlapping_intervals_alone(
    figures: list[Figure | None],
) -> None:
    found = ranks(figures)
    for i, (figure, rank) in enumerate(zip(figures, found, strict=True)):
        if figure is None or rank is None:
            continue
        assert set(rank.alike) == {
            j for j, o in enumerate(figures) if o is not None and j != i and not apart(o, figure)
        }
        assert all(i in other.alike for j in rank.alike if (other := found[j]))


@given(FIGURES)
def test_the_entry_above_is_marked_exactly_where_its_interval_overlaps(figures: list[Figure | None]) -> None:
    found = ranks(figures)
    order = sorted((i for i, f in enumerate(figures) if f is not None), key=lambda i: -figures[i].value)  # type: ignore[union-attr]
    for place, i in enumerate(order):
        above, rank, mine = (order[place - 1] if place else None), found[i], figures[i]
        assert rank is not None
        assert mine is not None
        overlaps = above is not None and not apart(mine, figures[above])  # type: ignore[arg-type]
        assert rank.above == (above if overlaps else None)


@given(st.lists(NUMBERS, unique=True, max_size=10))
def test_points_have_the_ranks_of_their_order(values: list[float]) -> None:
    found = ranks([Figure(value, value, value) for value in values])
    order = sorted(values, reverse=True)
    assert [rank.text for rank in found if rank] == [str(order.index(value) + 1) for value in values]


@given(FIGURES, st.randoms())
def test_the_order_of_the_entries_changes_no_range(figures: list[Figure | None], random: object) -> None:
    places = list(range(len(figures)))
    random.shuffle(places)  # type: ignore[attr-defined]
    before, after = ranks(figures), ranks([figures[i] for i in places])
    for place, i in enumerate(places):
        one, two = before[i], after[place]
        assert (one and (one.best, one.worst)) == (two and (two.best, two.worst))


def test_a_chain_of_overlaps_is_no_group() -> None:
    """The first and the third are told apart, though the second is like both."""
    found = ranks([Figure(3, 2.6, 3.4), Figure(2.5, 2.0, 3.0), Figure(2, 1.7, 2.3), Figure(1, 0.9, 1.1)])
    assert ranges(found) == [(1, 2), (1, 3), (2, 3), (4, 4)]
    assert found[1] == Rank(1, 3, (0, 2), 0)
    assert found[3] == Rank(4, 4)
    assert [rank.text for rank in found if rank] == ["1\u20132", "1\u20133", "2\u20133", "4"]


def test_touching_intervals_are_not_told_apart_and_equal_ones_share_their_ranks() -> None:
    assert ranges(ranks([Figure(2, 1, 3), Figure(4, 3, 5)])) == [(1, 2), (1, 2)]
    assert ranges(ranks([Figure(1, 1, 1)] * 2)) == [(1, 2), (1, 2)]


def test_without_an_interval_an_entry_is_told_apart_from_none() -> None:
    assert ranges(ranks([Figure(9), Figure(2, 1.9, 2.1), Figure(1, 0.9, 1.1)])) == [(1, 3), (1, 2), (2, 3)]


@pytest.mark.parametrize("wrong", [(1, 2, 0.5), (1, None, 2), (1, 2, None), (float("nan"), 1, 2), (1, float("nan"), 2)])
def test_bounds_that_make_no_sense_are_refused(wrong: tuple[float, float | None, float | None]) -> None:
    with pytest.raises(ValueError, match="two bounds that rise, or none"):
        Figure(*wrong)
