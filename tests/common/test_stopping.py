"""SIGINT and SIGTERM: obeyed in time, with one sentence, the right status, and a run that goes on to the same bits."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tiny_stages
from tiny_stages import run_stage

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.common import stopping
from nanogpt_edit.training.parallel import Parallel
from nanogpt_edit.training.trainer import Trainer

HERE = Path(__file__).parents[1]
PROGRAM = """
import sys, time
from nanogpt_edit import cli
from nanogpt_edit.common import stopping
stopping.STEP_SECONDS, stopping.DEADLINE_SECONDS = 0.2, 0.8
def work(arguments):
    print("ready", flush=True)
    {body}
    return 0
cli.find_verb = lambda verb: work
sys.argv = ["nanogpt-edit", "run"]
cli.command()
"""


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


BODIES = {
    "waits": "time.sleep(60)",
    "computes": "sum(i * i for i in range(10**10))",
    "swallows it": "\n".join(
        ("try: time.sleep(60)", "    except BaseException: pass", "    while True: time.sleep(1)")
    ),
    "makes another error of it": "\n".join(
        ("try: time.sleep(60)", "    except BaseException: raise ValueError('no such thing')")
    ),
    "is in one long operator": "import hashlib; hashlib.pbkdf2_hmac('sha512', b'', b'', 2**31 - 1)",
    "is slow at its end": "import atexit; atexit.register(time.sleep, 60); time.sleep(60)",
    "leaves a thread behind": "import threading; threading.Thread(target=time.sleep, args=[60]).start();time.sleep(60)",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_whatever_the_program_is_doing(body: str) -> None:
    number, words = signal.SIGTERM, "ended by SIGTERM"
    with start(PROGRAM.format(body=body)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        asked = time.monotonic()
        said = process.communicate()[1]
    assert time.monotonic() - asked < 3
    assert process.returncode == 128 + number
    assert said == f"nanogpt-edit: {words}. The same command goes on from where it was.\n"


def test_a_second_signal_ends_it_at_once() -> None:
    with start(PROGRAM.format(body=BODIES["swallows it"])) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        said = process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        said += process.communicate()[1]
    assert time.monotonic() - asked < 3
    assert process.returncode == 143
    assert said.count("nanogpt-edit:") == 1


STEPS = 80
STAGE = f"""
import sys, tiny_stages
from dataclasses import replace
from pathlib import Path
from nanogpt_edit import cli
tiny_stages.SFT = replace(tiny_stages.SFT, steps={STEPS})
tiny_stages.GRPO = replace(tiny_stages.GRPO, steps={STEPS})
def work(arguments):
    tiny_stages.finish_stage(arguments[0], Path(arguments[1]))
    return 0
cli.find_verb = lambda verb: work
sys.argv = ["nanogpt-edit", "sft", *sys.argv[1:]]
cli.command()
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_stopped_at_random_instants_a_stage_ends_with_the_same_bits(stage: str, tmp_path: Path) -> None:
    with start(STAGE, stage, str(tmp_path / "unbroken")) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    chance, log = random.Random(stage), tmp_path / "stopped" / "log.jsonl"
    for number, further in ((each, 1 + chance.randrange(STEPS // 8)) for each in (signal.SIGTERM, signal.SIGINT)):
        begun, deadline = lines_of(log), time.monotonic() + 120
        with start(STAGE, stage, str(tmp_path / "stopped")) as process:
            while lines_of(log) < begun + further:  # the steps of this process: it hears signals by then
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.002)
            process.send_signal(number)
            asked = time.monotonic()
            said = process.communicate()[1]
        assert time.monotonic() - asked < 6
        assert process.returncode == 128 + number, said
        assert "Traceback" not in said
    with start(STAGE, stage, str(tmp_path / "stopped")) as process:
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert "goes on at step" in said
    done = [tmp_path / name / "done.json" for name in ("stopped", "unbroken")]
    assert done[0].read_text() == done[1].read_text()


def lines_of(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.fixture
def stop_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[type, str], None]]:
    """The second signal comes while a stage is in what step 4 calls, as the program's watch sends it."""

    def install(owner: type, name: str) -> None:
        original, calls = getattr(owner, name), itertools.count()

        def stopped(self: object, *arguments: object, **named: object) -> object:
            found = original(self, *arguments, **named)
            if next(calls) == 4:
                for _ in range(2):
                    signal.raise_signal(signal.SIGINT)
            return found

        monkeypatch.setattr(owner, name, stopped)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background begins with it ignored
    yield install
    signal.signal(signal.SIGINT, before)


def test_a_step_cut_short_before_its_update_is_kept_at_its_start(
    tmp_path: Path, stop_in: Callable[[type, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in(Parallel, "backward")
    with pytest.raises(KeyboardInterrupt):
        run_stage("sft", tmp_path)
    assert (tmp_path / "state" / "step_00000004.safetensors").exists()  # saved every three steps, and for the signal
    monkeypatch.undo()
    assert fingerprint(run_stage("sft", tmp_path)) == fingerprint(run_stage("sft", tmp_path / "unbroken"))


def test_a_step_cut_short_after_its_update_is_done_again(
    tmp_path: Path, stop_in: Callable[[type, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_in(Trainer, "apply_gradients")
    with pytest.raises(KeyboardInterrupt):
        run_stage("sft", tmp_path)
    assert not (tmp_path / "state" / "step_00000004.safetensors").exists()
    monkeypatch.undo()
    assert fingerprint(run_stage("sft", tmp_path)) == fingerprint(run_stage("sft", tmp_path / "unbroken"))


def test_statuses() -> None:
    assert stopping.STEP_SECONDS < stopping.DEADLINE_SECONDS < 5  # what the person is promised
    assert [stopping.status_of(number) for number in stopping.SIGNALS] == [130, 143]
    assert tiny_stages.steps_of("sft") > 4  # the step that is cut short
