"""HTML for notebooks: tables of text from anywhere, in which nothing is obeyed.

A record that a notebook shows as more than its repr is a `Shown`; `html_of` makes its HTML. What the report has words
for is registered there (`report/notebook.py`): a record does not know the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import singledispatch

from markupsafe import Markup

from nanogpt_edit.common.errors import visible

LEFT = "text-align:left;vertical-align:top"
RIGHT = "text-align:right;vertical-align:top;font-variant-numeric:tabular-nums"
QUIET = "opacity:.65"


class Shown:
    """A record with a view of its own in a notebook."""

    __slots__ = ()

    def _repr_html_(self) -> str | None:
        return html_of(self)


@singledispatch
def html_of(record: object) -> Markup | None:
    """The HTML of a record; None for one of a kind that has none."""
    return None


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, words: int = 1) -> Markup:
    """A table whose first `words` columns are text, and the others numbers. What is no `Markup` is escaped."""
    body = Markup("").join(_row("td", row, words) for row in rows)
    return Markup("<table><thead>{}</thead><tbody>{}</tbody></table>").format(_row("th", head, words), body)


def _row(tag: str, cells: Sequence[object], words: int) -> Markup:
    shown = (
        Markup('<{0} style="{1}">{2}</{0}>').format(tag, LEFT if place < words else RIGHT, plain(cell))
        for place, cell in enumerate(cells)
    )
    return Markup("<tr>{}</tr>").format(Markup("").join(shown))


def line(said: object, *, style: str = "") -> Markup:
    """One paragraph."""
    return Markup('<p style="{}">{}</p>').format(style, plain(said))


def span(said: object, style: str) -> Markup:
    """A stretch of text in a style."""
    return Markup('<span style="{}">{}</span>').format(style, plain(said))


def plain(value: object) -> str:
    """Text as it is to be escaped, its control characters made visible; `Markup` as it stands."""
    return value if isinstance(value, Markup) else visible(str(value))
