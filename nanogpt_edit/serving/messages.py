"""What the scheduler and the writer tell each other, in one process or between two.

An order counts before the writer's next step. Of several orders the one that was told first counts first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from nanogpt_edit.engine.completion import FinishReason, Look, Request
from nanogpt_edit.model.gpt import GPT

Key = tuple[int, int]
"""Of a row: the numbers of its prompt and of its sample (`key_of`)."""


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
