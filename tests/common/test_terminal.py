"""What a person sees of long work."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

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


@pytest.fixture
def level() -> Iterator[None]:
    """The level of the logger, as it is by default again after the test."""
    yield
    logging.disable(logging.NOTSET)
    terminal.quiet(False)


SILENCES: dict[str, Callable[[], None]] = {
    "its own word": terminal.quiet,
    "the logger's level": lambda: logging.getLogger("nanogpt_edit").setLevel(logging.WARNING),
    "all logging": lambda: logging.disable(logging.INFO),
}


@pytest.mark.usefixtures("level")
@pytest.mark.parametrize("silence", SILENCES)
@pytest.mark.parametrize("in_terminal", [True, False])
def test_silenced_work_shows_nothing(silence: str, in_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=in_terminal, width=200))
    SILENCES[silence]()
    with terminal.progress("work", 1) as bar:
        bar.update(1)
        terminal.say("done.")
    terminal.show("a table")
    assert out.getvalue() == ""
    logging.disable(logging.NOTSET)
    terminal.quiet(False)
    terminal.say("and again.")
    assert out.getvalue().endswith("and again.\n")


def test_a_handler_of_ones_own_takes_the_place_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    out, records = io.StringIO(), []
    own = logging.Handler()
    own.emit = records.append
    monkeypatch.setattr(terminal, "console", Console(file=out, force_terminal=True, width=200))
    monkeypatch.setattr(logging.getLogger("nanogpt_edit"), "handlers", [own])
    with terminal.progress("work", 2) as bar:
        terminal.say("100% of [red]what[/red] is said: %s")
        bar.update(2)
    said, line = records
    assert said.getMessage() == "100% of [red]what[/red] is said: %s"
    assert (said.levelno, said.name, Path(said.pathname)) == (logging.INFO, "nanogpt_edit", Path(__file__))
    assert line.getMessage().startswith("work  2/2")
    assert out.getvalue() == ""


PROGRAMS = {
    "says it by default": ("", "done.\n"),
    "in a program that logs, once": ("logging.basicConfig(level=logging.DEBUG)", "done.\n"),
    "not below a level set before": ("logging.getLogger('nanogpt_edit').setLevel(logging.ERROR)", ""),
    "to the handler that was there before": (
        "logging.getLogger('nanogpt_edit').addHandler(logging.StreamHandler(sys.stdout))",
        "",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_that_uses_the_package(name: str) -> None:
    before, shown = PROGRAMS[name]
    code = f"import logging, sys\n{before}\nfrom nanogpt_edit.common.terminal import say\nsay('done.')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == shown
    assert ended.stdout == ("done.\n" if "stdout" in before else "")


def test_messages_of_several_threads_and_a_live_line_do_not_wait_for_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(terminal, "console", Console(file=io.StringIO(), force_terminal=True, width=200))
    monkeypatch.setattr(terminal, "LIVE_INTERVAL_SECONDS", 0.0)

    def talk() -> None:
        for number in range(100):
            logging.getLogger("nanogpt_edit").info("%d", number)
            terminal.say("said")

    threads = [threading.Thread(target=talk, daemon=True) for _ in range(3)]
    with terminal.progress("work", 100) as bar:
        for thread in threads:
            thread.start()
        for number in range(100):
            bar.update(number)
        for thread in threads:
            thread.join(timeout=20)
    assert not any(thread.is_alive() for thread in threads)


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


def test_a_listener_hears_of_progress_in_its_thread_and_may_end_it() -> None:
    heard: list[tuple[str, int, int | None]] = []
    with (
        terminal.told_to(lambda label, done, of: heard.append((label, done, of))),
        terminal.progress("solving", 2) as work,
    ):
        work.update(1)
    with terminal.progress("later", 2):
        pass
    assert heard == [("solving", 0, 2), ("solving", 1, 2)]

    def end(label: str, done: int, of: int | None) -> None:
        if done:
            raise InterruptedError

    with pytest.raises(InterruptedError), terminal.told_to(end), terminal.progress("long", 3) as work:
        work.update(1)


class Kernel:
    """What a notebook's IPython does with what is displayed: outputs of a cell, some rewritten."""

    def __init__(self) -> None:
        self.kernel = self
        self.execution_count = 1
        self.outputs: list[str] = []

    def display(self, data: dict[str, str], **_: bool) -> Output:
        self.outputs.append(data["text/plain"])
        return Output(self, len(self.outputs) - 1)


@dataclass
class Output:
    kernel: Kernel
    place: int

    def update(self, data: dict[str, str], **_: bool) -> None:
        self.kernel.outputs[self.place] = data["text/plain"]


def test_in_a_notebook_one_output_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    ipython = SimpleNamespace(get_ipython=lambda: kernel, display=kernel)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setattr(terminal, "console", Console(file=io.StringIO(), force_terminal=False, width=200))
    monkeypatch.setattr(terminal, "LIVE_INTERVAL_SECONDS", 0.0)
    with terminal.progress("work", 3) as bar:
        for done in (1, 2, 3):
            bar.update(done, loss=1 / done)
    for number in (1, 2):
        with terminal.progress(f"brief {number}", 2, brief=True) as bar:
            bar.update(1)
    kernel.execution_count = 2
    with terminal.progress("the next cell's", 1) as bar:
        bar.update(1)
    first, cleared, last = kernel.outputs
    assert first.startswith("work  3/3")
    assert "loss 0.3333" in first
    assert cleared == ""
    assert last.startswith("the next cell's  1/1")
