"""How long is the longest silence of each verb's output, and how soon does it end when asked?

Each verb runs on a real model with its output in a pipe: first as it is, and the time between two lines is taken; then
again for every phase, with a line every half second so that the phase is seen to begin, and SIGTERM or SIGINT is sent a
second later. A training stage that was stopped runs again, to see whether it goes on.

    python benchmarks/silence_and_stops.py MODEL WORK --text wiki.txt --only sft grpo --out silence.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

PACKAGE = Path(__file__).parents[1] / "nanogpt_edit"
PHASE_AT_ONCE = "from nanogpt_edit.common import terminal; terminal.PLAIN_INTERVAL_SECONDS = 0.4"
PROGRAM = "import sys; {first}; from nanogpt_edit.cli import command; sys.argv[0] = 'nanogpt-edit'; command()"


@dataclass(frozen=True)
class Work:
    """A command line after the model's directory, and what its lines begin with while each phase lasts."""

    verb: str
    arguments: tuple[str, ...]
    phases: tuple[str, ...]
    limit: float = 150.0  # seconds of the run that is listened to; SIGTERM ends it
    resumes: bool = False


def works(facts: Path, text: Path) -> dict[str, Work]:
    few = ("--problems.path", "example")
    return {
        "evaluate": Work(
            "evaluate",
            ("--evaluate.problems", "4", "--evaluate.samples", "4", "--evaluate.max-new-tokens", "128"),
            ("loading a model", "evaluate ", "arithmetic"),
        ),
        "sft": Work(
            "sft",
            (*few, "--problems.validation", "6", "--sft.steps", "4", "--sft.evaluate-every", "2"),
            ("sft validation", "sft  0/", "saving a model"),
            resumes=True,
        ),
        "grpo": Work(
            "grpo",
            ("--grpo.steps", "2", "--grpo.problems-per-step", "2", "--grpo.max-new-tokens", "96"),
            ("sampling", "grpo  0/"),
            resumes=True,
        ),
        "edit": Work(
            "edit",
            (str(facts), "--pretrain.text", str(text)),
            ("covariance", "values", "refining", "measuring facts"),
            limit=240.0,
        ),
        "trace": Work("trace", ("--facts", "facts50", "--trace.facts", "6"), ("scoring", "tracing")),
    }


@dataclass(frozen=True)
class Line:
    at: float  # seconds after the start
    text: str


class Listened:
    """A running command, its lines, and when they came."""

    def __init__(self, arguments: list[str], *, at_once: bool) -> None:
        program = PROGRAM.format(first=PHASE_AT_ONCE if at_once else "pass")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
        self.heard: list[Line] = []
        self.news: queue.Queue[Line | None] = queue.Queue()
        assert self.process.stdout is not None
        threading.Thread(target=self.listen, args=(self.process.stdout,), daemon=True).start()

    def listen(self, stream: IO[str]) -> None:
        for text in stream:
            line = Line(time.monotonic() - self.started, text.rstrip())
            self.heard.append(line)
            self.news.put(line)
        self.news.put(None)

    def lines(self, seconds: float) -> Iterator[Line]:
        """What it says, until it ends or so many seconds have passed since its start."""
        while (left := self.started + seconds - time.monotonic()) > 0:
            try:
                line = self.news.get(timeout=left)
            except queue.Empty:
                return
            if line is None:
                return
            yield line

    def stop(self, number: int) -> float:
        """Send a signal; the seconds until the process has ended."""
        asked = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(timeout=120)
        return time.monotonic() - asked


