"""The ordinary text that an edit spares, made ready before anybody asks for an edit.

Of a model from elsewhere nobody has a text: it writes one itself, and the covariance of its keys is taken. For 135
million parameters that is a minute's work, done once, for the cache keeps both. It begins when the page is opened, in
a thread of the lowest priority. An edit that comes before it is done waits for it and tells how far it is.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence

from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import cache_folder
from nanogpt_edit.common.terminal import Listener, say, told_to
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.choose import gather_ahead
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline.recipe import Recipe, recipe_beside
from nanogpt_edit.pipeline.spared import spared_text
from nanogpt_edit.serving.playground.twin import twin

LOOK_SECONDS = 0.2  # between two looks at how far it is
AUTO = Recipe(edit=EditConfig(preset="auto"))


class Ended(Exception):
    """The server ends; nobody will ask for an edit."""


class OrdinaryText:
    """Text to spare, by the names of models that are no edits. Its methods may be called from any thread."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}
        self._making: dict[str, threading.Thread] = {}
        self._news: dict[str, tuple[str, int, int | None]] = {}
        self._ended = False

    def begin(self, name: str, model: GPT) -> None:
        """Make ready what an edit of the model without settings needs, in the background; once."""
        if name in self._making or recipe_beside(model.source) is not None:
            return
        self._making[name] = threading.Thread(target=self._make, args=(name, model), name="ordinary text", daemon=True)
        self._making[name].start()

    def end(self) -> None:
        """What is being made is given up at its next step."""
        self._ended = True

    def _make(self, name: str, model: GPT) -> None:
        give_way()

        def hear(phase: str, done: int, of: int | None) -> None:
            self._news[name] = (phase, done, of)
            if self._ended:
                raise Ended

        try:
            with told_to(hear):
                self._kept[name] = spared_text(twin(model), (), AUTO)
                gather_ahead(twin(model), AUTO.edit, self._kept[name], cache_folder())
        except Ended:
            pass
        except UserError as error:
            say(str(error))  # whoever asks for an edit is told again

    def blocks(self, name: str, model: GPT, facts: Sequence[Fact], recipe: Recipe, tell: Listener) -> Tensor:
        """(N, T) token ids that an edit of `model` spares; `name` and `tell` are the root's and the one who waits'.

        Raises as `spared_text` does, and whatever `tell` raises.
        """
        while name in self._making and self._making[name].is_alive():
            tell(*self._news.get(name, ("editing", 0, None)))
            time.sleep(LOOK_SECONDS)
        if recipe_beside(model.source) is not None:
            return spared_text(model, facts, recipe)
        if name not in self._kept:
            self._kept[name] = spared_text(model, facts, recipe)
        return self._kept[name]


def give_way() -> None:
    """This thread, and those that it starts, work when nobody else does (on Linux, where threads have priorities)."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
