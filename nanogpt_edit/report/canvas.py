"""One small matplotlib figure -> SVG text that inherits the page's colours and fonts, or a PNG.

Figures are drawn with stand-in colours, one per role. Inline they become CSS variables, so a plot follows the page
into dark mode and onto paper; as a file of its own they become the light palette on white. Text stays text.
The same data gives the same bytes: no dates, no random ids.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

ROLES = {
    "ink": ("#0a0001", "#1c2128"),
    "muted": ("#0a0002", "#59636e"),
    "rule": ("#0a0003", "#d8dde3"),
    "paper": ("#0a0004", "#ffffff"),
    "accent": ("#0a0005", "#1d5fd0"),
    "second": ("#0a0006", "#c2500b"),
    "good": ("#0a0007", "#18794e"),
    "bad": ("#0a0008", "#c0262d"),
    "base": ("#0a0009", "#6b7684"),
    "sft": ("#0a000a", "#1d5fd0"),
    "grpo": ("#0a000b", "#c2500b"),
    "edited": ("#0a000c", "#7a43c6"),
}
"""Role of a colour: its stand-in while drawing, and its value in the light palette."""
LIGHT: ContextVar[bool] = ContextVar("LIGHT", default=False)  # whether the figure being drawn is a file of its own
FileKind = Literal["svg", "png"]
TITLE_PIXELS, LINE_PIXELS = 18.0, 14.0
UNDATED: Mapping[FileKind, Mapping[str, None]] = {
    "svg": dict.fromkeys(("Date", "Creator", "Format", "Type")),
    "png": {"Software": None},
}


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn figure. `name` is unique on the page; `title` and `caption` are read with it, in words."""

    name: str
    title: str
    caption: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()
    """(role, label) pairs, shown above the figure by the page."""
    saved: Callable[[FileKind], bytes] = field(default=lambda kind: b"", compare=False, repr=False)
    """Draws the figure once more as a file of its own: light, under its title, legend and caption; a PNG at twice the
    size."""

    @property
    def inline(self) -> str:
        """SVG for an HTML page that defines the roles as CSS variables."""
        return _coloured(self.svg, lambda role: f"var(--{role})")

    def _repr_html_(self) -> str:
        """The figure under its title and legend, for a notebook."""
        key = Markup('<span style="color:{}">●</span> {} &ensp;')
        legend = Markup("").join(key.format(ROLES.get(role, ROLES["ink"])[1], label) for role, label in self.legend)
        head = Markup("<b>{}</b> &ensp;{}<small>{}</small>").format(self.title, legend, self.caption)
        figure = Markup('<figure style="display:inline-block;width:22rem;margin:0 1rem 1rem 0">{}{}</figure>')
        return figure.format(head, Markup(self.standalone))

    @property
    def standalone(self) -> str:
        """SVG for a page that has its own words around it, on white."""
        svg = _coloured(self.svg, lambda role: ROLES[role][1])
        background = '<rect width="100%" height="100%" fill="#ffffff"/>'
        return re.sub(r"(<svg [^>]*>)", lambda found: found[1] + background, svg, count=1) + "\n"


def colour(role: str) -> str:
    """The colour to draw a role in: its stand-in, or for a file its own. An unknown role is drawn in ink."""
    stand_in, light = ROLES.get(role, ROLES["ink"])
    return light if LIGHT.get() else stand_in


def draw(
    name: str,
    paint: Callable[[Axes], None],
    *,
    title: str,
    caption: str = "",
    legend: tuple[tuple[str, str], ...] = (),
    width: float = 320,
    height: float = 180,
    margins: tuple[float, float, float, float] = (46, 8, 10, 24),
) -> Picture:
    """Draw one pair of axes. Sizes in pixels; margins are left, right, top, bottom."""
    buffer = io.StringIO()
    with _drawn(paint, width, height, margins) as figure:
        figure.savefig(buffer, format="svg", metadata=UNDATED["svg"])
    svg = _tidy(buffer.getvalue(), name, title)
    words = [*legend, *([("muted", caption)] if caption else [])]
    heading = TITLE_PIXELS + LINE_PIXELS * len(words) + LINE_PIXELS / 2

    def saved(kind: FileKind) -> bytes:
        file, before = io.BytesIO(), LIGHT.set(True)
        left, right, top, bottom = margins
        try:
            with _drawn(paint, width, height + heading, (left, right, top + heading, bottom)) as figure:
                _write_heading(figure, title, words)
                figure.savefig(file, format=kind, dpi=144, facecolor=ROLES["paper"][1], metadata=UNDATED[kind])
        finally:
            LIGHT.reset(before)
        return file.getvalue() if kind == "png" else (_tidy(file.getvalue().decode(), name, title) + "\n").encode()

    return Picture(name=name, title=title, caption=caption, svg=svg, legend=legend, saved=saved)


