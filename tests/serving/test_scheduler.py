"""Who writes when: slots are shared in turn, who leaves gives theirs back, and nobody is served half-edited weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch
from scheduler_clients import Client, alone
from serving_run import small_model

from nanogpt_edit.engine.batch import Batch
from nanogpt_edit.engine.completion import Completion
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.models import Shelf, UnknownModel, _Place
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.scheduler import Ending, Full, Scheduler


@pytest.fixture
def model() -> GPT:
    return small_model()


@pytest.fixture
def scheduler(model: GPT) -> Iterator[Scheduler]:
    shelf = Shelf()
    shelf.add("m", model)
    shelf.add("other", small_model(seed=1))
    scheduler = Scheduler(shelf, Room(rows=4, waiting=12))
    yield scheduler
    scheduler.close()


@pytest.mark.parametrize("tokens", [1, 12])
def test_texts_are_those_of_the_engine_whoever_comes_beside(scheduler: Scheduler, model: GPT, tokens: int) -> None:
    """Also where there are more than fit, again and again, and where a text ends with its first token."""
    expected = alone(model, 3, tokens)
    for _ in range(4):
        clients = [Client(scheduler, 3, tokens=tokens, each_token=number % 2 == 0) for number in range(4)]
        other = Client(scheduler, 3, tokens=tokens, model="other")
        assert all(client.texts() == expected for client in clients)
        assert other.texts() != expected
    assert (scheduler.running, scheduler.waiting) == (0, 0)


def test_a_client_who_asks_for_little_does_not_wait_for_one_who_asks_for_much(scheduler: Scheduler) -> None:
    much = Client(scheduler, 12, tokens=50)
    little = Client(scheduler, 1, tokens=50)
    assert much.done.wait(20) and little.done.wait(20)
    begun = sorted(much.first.values())
    assert little.first[little.requests[0]] < begun[5]


def test_more_than_may_wait_is_refused(scheduler: Scheduler) -> None:
    Client(scheduler, 16, tokens=50)
    with pytest.raises(Full):
        Client(scheduler, 1)
    with pytest.raises(UnknownModel, match="no model"):
        Client(scheduler, 1, model="nobody")


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each step; steps take five milliseconds."""
    quick, made = Batch.step, list[int]()

    def step(batch: Batch, *, refill: bool) -> Iterator[Completion]:
        made.append(batch.rows)
        time.sleep(0.005)
        yield from quick(batch, refill=refill)

    monkeypatch.setattr(Batch, "step", step)
    return made


def test_who_leaves_gives_the_slot_back_within_a_step(scheduler: Scheduler, steps: list[int]) -> None:
    """The next one writes at once, though the row had fifty steps to go; nothing more comes for who has left."""
    leaving = [Client(scheduler, 1, tokens=60) for _ in range(4)]
    while not all(client.tokens for client in leaving):
        time.sleep(0.001)
    written, before = [len(client.tokens[client.requests[0]]) for client in leaving], len(steps)
    for client in leaving:
        scheduler.cancel(client.requests)
    Client(scheduler, 4, tokens=2).texts()
    assert len(steps) - before < 10
    for client, by_then in zip(leaving, written, strict=True):
        assert len(client.tokens[client.requests[0]]) <= by_then + 2
    assert scheduler.running == 0


def test_who_comes_after_somebody_who_wants_the_model_alone_waits(scheduler: Scheduler, steps: list[int]) -> None:
    """Though there are free slots, and texts that are being written."""
    running = Client(scheduler, 1, tokens=60)
    while not running.tokens:
        time.sleep(0.001)
    over: list[float] = []

    def edit() -> None:
        with scheduler.shelf.exclusive("m"):
            over.append(time.monotonic())

    editor = threading.Thread(target=edit)
    editor.start()
    while not scheduler.shelf._places["m"].waiting:
        time.sleep(0.001)
    late = Client(scheduler, 2, tokens=2)
    late.texts()
    editor.join(20)
    assert running.done.is_set()
    assert min(late.first.values()) >= over[0]


def test_weights_change_only_between_texts(scheduler: Scheduler, model: GPT) -> None:
    """Every text is wholly that of the old weights or wholly that of the new ones."""
    old = alone(model, 2, 40)
    clients = [Client(scheduler, 2, tokens=40) for _ in range(4)]
    with scheduler.shelf.exclusive("m") as held, torch.no_grad():
        running = scheduler.running
        for weight in held.parameters():
            weight.mul_(1.1)
            time.sleep(0.001)
        late = Client(scheduler, 2, tokens=40)
        time.sleep(0.05)
        assert not late.tokens
    new = alone(model, 2, 40)
    assert running == 0 and old != new
    assert late.texts() == new
    assert all(client.texts() in (old, new) for client in clients)


