"""HTML for notebooks: what comes from a model or a file is text."""

from __future__ import annotations

from markupsafe import Markup

from nanogpt_edit.common.html import Shown, html_of, line, table


def test_what_is_no_markup_is_escaped_and_what_cannot_be_seen_is_shown() -> None:
    made = table(("<i>", "n"), [("<script>&", 7), (Markup("<b>bold</b>"), "a\x1b[2K")])
    assert made.count("<tr>") == 3
    assert "&lt;i&gt;" in made and "&lt;script&gt;&amp;" in made and "<script>" not in made
    assert "<b>bold</b>" in made
    assert r"a\x1b[2K" in made
    assert line('" onclick="x') == '<p style="">&#34; onclick=&#34;x</p>'


def test_words_stand_left_and_numbers_right() -> None:
    first, second = table(("name", "n"), []).split("<th ")[1:]
    assert "text-align:left" in first and "text-align:right" in second


def test_a_record_without_a_view_is_shown_as_its_repr() -> None:
    assert html_of(3) is None
    assert Shown()._repr_html_() is None
