"""What a person sees of long work."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from nanogpt_edit import progress


def screen(written: str) -> list[str]:
    """The lines that a terminal would show."""
    return [line.split(progress.CLEAR_LINE)[-1] for line in written.split("\n")]


def test_in_a_terminal_a_message_stands_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200, soft_wrap=True)
    monkeypatch.setattr(progress, "console", console)
    with progress.progress("work", 2) as bar:
        bar.update(1)
        progress.say("half of it is done.")
        bar.update(2, loss=0.5)
        progress.say("that was all.")
    assert isinstance(console.file, io.StringIO)
    half, end, last, nothing = screen(console.file.getvalue())
    assert half == "half of it is done."
    assert end == "that was all."
    assert last.startswith("work  2/2")
    assert "loss 0.5" in last
    assert nothing == ""


def test_in_a_pipe_there_are_plain_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    monkeypatch.setattr(progress, "console", console)
    with progress.progress("work", 2) as bar:
        bar.update(1)
        bar.update(2)
    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("work  2/2")
    assert "\x1b" not in line
