"""What a person sees of long work."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest
from rich.console import Console

from nanogpt_edit import cli
from nanogpt_edit.common import terminal


def screen(written: str) -> list[str]:
    """The lines that a terminal would show."""
    return [line.split(terminal.CLEAR_LINE)[-1] for line in written.split("\n")]


def test_in_a_terminal_a_message_stands_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, width=200, soft_wrap=True)
    monkeypatch.setattr(terminal, "console", console)
    with terminal.progress("work", 2) as bar:
        bar.update(1)
        terminal.say("half of it is done.")
        bar.update(2, loss=0.5)
        terminal.say("that was all.")
    assert isinstance(console.file, io.StringIO)
    half, end, last, nothing = screen(console.file.getvalue())
    assert half == "half of it is done."
    assert end == "that was all."
    assert last.startswith("work  2/2")
    assert "loss 0.5" in last
    assert nothing == ""


def test_in_a_pipe_there_are_plain_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    monkeypatch.setattr(terminal, "console", console)
    with terminal.progress("work", 2) as bar:
        bar.update(1)
        bar.update(2)
    assert isinstance(console.file, io.StringIO)
    (line,) = console.file.getvalue().splitlines()
    assert line.startswith("work  2/2")
    assert "\x1b" not in line


def test_long_work_that_tells_nothing_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, width=200))
    monkeypatch.setattr(terminal, "PLAIN_INTERVAL_SECONDS", 0.03)
    monkeypatch.setattr(terminal, "BEAT_SECONDS", 0.01)
    with terminal.progress("verb", plain=True), terminal.progress("one long operator"):
        until = time.monotonic() + 5
        while out.getvalue().count("\n") < 3 and time.monotonic() < until:
            time.sleep(0.01)
    lines = out.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("one long operator  0:0") and line.endswith("so far") for line in lines)


def test_quiet_work_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, width=200))
    terminal.quiet()
    with terminal.progress("work", 1) as bar:
        bar.update(1)
        terminal.say("done.")
    assert out.getvalue() == ""


def test_brief_work_leaves_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, width=200))
    assert list(terminal.counted([1, 2, 3], "tokenising", unit="documents")) == [1, 2, 3]
    assert out.getvalue() == ""


@pytest.mark.parametrize("verb", ["sft", "edit", "trace"])
def test_a_verb_that_takes_long_to_load_is_shown_all_the_same(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=False, width=200))
    monkeypatch.setattr(terminal, "PLAIN_INTERVAL_SECONDS", 0.03)
    monkeypatch.setattr(terminal, "BEAT_SECONDS", 0.01)

    def slowly_found(name: str) -> Callable[[list[str]], int]:
        until = time.monotonic() + 5
        while out.getvalue().count("\n") < 2 and time.monotonic() < until:
            time.sleep(0.01)
        return lambda arguments: 0

    monkeypatch.setattr(cli, "find_verb", slowly_found)
    assert cli.main([verb, "m"]) == 0
    lines = out.getvalue().splitlines()
    assert len(lines) >= 2
    assert all(line.startswith(f"{verb}  0:0") and line.endswith("so far") for line in lines)
