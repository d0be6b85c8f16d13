"""The loop that writes the texts of all models, a step of each in turn, in a thread or a process of its own.

Orders come at any time and count before the next step; what has been written is told after every step. The loop does
not wait for whoever listens, and goes on by itself as long as there are rows.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import torch

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.engine.batch import Batch
from nanogpt_edit.engine.completion import FinishReason, Look, Request
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.model.gpt import GPT

Key = tuple[int, int]
"""Of a row: the numbers of its prompt and of its sample (`key_of`)."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Room:
    """How much is taken on at once."""

    rows: int = 32
    """Texts of one model that are written at the same time."""
    waiting: int = 256
    """Texts that may wait for a row; further requests are told to come back later."""
    new_tokens: int = 1024
    """Of a text at most."""
    prompt_tokens: int = 4096
    """Of a prompt at most."""
    seconds: float = 300.0
    """For a request from its coming to its end; what is written by then is given out."""
    cache_bytes: int | None = None
    """For the keys and values of a model's texts, and its weights once more in an order that a CPU reads faster (None:
    as the engine has it)."""


@dataclass(frozen=True)
class Open:
    """From now on the rows under `name` are of this model, whose weights stand while there are rows."""

    name: str
    model: GPT


@dataclass(frozen=True)
class Renew:
    """The model's weights have changed."""

    name: str


@dataclass(frozen=True)
class Begin:
    """Write these rows."""

    name: str
    requests: Sequence[Request]


@dataclass(frozen=True)
class Cancel:
    """Nobody waits for these rows any more. The answer, `Written.gone`, names them all, known ones or not."""

    name: str
    keys: Collection[Key]


@dataclass(frozen=True)
class Ask:
    """What is `question(model)`?"""

    name: str
    number: int
    question: Callable[[GPT], object]


@dataclass(frozen=True)
class Close:
    """Forget the model."""

    name: str


Order = Open | Renew | Begin | Cancel | Ask | Close


@dataclass(frozen=True)
class Token:
    """A token of a row: `Token((0, 3), 418, None, "stop")`."""

    key: Key
    token_id: int
    look: Look | None
    finish_reason: FinishReason | None


@dataclass(frozen=True)
class Written:
    """What a step has written, and the rows that were taken out."""

    name: str
    tokens: Sequence[Token] = ()
    gone: Collection[Key] = ()


@dataclass(frozen=True)
class Answer:
    """To the question of that number; or the error that it has met."""

    name: str
    number: int
    found: object = None
    error: Exception | None = None


@dataclass(frozen=True)
class Failed:
    """All rows of the model are lost."""

    name: str
    error: Exception


Report = Written | Answer | Failed


class WriterEnded(Exception):
    """What writes is there no more; all rows and models are lost with it."""


class Writer(Protocol):
    """Who takes orders and reports. It may be told things from any thread; one thread hears."""

    def tell(self, order: Order) -> None:
        """Returns at once."""

    def hear(self) -> Report:
        """The next report, waited for. Raises WriterEnded."""

    @property
    def ended(self) -> bool:
        """Is it there no more?"""

    def end(self) -> None:
        """End it, whatever it is at."""


def key_of(request: Request) -> Key:
    return request.prompt_index, request.sample_index


class Rows:
    """One model's rows: those in its batch, and those for which the batch has no slot yet."""

    def __init__(self, model: GPT, room: Room) -> None:
        self.model, self.room = model, room
        self.engine = Engine(model, max_slots=room.rows, cache_bytes=room.cache_bytes, in_slots=False)
        self.waiting: deque[Request] = deque()
        self.batch: Batch | None = None

    @property
    def any(self) -> bool:
        return bool(self.waiting or (self.batch and self.batch.rows))

    def turn(self) -> Iterator[list[Token]]:
        """Begin what there are slots for; advance all by a token."""
        batch = self.batch = self.batch or self._open()
        if self.waiting and batch.free:
            batch.admit([self.waiting.popleft() for _ in range(min(batch.free, len(self.waiting)))])
            yield tokens_of(batch)
        for _ in batch.step(refill=bool(self.waiting)):
            pass  # the last tokens of what has finished have been told already
        yield tokens_of(batch)

    def _open(self) -> Batch:
        most = self.model.config.block_size - 1
        return self.engine.open(
            self.room.rows,
            new_tokens=min(self.room.new_tokens, most),
            longest_prompt=min(self.room.prompt_tokens, most),
        )

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
    while True:
        while not orders.empty() or not any(rows.any for rows in models.values()):
            order = orders.get()
            if order is None:
                return
            carry_out(order, models, tell, room)
        for name, rows in models.items():
            try:
                for tokens in rows.turn() if rows.any else ():
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