def test_a_question_is_answered_between_two_steps(scheduler: Scheduler, model: GPT) -> None:
    Client(scheduler, 2, tokens=50)
    assert scheduler.ask("m", lambda found: found is model).result(20)
    with pytest.raises(RuntimeError, match="ZeroDivisionError: division by zero"):
        scheduler.ask("m", lambda found: 1 / 0).result(20)


def test_a_model_that_is_taken_away_is_so_after_its_texts(scheduler: Scheduler) -> None:
    client = Client(scheduler, 2, tokens=50, model="other")
    while not client.tokens:
        time.sleep(0.001)
    scheduler.shelf.remove("other")
    client.texts()
    with pytest.raises(UnknownModel):
        Client(scheduler, 1, model="other")
    assert scheduler.shelf.names() == ["m"]


def test_a_request_that_takes_too_long_is_cut(model: GPT) -> None:
    shelf = Shelf()
    shelf.add("m", model)
    scheduler = Scheduler(shelf, Room(rows=1, seconds=0.0))
    client = Client(scheduler, 3, tokens=60)
    assert client.done.wait(20)
    assert [type(error) for error in client.errors] == [TimeoutError]
    scheduler.close()
    with pytest.raises(Ending):
        Client(scheduler, 1)


def test_damaged_weights_fail_the_request_and_not_the_server(scheduler: Scheduler, model: GPT) -> None:
    with scheduler.shelf.exclusive("m"), torch.no_grad():
        kept = model.norm.get_parameter("weight").clone()
        model.norm.get_parameter("weight")[3] = float("nan")
    client = Client(scheduler, 1)
    assert client.done.wait(20)
    assert "logits are not finite" in str(client.errors[0])
    with scheduler.shelf.exclusive("m"), torch.no_grad():
        model.norm.get_parameter("weight").copy_(kept)
    assert Client(scheduler, 3).texts() == alone(model, 3, 12)


def test_nothing_begins_with_a_model_that_somebody_has_alone(scheduler: Scheduler) -> None:
    """Also where it was free when the thread looked."""
    Client(scheduler, 1).texts()
    lane = scheduler._lanes["m"]
    with scheduler.shelf.exclusive("m"):
        late = Client(scheduler, 1)
        asked = scheduler.ask("m", lambda found: found)
        lane.may_begin = True
        scheduler._turn(lane)
        assert not lane.at_work
    late.texts()
    asked.result(20)


def test_who_wants_the_model_alone_is_not_kept_waiting_by_those_who_come(scheduler: Scheduler) -> None:
    """Texts that overlap, so that some are being written at any time."""
    over, had = threading.Event(), threading.Event()

    def ask_on_and_on(tokens: int) -> None:
        while not over.is_set():
            Client(scheduler, 1, tokens=tokens).texts()

    def take() -> None:
        with scheduler.shelf.exclusive("m"):
            had.set()

    people = [threading.Thread(target=ask_on_and_on, args=(tokens,)) for tokens in (20, 31, 47)]
    editor = threading.Thread(target=take)
    for thread in people:
        thread.start()
    time.sleep(0.1)
    editor.start()
    had_it = had.wait(10)
    over.set()
    for thread in (*people, editor):
        thread.join(20)
    assert had_it


def test_a_cancelled_question_harms_nobody(scheduler: Scheduler) -> None:
    with scheduler.shelf.exclusive("m"):
        asked = scheduler.ask("m", lambda found: found)
        assert asked.cancel()
        scheduler._give_up(scheduler._lanes["m"], ValueError())
    assert scheduler.ask("m", lambda found: 7).result(20) == 7


def test_a_name_that_another_model_takes_over(scheduler: Scheduler) -> None:
    """What waits for the old one fails; the new one is written with."""
    Client(scheduler, 1, model="other").texts()
    new = small_model(seed=7)
    with scheduler.shelf.exclusive("other"):
        waiting = Client(scheduler, 1, model="other")
        scheduler.shelf._places.pop("other")
        scheduler.shelf._put("other", _Place(lambda: new, "other", None, new))
        assert Client(scheduler, 2, model="other").texts() == alone(new, 2, 12)
    assert waiting.done.wait(20) and isinstance(waiting.errors[0], UnknownModel)
