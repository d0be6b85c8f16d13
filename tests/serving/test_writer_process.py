"""The writer as a process: it writes what a thread would, and its end is nobody else's."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from scheduler_clients import PROMPT, Client, alone, threads_of
from serving_run import small_model

from nanogpt_edit.engine.batch import look_at_prompt
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving import writer_process
from nanogpt_edit.serving.messages import WriterEnded
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.scheduler import Scheduler
from nanogpt_edit.serving.shared_tensors import SharedTensors
from nanogpt_edit.serving.writer_process import ProcessWriter

pytestmark = pytest.mark.skipif(
    not SharedTensors.possible(torch.device("cpu")), reason="this system has no memfd_create, or no /proc"
)

THREADS = 3  # more than a process takes by itself on two cores


def wide_model() -> GPT:
    """With a matrix that is large enough for decoding to keep a copy of it (`linear.LARGE_LAYER`)."""
    config = GPTConfig(vocab_size=300, block_size=64, n_layer=1, n_head=2, n_embd=512)
    model = GPT(config, seed=2)
    model.tokenizer = small_model().tokenizer
    return model.eval()


@pytest.fixture(scope="module")
def scheduler() -> Iterator[Scheduler]:
    torch.set_num_threads(THREADS)
    shelf = Shelf(shared=SharedTensors())
    shelf.add("m", small_model())
    shelf.add("other", small_model(seed=1))
    shelf.add("wide", wide_model())
    scheduler = Scheduler(shelf, Room(rows=4, waiting=12))
    yield scheduler
    scheduler.close()


def writer_of(scheduler: Scheduler) -> ProcessWriter:
    assert isinstance(scheduler._writer, ProcessWriter)
    return scheduler._writer


def process_of(scheduler: Scheduler) -> subprocess.Popen[bytes]:
    return writer_of(scheduler)._process


@pytest.mark.parametrize("tokens", [1, 12])
def test_texts_are_those_of_the_engine_whoever_comes_beside(scheduler: Scheduler, tokens: int) -> None:
    expected = alone(scheduler.shelf.open("m"), 3, tokens)
    for _ in range(4):
        clients = [Client(scheduler, 3, tokens=tokens, each_token=number % 2 == 0) for number in range(4)]
        other = Client(scheduler, 3, tokens=tokens, model="other")
        assert all(client.texts() == expected for client in clients)
        assert other.texts() == alone(scheduler.shelf.open("other"), 3, tokens) != expected
    assert (scheduler.running, scheduler.waiting) == (0, 0)


@pytest.mark.parametrize("name", ["m", "wide"])
def test_weights_that_change_here_change_there(scheduler: Scheduler, name: str) -> None:
    """Every text is wholly that of the old weights or wholly that of the new ones, copies of them included."""
    old = alone(scheduler.shelf.open(name), 2, 30)
    clients = [Client(scheduler, 2, tokens=30, model=name) for _ in range(4)]
    while not clients[0].tokens:
        time.sleep(0.001)
    with scheduler.shelf.exclusive(name) as held, torch.no_grad():
        for weight in held.parameters():
            weight.mul_(1.1)
        late = Client(scheduler, 2, tokens=30, model=name)
    new = alone(scheduler.shelf.open(name), 2, 30)
    assert old != new
    assert clients[0].texts()[0] == old[0]
    assert late.texts() == new
    assert all(client.texts()[row] in (old[row], new[row]) for client in clients for row in range(2))


def test_who_leaves_gives_the_slot_back(scheduler: Scheduler) -> None:
    leaving = [Client(scheduler, 1, tokens=60) for _ in range(4)]
    while not all(client.tokens for client in leaving):
        time.sleep(0.001)
    for client in leaving:
        scheduler.cancel(client.requests)
    Client(scheduler, 4, tokens=2).texts()
    assert all(len(client.tokens[client.requests[0]]) < 60 for client in leaving)
    assert scheduler.running == 0


def test_a_question_is_answered_by_the_process(scheduler: Scheduler) -> None:
    model = scheduler.shelf.open("m")
    looks = scheduler.ask("m", partial(look_at_prompt, prompt=PROMPT, alternatives=3)).result(20)
    assert [look.top_ids for look in looks] == [look.top_ids for look in look_at_prompt(model, PROMPT, alternatives=3)]
    with pytest.raises(RuntimeError, match="TypeError"):
        scheduler.ask("m", partial(look_at_prompt, nothing=1)).result(20)
    with pytest.raises(Exception, match="pickle"):
        scheduler.ask("m", lambda found: found).result(20)
    assert scheduler.ask("m", threads_of).result(20) == THREADS


def test_damaged_weights_fail_the_request_and_not_the_process(scheduler: Scheduler) -> None:
    running = process_of(scheduler)
    with scheduler.shelf.exclusive("other") as model, torch.no_grad():
        kept = model.norm.get_parameter("weight").clone()
        model.norm.get_parameter("weight")[3] = float("nan")
    client = Client(scheduler, 1, model="other")
    assert client.done.wait(20)
    assert "logits are not finite" in str(client.errors[0])
    with scheduler.shelf.exclusive("other") as model, torch.no_grad():
        model.norm.get_parameter("weight").copy_(kept)
    assert Client(scheduler, 3, model="other").texts() == alone(scheduler.shelf.open("other"), 3, 12)
    assert process_of(scheduler) is running


def test_a_process_that_is_killed_fails_what_it_was_writing_and_is_replaced(
    scheduler: Scheduler, caplog: pytest.LogCaptureFixture
) -> None:
    running = process_of(scheduler)
    clients = [Client(scheduler, 8, tokens=60), Client(scheduler, 1, tokens=60, model="other")]
    while not all(client.tokens for client in clients):
        time.sleep(0.001)
    with caplog.at_level(logging.ERROR):
        running.kill()
        assert all(client.done.wait(20) for client in clients)
    assert [type(client.errors[0]) for client in clients] == [WriterEnded, WriterEnded]
    assert "has ended (signal 9, Killed); a new one is started." in caplog.text
    with scheduler.shelf.exclusive("m"):
        pass  # nobody is thought to be at it
    assert Client(scheduler, 3).texts() == alone(scheduler.shelf.open("m"), 3, 12)


def test_one_that_is_killed_while_nothing_is_asked_fails_nobody(scheduler: Scheduler) -> None:
    process_of(scheduler).kill()
    process_of(scheduler).wait(20)
    assert Client(scheduler, 3).texts() == alone(scheduler.shelf.open("m"), 3, 12)


def test_where_none_can_be_started_the_next_request_is_another_try(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(scheduler, "_new_writer", none_left)
    with caplog.at_level(logging.ERROR):
        process_of(scheduler).kill()
        process_of(scheduler).wait(20)
        for _ in range(2):
            client = Client(scheduler, 1)
            assert client.done.wait(20) and isinstance(client.errors[0], WriterEnded)
    assert "it cannot be started (too many open files)." in caplog.text
    with scheduler.shelf.exclusive("m"):
        pass
    monkeypatch.undo()
    assert Client(scheduler, 3).texts() == alone(scheduler.shelf.open("m"), 3, 12)


def test_one_that_does_not_answer_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ProcessWriter(Room(), SharedTensors())
    writer._process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(writer_process, "ENDING_SECONDS", 0.1)
    writer.end()
    assert writer.ended


def test_signals_of_a_terminal_are_the_other_processs(scheduler: Scheduler) -> None:
    Client(scheduler, 1).texts()
    running = process_of(scheduler)
    for sent in (signal.SIGINT, signal.SIGTERM):
        running.send_signal(sent)
    assert Client(scheduler, 3).texts() == alone(scheduler.shelf.open("m"), 3, 12)
    assert process_of(scheduler) is running


def test_a_model_that_is_taken_away_is_forgotten_there(scheduler: Scheduler) -> None:
    Client(scheduler, 2).texts()
    maps = Path(f"/proc/{process_of(scheduler).pid}/maps")
    scheduler.shelf.add("short", small_model(seed=5))
    before = maps.read_text().count("memfd:nanogpt_edit")
    Client(scheduler, 2, model="short").texts()
    assert maps.read_text().count("memfd:nanogpt_edit") == before + 1
    scheduler.shelf.remove("short")
    until = time.monotonic() + 20
    while maps.read_text().count("memfd:nanogpt_edit") > before:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_it_ends_with_whoever_has_started_it(tmp_path: Path) -> None:
    """However that came about."""
    script = tmp_path / "starts.py"
    script.write_text(
        "import sys, time\n"
        "from nanogpt_edit.serving.shared_tensors import SharedTensors\n"
        "from nanogpt_edit.serving.room import Room\n"
        "from nanogpt_edit.serving.writer_process import ProcessWriter\n"
        "print(ProcessWriter(Room(), SharedTensors())._process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 20
    while is_running(child):
        assert time.monotonic() < until
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    """A process that has ended and whom nobody waits for does not run."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
