"""What a model says before it is edited, measured while the edit is being found.

An edit leaves a core to those who ask (`run.py`). There its facts as they were, and what it should leave alone, are
measured in a thread of the lowest priority. Whoever asks before that is done waits, and is told how far it is. Only on
a CPU: a GPU does one after the other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Event, Thread

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import Listener, told_to
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.facts import FactState
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.playground.elsewhere import Unrelated, Witness
from nanogpt_edit.serving.playground.fact_states import states_of
from nanogpt_edit.serving.playground.ordinary import give_way

LOOK_SECONDS = 0.05  # between two looks at how far it is


class GivenUp(Exception):
    """Nobody will ask any more."""


Gather = Callable[[GPT, Sequence[Fact]], Unrelated]
"""What an edit of these facts should leave alone."""


class Before:
    """The states of `facts` in `model`, and what it makes of what is unrelated to them: each measured once."""

    def __init__(self, model: GPT, facts: Sequence[Fact], unrelated: Gather) -> None:
        """`model` must stay as it is."""
        self.model, self.facts, self.unrelated = model, facts, unrelated
        self._states: tuple[FactState, ...] | None = None
        self._witness: Witness | None = None
        self._thread: Thread | None = None
        self._news: tuple[str, int, int | None] = ("measuring", 0, None)
        self._given_up = Event()

    def states(self, tell: Listener) -> tuple[FactState, ...]:
        """Raises whatever `tell` raises."""
        while self._states is None and self._is_at_work():
            self._wait(tell)
        return self._states_now()

    def witness(self, tell: Listener) -> Witness:
        """Raises whatever `tell` raises."""
        while self._witness is None and self._is_at_work():
            self._wait(tell)
        return self._witness_now()

    @contextmanager
    def measured_beside(self) -> Iterator[None]:
        """Measure both in a thread of their own; an error inside ends that at its next step."""
        if self.model.device.type == "cpu":
            self._thread = Thread(target=self._measure, name="before an edit", daemon=True)
            self._thread.start()
        try:
            yield
        except BaseException:
            self.give_up()
            raise

    def give_up(self) -> None:
        """What is being measured is ended at its next step; nobody will ask for it."""
        self._given_up.set()

    def _measure(self) -> None:
        give_way()
        with suppress(GivenUp, UserError), told_to(self._hear):  # whoever asks is told of the error then
            self._states_now()
            self._witness_now()

    def _states_now(self) -> tuple[FactState, ...]:
        if self._states is None:
            self._states = states_of(self.model, self.facts)
        return self._states

    def _witness_now(self) -> Witness:
        if self._witness is None:
            self._witness = Witness(self.model, self.unrelated(self.model, self.facts))
        return self._witness

    def _hear(self, phase: str, done: int, of: int | None) -> None:
        self._news = phase, done, of
        if self._given_up.is_set():
            raise GivenUp

    def _is_at_work(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and not self._given_up.is_set()

    def _wait(self, tell: Listener) -> None:
        tell(*self._news)
        time.sleep(LOOK_SECONDS)
