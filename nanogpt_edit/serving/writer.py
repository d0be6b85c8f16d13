"""The loop that writes the texts of all models, a step of each in turn, in a thread or a process of its own.

Orders come at any time and count before the next step; what has been written is told after every step. The loop does
not wait for whoever listens, and goes on by itself as long as there are rows.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from itertools import accumulate, islice
from queue import SimpleQueue

import torch

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine.batch import Batch
from nanogpt_edit.engine.completion import Request
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.messages import (
    Answer,
    Ask,
    Begin,
    Cancel,
    Failed,
    Key,
    Open,
    Order,
    Renew,
    Report,
    Token,
    Written,
    key_of,
)
from nanogpt_edit.serving.room import Room

BUNCH, BUNCH_STEPS = 1 / 8, 3  # rows begin together: so many of those that run, or all that have come in so many steps
PROMPT_TOKENS = 2048  # read between two steps, unless one prompt alone has more
log = logging.getLogger(__name__)


class Rows:
    """One model's rows: those in its batch, and those for which the batch has no slot yet."""

    def __init__(self, model: GPT, room: Room) -> None:
        self.model, self.room = model, room
        self.engine = Engine(model, max_slots=room.rows, cache_bytes=room.cache_bytes, in_slots=False)
        self.waiting: deque[Request] = deque()
        self.steps_waited = 0  # by rows that could have begun
        self.batch: Batch | None = None

    @property
    def at_work(self) -> bool:
        return bool(self.waiting or (self.batch and self.batch.rows))

    def turn(self) -> Iterator[list[Token]]:
        """Begin what there is room for, and advance all by a token."""
        batch = self.batch = self.batch or self._open()
        if beginning := self._beginning(batch):
            batch.admit([self.waiting.popleft() for _ in range(beginning)])
            yield tokens_of(batch)
        for _ in batch.step(refill=bool(self.waiting)):
            pass  # the last tokens of what has finished have been told already
        yield tokens_of(batch)

    def _beginning(self, batch: Batch) -> int:
        """How many of the waiting rows begin now; none yet where more may come to begin with them."""
        if not self.waiting:
            return 0
        fitting = batch.room_for([*self.waiting])
        if fitting < BUNCH * batch.rows and self.steps_waited < BUNCH_STEPS:
            self.steps_waited += fitting > 0
            return 0
        self.steps_waited = 0
        read = accumulate(len(request.prompt) for request in islice(self.waiting, fitting))
        return sum(place == 0 or tokens <= PROMPT_TOKENS for place, tokens in enumerate(read))

    def _open(self) -> Batch:
        most = min(self.room.new_tokens, self.model.config.block_size - 1)
        return self.engine.open(self.room.rows, new_tokens=most, longest_prompt=most)

    def cancel(self, keys: Collection[Key]) -> None:
        """Take rows out, whether they run or wait."""
        self.waiting = deque(request for request in self.waiting if key_of(request) not in keys)
        if self.batch is not None:
            self.batch.cancel({request for request in self.batch.requests if key_of(request) in keys})

    def give_up(self) -> None:
        """Lose all rows, and the batch: it may hold copies of the weights."""
        self.waiting.clear()
        self.batch = None


def tokens_of(batch: Batch) -> list[Token]:
    """What the batch has just written."""
    return [Token(key_of(each.request), each.token_id, each.look, each.finish_reason) for each in batch.fresh()]


@torch.inference_mode()
def write(orders: SimpleQueue[Order | None], tell: Callable[[Report], object], room: Room) -> None:
    """Write what is ordered, until None comes."""
    models: dict[str, Rows] = {}
    while obey(orders, models, tell, room):
        for name in models:
            advance(name, models[name], tell)


def obey(
    orders: SimpleQueue[Order | None], models: dict[str, Rows], tell: Callable[[Report], object], room: Room
) -> bool:
    """Carry out what has been ordered by now; where there are no rows, wait for it. False: this was the end."""
    while not orders.empty() or not any(rows.at_work for rows in models.values()):
        order = orders.get()
        if order is None:
            return False
        carry_out(order, models, tell, room)
        del order  # it may be the last that holds a model
    return True


def advance(name: str, rows: Rows, tell: Callable[[Report], object]) -> None:
    """A turn of a model's rows, told of."""
    try:
        for tokens in rows.turn() if rows.at_work else ():
            if tokens:
                tell(Written(name, tokens))
    except Exception as error:
        if not isinstance(error, UserError):
            log.exception("a step of %s failed", name)
        rows.give_up()
        tell(Failed(name, plain(error)))


def plain(error: Exception) -> Exception:
    """An error of a kind that every process can read."""
    return UserError(str(error)) if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {error}")


def carry_out(order: Order, models: dict[str, Rows], tell: Callable[[Report], object], room: Room) -> None:
    """Do what one order asks for."""
    if isinstance(order, Open):
        models[order.name] = Rows(order.model, room)
    elif isinstance(order, Renew):
        models[order.name].give_up()
    elif isinstance(order, Begin):
        models[order.name].waiting.extend(order.requests)
    elif isinstance(order, Cancel):
        if order.name in models:
            models[order.name].cancel(order.keys)
        tell(Written(order.name, gone=order.keys))
    elif isinstance(order, Ask):
        tell(answer(order, models[order.name].model))
    else:
        models.pop(order.name, None)


def answer(order: Ask, model: GPT) -> Answer:
    """The answer to a question."""
    try:
        return Answer(order.name, order.number, order.question(model))
    except Exception as error:
        return Answer(order.name, order.number, error=plain(error))


class ThreadWriter:
    """It writes in a thread of this process."""

    ended = False

    def __init__(self, room: Room) -> None:
        self._orders: SimpleQueue[Order | None] = SimpleQueue()
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._thread = threading.Thread(
            target=write, args=(self._orders, self._reports.put, room), name="writer", daemon=True
        )
        self._thread.start()

    def tell(self, order: Order) -> None:
        """Returns at once."""
        self._orders.put(order)

    def hear(self) -> Report:
        """The next report, waited for."""
        return self._reports.get()

    def end(self) -> None:
        """It ends after its step."""
        self._orders.put(None)
        self._thread.join()