def silence(command: list[str], limit: float) -> dict[str, object]:
    """The longest time without a line, from the start of the process to its end, and the line before it."""
    run = Listened(command, at_once=False)
    for _ in run.lines(limit):
        pass
    alive = run.process.poll() is None and time.monotonic() - run.started >= limit
    ended = time.monotonic() - run.started
    stopped = run.stop(signal.SIGTERM) if alive else None
    run.process.wait(timeout=120)
    marks = [Line(0.0, "(start)"), *(line for line in run.heard if line.at <= ended), Line(ended, "(end)")]
    longest, after = max((later.at - line.at, line.text) for line, later in itertools.pairwise(marks))
    return {
        "seconds": round(ended, 1),
        "lines": len(run.heard),
        "longest_silence": round(longest, 2),
        "after": after[:100],
        "status": run.process.returncode,
        "stopped_in": stopped,
        "said": [f"{line.at:.1f} {line.text[:110]}" for line in run.heard],
    }


def stop_in(command: list[str], phase: str, number: int, limit: float, delay: float) -> dict[str, object]:
    """Send the signal `delay` seconds after the phase's first line; what it said last, its status, how long it took."""
    run = Listened(command, at_once=True)
    seen = next((line for line in run.lines(limit) if line.text.strip().startswith(phase.strip())), None)
    if seen is None:
        run.stop(signal.SIGTERM)
        return {"phase": phase, "seen": False, "said": [line.text[:100] for line in run.heard][-3:]}
    time.sleep(delay)
    ended = run.process.poll() is not None
    took = run.stop(number)
    time.sleep(0.1)
    return {
        "phase": phase,
        "seen": True,
        "signal": signal.Signals(number).name,
        "at": round(seen.at, 1),
        "ended_before": ended,
        "seconds": round(took, 2),
        "status": run.process.returncode,
        "said": [line.text[:160] for line in run.heard][-2:],
    }


def left(folder: Path) -> list[str]:
    """The files that a stopped command has left."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def measure(name: str, work: Work, model: Path, folder: Path, delay: float) -> Iterator[dict[str, object]]:
    """The silence of one verb, then its stops."""

    def command(out: Path) -> list[str]:
        shutil.rmtree(out, ignore_errors=True)
        return again(out)

    def again(out: Path) -> list[str]:
        return [work.verb, str(model), *work.arguments, "--out", str(out)]

    os.environ["NANOGPT_EDIT_CACHE"] = str(folder / "cache")
    yield {"verb": name, **silence(command(folder / name), work.limit)}
    for number, phase in enumerate(work.phases):
        shutil.rmtree(folder / "cache", ignore_errors=True)
        out = folder / f"{name}_stopped"
        asked = (signal.SIGTERM, signal.SIGINT)[number % 2]
        found = stop_in(command(out), phase, asked, work.limit, delay)
        yield {"verb": name, **found, "left": left(out)[:12]}
        if work.resumes and phase == work.phases[-1]:
            yield {"verb": name, "again": silence(again(out), work.limit)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's directory")
    parser.add_argument("work", type=Path, help="a folder for what the commands write")
    parser.add_argument("--only", nargs="*", help="of the verbs only these")
    parser.add_argument("--delay", type=float, default=1.0, help="seconds from a phase's first line to the signal")
    parser.add_argument("--facts", type=int, default=4, help="facts to edit, of the packaged ones")
    parser.add_argument("--text", type=Path, required=True, help="a file of ordinary text, for the covariance")
    parser.add_argument("--out", type=Path, help="a file for the records")
    chosen = parser.parse_args()
    chosen.work.mkdir(parents=True, exist_ok=True)
    packaged = (PACKAGE / "data/world/facts50.jsonl").read_text(encoding="utf-8").splitlines()
    facts = chosen.work / "facts.jsonl"
    facts.write_text("\n".join(packaged[: chosen.facts]) + "\n", encoding="utf-8")
    for name, work in works(facts, chosen.text).items():
        if chosen.only and name not in chosen.only:
            continue
        for record in measure(name, work, chosen.model, chosen.work, chosen.delay):
            line = json.dumps(record)
            print(line, flush=True)
            if chosen.out:
                with chosen.out.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")


if __name__ == "__main__":
    main()
