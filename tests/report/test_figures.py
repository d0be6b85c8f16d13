"""The figures of a report as files: light, under their title and legend, the same bytes every time."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from matplotlib.axes import Axes

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.report.canvas import Picture, colour, draw
from nanogpt_edit.report.pictures import save_pictures


def drawn(name: str) -> Picture:
    def paint(axes: Axes) -> None:
        axes.plot([0, 1, 2], [1, 3, 2], color=colour("accent"))

    legend = (("accent", "train 1 → 2"), ("second", "validation"))
    return draw(name, paint, title="Loss & more", caption="nats per token", legend=legend, width=320, height=180)


def test_every_figure_is_there_as_svg_and_png(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "figures"
    save_pictures([drawn("one"), drawn("two")], folder)
    assert sorted(file.name for file in folder.iterdir()) == ["one.png", "one.svg", "two.png", "two.svg"]
    svg = (folder / "one.svg").read_text(encoding="utf-8")
    for words in ("Loss &amp; more", "train 1 → 2", "validation", "nats per token", "#1d5fd0"):
        assert words in svg
    assert "#0a00" not in svg and "var(" not in svg
    png = (folder / "one.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    heading = 18 + 14 * 3 + 7  # the title, three lines, half a line of room
    assert struct.unpack(">II", png[16:24]) == (2 * 320, 2 * (180 + heading))
    again = drawn("one")
    assert (again.saved("png"), again.saved("svg").decode()) == (png, svg)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        save_pictures([drawn("one")], tmp_path / "file")