def _write_heading(figure: Figure, title: str, words: Sequence[tuple[str, str]]) -> None:
    """The title, then a line for every (role, label); what has a colour of its own stands behind a dot of it."""
    width, height = (72 * inches for inches in figure.get_size_inches())
    figure.text(8 / width, 1 - 5 / height, title, va="top", weight="bold", color=colour("ink"))
    for line, (role, label) in enumerate(words):
        up = 1 - (5 + TITLE_PIXELS + LINE_PIXELS * line) / height
        if role != "muted":
            figure.text(8 / width, up, "●", va="top", fontsize=9, color=colour(role))
        figure.text((8 if role == "muted" else 20) / width, up, label, va="top", fontsize=9, color=colour("muted"))


@contextmanager
def _drawn(
    paint: Callable[[Axes], None], width: float, height: float, margins: tuple[float, float, float, float]
) -> Iterator[Figure]:
    left, right, top, bottom = margins
    with _style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the reader's font draws it, not this one
        figure = Figure(figsize=(width / 72, height / 72))
        FigureCanvasSVG(figure)
        figure.patch.set_visible(LIGHT.get())
        axes = figure.add_axes(
            (left / width, bottom / height, 1 - (left + right) / width, 1 - (top + bottom) / height), facecolor="none"
        )
        paint(axes)
        _draw_ticks(axes)
        yield figure


def _style() -> AbstractContextManager[None]:
    """Text stays text and is never read as mathematics; the same figure has the same ids every time."""
    return matplotlib.rc_context(
        {
            "svg.fonttype": "none",
            "svg.hashsalt": "report",
            "font.family": "sans-serif",
            "font.size": 11.0,
            "axes.xmargin": 0.02,
            "text.color": colour("ink"),
            "text.parse_math": False,
            "lines.linewidth": 1.8,
        }
    )


def _draw_ticks(axes: Axes) -> None:
    """Quiet axes: a light line across for every tick of y and at the foot, a label for every tick, no box.

    Drawn here from the locators and formatters, because matplotlib's own ticks take half the time of a figure this
    small.
    """
    axes.set_axis_off()
    across, up = axes.get_yaxis_transform(), axes.get_xaxis_transform()
    lines = []
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        low, high = sorted(limits)
        places = [float(place) for place in axis.get_major_locator()() if low <= place <= high]
        for place, label in zip(places, axis.get_major_formatter().format_ticks(places), strict=True):
            if axis is axes.xaxis:
                axes.text(place, -0.02, label, transform=up, ha="center", va="top", color=colour("muted"))
            else:
                axes.text(-0.02, place, label, transform=across, ha="right", va="center", color=colour("muted"))
                lines.append([(0, place), (1, place)])
    if lines:
        lines.append([(0, axes.get_ylim()[0]), (1, axes.get_ylim()[0])])
    axes.add_collection(
        LineCollection(lines, transform=across, colors=[colour("rule")], linewidths=0.8, zorder=0.5), autolim=False
    )


def _tidy(svg: str, name: str, title: str) -> str:
    """Leave only the drawing: no prolog, metadata, comments, style sheet or fixed size; ids unique on the page."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.S)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*"', "", svg)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{name}-", svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = re.sub(r"font-family: [^;\"]+", "font-family: system-ui, sans-serif", svg)
    svg = re.sub(r"font: ([a-z\d ]*?)([\d.]+px) [^;\"]+", r"font: \1\2 system-ui, sans-serif", svg)
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None, "matplotlib wrote an SVG without a viewBox"
    label = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {view[0]}'
    svg = re.sub(r"^<svg [^>]*>", lambda _: f'{head} role="img" aria-label="{label}">', svg, count=1)
    return re.sub(r"\n\s*", "\n", svg)


def _coloured(svg: str, value: Callable[[str], str]) -> str:
    for role, (stand_in, _) in ROLES.items():
        svg = svg.replace(stand_in, value(role))
    return svg
