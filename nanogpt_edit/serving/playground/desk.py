"""The desk of the playground: edits being made, kept, turned and undone, beside the models on the shelf.

Everything is worked out on twins of the models (`twin.py`), so that nobody is served half-edited weights. Work that
fills the machine is done one piece after the other, but for what `before.py` and `ordinary.py` do where it is idle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock

from torch import Tensor

from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.common.files import cache_folder
from nanogpt_edit.common.terminal import Listener
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.text import token_blocks
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import EditPatch
from nanogpt_edit.editing.patch_files import load_patch
from nanogpt_edit.evaluation.facts import Question
from nanogpt_edit.evaluation.probes import ASKED
from nanogpt_edit.evaluation.writing import written_answers
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe, recipe_beside
from nanogpt_edit.pipeline.spared import recipe_for_edit
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.playground.before import Before
from nanogpt_edit.serving.playground.edit_view import Meter
from nanogpt_edit.serving.playground.edition import Edition
from nanogpt_edit.serving.playground.elsewhere import Unrelated, fits, thinned
from nanogpt_edit.serving.playground.ordinary import OrdinaryText
from nanogpt_edit.serving.playground.twin import changed_by, twin

MOST_QUESTIONS, MOST_TEXTS = 120, 60
BLOCKS, BLOCK_TOKENS = 16, 64  # of ordinary text
SETTINGS = ("method", "preset")
MOST_WAITING = 4  # pieces of work; the next is refused


class Desk:
    """The edits of one server. Its methods may be called from any thread."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf
        self.editions: dict[str, Edition] = {}
        self._meters: dict[str, Meter] = {}
        self._made: Counter[str] = Counter()
        self._working, self._waiting = Lock(), 0
        self.ordinary = OrdinaryText()

    @contextmanager
    def working(self, still_wanted: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Inside, nobody else works; `still_wanted` is called while waiting, and may raise."""
        if self._waiting >= MOST_WAITING:
            raise UserError(f"{MOST_WAITING} edits and traces are waiting already; come back when one is done.")
        self._waiting += 1
        try:
            while not self._working.acquire(timeout=0.2):
                still_wanted()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._working.release()

    def edit(
        self,
        model_name: str,
        facts: Sequence[Fact],
        settings: Mapping[str, str],
        tell: Listener = lambda phase, done, of: None,
    ) -> Edition:
        """Find an edit of a model, and put the edited model beside it on the shelf; `tell` hears what it waits for."""
        if unknown := sorted(set(settings) - set(SETTINGS)):
            raise UserError(f"{unknown[0]} cannot be set here; {' and '.join(SETTINGS)} can.")
        parent = self.shelf.open(model_name)
        recipe = recipe_for_edit(parent.source)
        config = recipe.edit.with_fields(settings)
        scratch = twin(parent, own=changed_by(config, parent))
        facts = with_true_answers(scratch, facts)
        before = Before(self._as_it_is(model_name), facts, unrelated)
        with before.measured_beside():
            blocks = self._blocks(model_name, scratch, facts, recipe, tell) if config.needs_text else None
            patch = edit_model(scratch, facts, config, covariance_blocks=blocks, cache_dir=cache_folder())
        return self._place(model_name, parent, patch, settings, before)

    def load(self, model_name: str, file: Path) -> Edition:
        """Put a model with a saved patch beside the one that the patch was made for. Raises UserError for another's."""
        parent, patch = self.shelf.open(model_name), load_patch(file)
        before = Before(self._as_it_is(model_name), patch.facts, unrelated)
        return self._place(model_name, parent, patch.bound_to(parent), {"method": patch.config.method}, before)

    def _as_it_is(self, name: str) -> GPT:
        """A model that stays so: an edit may be turned later."""
        below = self.editions.get(name)
        return twin(self.shelf.open(name), own=below.own if below else ())

    def _place(
        self, model_name: str, parent: GPT, patch: EditPatch, settings: Mapping[str, str], before: Before
    ) -> Edition:
        stem = model_name.partition("+edit-")[0]
        self._made[stem] += 1  # a number is given once: what an edit of an edit names stays what it was
        name = f"{stem}+edit-{self._made[stem]}"
        below = self.editions.get(model_name)
        edition = Edition.of(name, model_name, parent, patch, below=below, settings=settings)
        self.shelf.add(name, edition.model, parent=model_name)
        self.editions[name] = edition
        self._meters[name] = Meter(edition, before)
        return edition

    def _blocks(self, name: str, model: GPT, facts: Sequence[Fact], recipe: Recipe, tell: Listener) -> Tensor:
        """The text that an edit spares: of an edit of an edit, that of the model below both."""
        if name in self.editions:
            name = self.editions[name].root
            model = twin(self.shelf.open(name))
        return self.ordinary.blocks(name, model, facts, recipe, tell)

    def find(self, name: str) -> Edition:
        """Raises UserError for an edit that there is not."""
        if name not in self.editions:
            raise UserError(f"there is no edit {quoted(name)}; there are {', '.join(self.editions) or 'none yet'}.")
        return self.editions[name]

    def turn(self, name: str, scale: float, switches: Sequence[float]) -> list[list[float]]:
        """Set the dial and the switches of an edit -> what its facts' prompts say now."""
        edition = self.find(name)
        with self.shelf.exclusive(name):
            edition.turn(scale, list(switches))
        return self._meters[name].likely()

    def undo(self, name: str) -> bool:
        """Take an edit off -> is what is left bit for bit what the edit was made on?"""
        edition = self.find(name)
        with self.shelf.exclusive(name):
            exact = edition.undone()
        self.shelf.remove(name)
        self._meters[name].before.give_up()
        del self.editions[name], self._meters[name]
        return exact

    def end(self) -> None:
        """Whatever is at work in the background is given up at its next step."""
        self.ordinary.end()
        for meter in list(self._meters.values()):
            meter.before.give_up()

    def meter(self, name: str) -> Meter:
        """What measures an edit as it is set. Raises UserError for an edit that there is not."""
        self.find(name)
        return self._meters[name]


def with_true_answers(model: GPT, facts: Sequence[Fact]) -> list[Fact]:
    """The facts; where one has no true answer, what the model itself writes stands for it."""
    open_ = [fact for fact in facts if not fact.target_true.strip()]
    said = iter(written_answers(model, [(fact.prompt, fact.target_new) for fact in open_]))
    return [
        fact if fact.target_true.strip() else replace(fact, target_true=next(said)[0] or "nothing") for fact in facts
    ]


def unrelated(model: GPT, facts: Sequence[Fact]) -> Unrelated:
    """What an edit of `facts` should leave alone: what the model's run asks of it, or else the packaged facts."""
    about = {fact.subject.casefold() for fact in facts}
    questions, texts = _asked_of(recipe_beside(model.source))
    others = [each for each in questions if not any(subject in each.prompt.casefold() for subject in about)]
    left = [each for each in others if fits(model, each.prompt, each.target)]
    width = min(BLOCK_TOKENS, model.config.block_size - 1)
    return Unrelated(thinned(left, MOST_QUESTIONS), token_blocks(texts, tokenizer_of(model), block_size=width)[:BLOCKS])


@cache
def _asked_of(recipe: Path | None) -> tuple[tuple[Question, ...], tuple[str, ...]]:
    if recipe is None:
        facts = read_facts("facts50")
        own = [Question("recall", fact.subject, fact.prompt, fact.target_true) for fact in facts]
        own += [Question("recall", n.prompt, n.prompt, n.target_true) for fact in facts for n in fact.neighbourhood]
        questions = list({each.prompt: each for each in own}.values())
    else:
        questions = [each for each in RunInputs(load_recipe(recipe)).questions() if each.group == "recall"]
    held_out = RunInputs(Recipe() if recipe is None else load_recipe(recipe)).held_out
    return tuple(questions), (*ASKED, *held_out[: MOST_TEXTS - len(ASKED)])
