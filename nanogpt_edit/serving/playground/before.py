"""What a model says before it is edited, measured while the edit is being found.

An edit computes with a thread fewer than there are cores, so that its facts as they were, and what it should leave
alone, can be measured beside it. Whoever asks before that is done waits, and is told how far it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from threading import Event, Thread

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import Listener, told_to
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.evaluation.facts import FactState
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.playground.elsewhere import Unrelated, Witness
from nanogpt_edit.serving.playground.fact_states import states_of

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
        self._thread: Thread | None = None
        self._news: tuple[str, int, int | None] = ("measuring", 0, None)
        self._given_up = Event()

    @cached_property
    def _states(self) -> tuple[FactState, ...]:
        return states_of(self.model, self.facts)

    @cached_property
    def _witness(self) -> Witness:
        return Witness(self.model, self.unrelated(self.model, self.facts))

    def states(self, tell: Listener) -> tuple[FactState, ...]:
        """Raises whatever `tell` raises."""
        self._wait_for("_states", tell)
        return self._states

    def witness(self, tell: Listener) -> Witness:
        """Raises whatever `tell` raises."""
        self._wait_for("_witness", tell)
        return self._witness

    @contextmanager
    def measured_beside(self) -> Iterator[None]:
        """Measure both in a thread of their own; an error inside ends that at its next step."""
        self._thread = Thread(target=self._measure, name="before an edit", daemon=True)
        self._thread.start()
        try:
            yield
        except BaseException:
            self._given_up.set()
            raise

    def _measure(self) -> None:
        with suppress(GivenUp, UserError), told_to(self._hear):  # whoever asks is told of the error then
            _ = self._states, self._witness

    def _hear(self, phase: str, done: int, of: int | None) -> None:
        self._news = phase, done, of
        if self._given_up.is_set():
            raise GivenUp

    def _wait_for(self, what: str, tell: Listener) -> None:
        """Until the thread has it, or has ended without."""
        while what not in vars(self) and self._thread is not None and self._thread.is_alive():
            tell(*self._news)
            time.sleep(LOOK_SECONDS)
