"""Two source files side by side, lines matched, colours by Pygments. What comes out is escaped HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest

from markupsafe import Markup, escape
from pygments import lex
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String, _TokenType

MAX_LINES = 2000
"""Longer files are cut in the report, which says so; the whole text is in results.json."""

_CLASSES = (
    (Comment, "c"),
    (String, "s"),
    (Number, "n"),
    (Keyword, "k"),
    (Operator.Word, "k"),
    (Name.Decorator, "d"),
    (Name.Class, "f"),
    (Name.Function, "f"),
    (Name.Builtin, "b"),
)


@dataclass(frozen=True)
class Line:
    """One line of both files; number None: the side has none here. kind: "same", "changed", "added" or "removed"."""

    kind: str
    left_number: int | None
    left: Markup
    right_number: int | None
    right: Markup


def cut_lines(text: str) -> int | None:
    """How many lines a text has that is too long to be shown whole; else None."""
    count = len(text.splitlines())
    return count if count > MAX_LINES else None


def side_by_side(left: str, right: str, *, is_right_cut: bool = False) -> list[Line]:
    """Lines of `left` and `right`, what both have on one level. is_right_cut: `right` is how a longer file begins; what
    `left` alone has after it is left out, for it may stand in the rest."""
    is_right_cut = is_right_cut or cut_lines(right) is not None
    left_lines, right_lines = left.splitlines()[:MAX_LINES], right.splitlines()[:MAX_LINES]
    left_html, right_html = highlighted(left_lines), highlighted(right_lines)
    found: list[Line] = []
    matcher = SequenceMatcher(None, left_lines, right_lines, autojunk=False)
    for tag, i1, i2, j1, j2 in matcher.get_opcodes():
        for i, j in zip_longest(range(i1, i2), range(j1, j2)):
            found.append(_line(tag == "equal", i, j, left_html, right_html))
    while is_right_cut and found and found[-1].right_number is None:
        found.pop()
    return found


def _line(is_same: bool, i: int | None, j: int | None, left: list[Markup], right: list[Markup]) -> Line:
    kind = "same" if is_same else "added" if i is None else "removed" if j is None else "changed"
    return Line(
        kind,
        None if i is None else i + 1,
        Markup() if i is None else left[i],
        None if j is None else j + 1,
        Markup() if j is None else right[j],
    )


def highlighted(lines: list[str]) -> list[Markup]:
    """Each line as escaped HTML with <i class> around what has a colour; always as many lines as given."""
    rows: list[list[Markup]] = [[]]
    for token, text in lex("\n".join(lines), PythonLexer(stripnl=False, ensurenl=False)):
        for number, piece in enumerate(text.split("\n")):
            if number:
                rows.append([])
            if piece:
                rows[-1].append(_coloured(token, piece))
    joined = [Markup().join(row) for row in rows]
    return joined if len(joined) == len(lines) else [escape(line) for line in lines]


def _coloured(token: _TokenType, text: str) -> Markup:
    name = next(_class_names(token), None)
    return escape(text) if name is None or not text.strip() else Markup('<i class="{}">{}</i>').format(name, text)


def _class_names(token: _TokenType) -> Iterator[str]:
    return (name for parent, name in _CLASSES if token in parent)
