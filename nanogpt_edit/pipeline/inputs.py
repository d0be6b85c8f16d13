"""What the stages of a run read: the world, problems, facts, base text, held-out text.

Each part is read when it is first asked for, and once; `prepare` reads the parts that a stage will need, so that what
is wrong with them is told before anything long begins. What a model takes of them is in `fitted.py`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

from nanogpt_edit.common.errors import about
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.chats import Chat, read_chats, split_chats
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.problems import Problem, read_problems
from nanogpt_edit.data.rows import ROW_SUFFIXES
from nanogpt_edit.data.samples import Sample, to_samples
from nanogpt_edit.data.splits import ProblemSplits, load_splits
from nanogpt_edit.data.text import read_text
from nanogpt_edit.data.world.world import World, make_world
from nanogpt_edit.evaluation.facts import Question
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import EMBEDDED
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.recipe import Recipe

HELD_OUT_DOCUMENTS = 400

Part = Literal["problems", "facts", "extra_text", "replay_source", "chats"]
"""What is read from files."""
Solved = tuple[list[Sample], tuple[str, ...]]
"""Problems with their solutions in a model's tokens, and notes about those left out."""


@dataclass(frozen=True)
class RunInputs:
    """The data of one recipe."""

    recipe: Recipe
    documents_given: Sequence[str] | None = field(default=None, kw_only=True)
    """Plain text that takes the place of `pretrain.text`."""
    problems_given: ProblemSplits | None = field(default=None, kw_only=True)
    """Problems that take the place of those at `problems.path`, which then only names them."""
    _solved: dict[tuple[str, int], Solved] = field(default_factory=dict, init=False, repr=False, compare=False)
    """By tokenizer and block size: the models of a run share both, and each is asked for by several stages."""

    def prepare(self, *parts: Part) -> None:
        """Read `parts` now; what was cut or left out of the problems is said. Raises UserError for what is wrong."""
        for part in parts:
            getattr(self, part)
            if part == "problems":
                for note in self.problems.notes:
                    say(note)

    @cached_property
    def world(self) -> World:
        return make_world(self.recipe.world.seeded(self.recipe.seed))

    @cached_property
    def problems(self) -> ProblemSplits:
        if self.problems_given is not None:
            return self.problems_given
        if self.recipe.problems.path is None:
            return self.world.problems
        return load_splits(self.recipe.problems, seed=self.recipe.seed)

    @cached_property
    def facts(self) -> tuple[Fact, ...]:
        return read_facts(self.recipe.facts)

    @cached_property
    def extra_text(self) -> list[str]:
        """Plain text beside the world: `pretrain.text`, or a folder "text" that stands beside the problems."""
        if self.documents_given is not None:
            return list(self.documents_given)
        source = self.recipe.pretrain.text
        if source == "auto":
            beside = Path(self.recipe.problems.path or "").resolve().parent / "text"
            if self.recipe.problems.path is None or not beside.is_dir():
                return []
            say(f"Base text: {beside} is read too, as it stands beside the problems (--pretrain.text none: leave out).")
            source = str(beside)
        with about("pretrain.text"):
            return [] if source in (None, "none") else read_text(source)

    @cached_property
    def replay_source(self) -> tuple[Problem, ...] | list[str] | None:
        """The problems or the documents of text that `sft.replay_source` names; None when it names nothing."""
        source = self.recipe.sft.replay_source
        if source is None:
            return None
        with about("sft.replay_source"):
            if source.endswith(ROW_SUFFIXES) or (Path(source) / "train.jsonl").exists():
                return tuple(read_problems(source, split="train"))
            return read_text(source)

    @cached_property
    def chats(self) -> tuple[tuple[Chat, ...], tuple[Chat, ...]] | None:
        """The conversations that `sft.chats` names, to train and to validate on; None when it names none."""
        config = self.recipe.sft
        if config.chats is None:
            return None
        with about("sft.chats"):
            found = read_chats(config.chats, split=config.chats_split, fields=config.chats_fields)
            train, validation = split_chats(found, validation=self.recipe.problems.validation)
        say(f"sft: {len(train):,} conversations to train on, {len(validation):,} to validate.")
        return train, validation

    @property
    def whose_problems(self) -> str:
        """As a lineage names them."""
        return self.recipe.problems.path or EMBEDDED

    @property
    def counts(self) -> Mapping[str, object]:
        """How much data there is, for the report."""
        problems = {name: len(getattr(self.problems, name)) for name in ("train", "validation", "test")}
        return {"problems": problems, "facts": len(self.world.statements)}

    @property
    def edits(self) -> tuple[Fact, ...]:
        """The facts that this run edits."""
        return self.facts if "edited" in self.recipe.stages else ()

    @property
    def held_out(self) -> list[str]:
        """Text no stage trains on: the questions of the validation problems."""
        return [problem.question for problem in self.problems.validation[:HELD_OUT_DOCUMENTS]]

    def questions(self) -> list[Question]:
        """True facts the edits leave alone, the facts they change, and the new answers."""
        edited = {(fact.relation, fact.subject.lower()) for fact in self.edits}
        questions = [
            Question("recall", f"{s.relation}: {s.subject}", prompt, s.target)
            for s in self.world.statements
            if s.held_out < 0 and (s.relation, s.subject.lower()) not in edited
            for prompt in s.prompts[: self.recipe.evaluate.phrasings]
        ]
        for fact in self.edits:
            subject = f"{fact.relation}: {fact.subject}"
            questions.append(Question("recall_edited", subject, fact.prompt, fact.target_true))
            questions.append(Question("edited", subject, fact.prompt, fact.target_new))
        return questions

    # --- what a model has learned, or will have ---

    def knows_world(self, model: GPT) -> bool:
        """Are the world's facts base text of `model`: is it the new one of this recipe, or was it pretrained here?"""
        return self.recipe.model.source is None or learned_world(model)

    def replays_text(self, model: GPT) -> bool:
        """Does SFT mix in text: that of its own source, or the base text where there is one?"""
        if self.recipe.sft.replay == 0 or isinstance(self.replay_source, tuple):
            return False
        return self.replay_source is not None or self.knows_world(model) or bool(self.extra_text)

    def sentences(self, model: GPT) -> tuple[str, ...]:
        """The world's facts; none for a model that has not learned the world and is given text."""
        return self.world.sentences if self.knows_world(model) or not self.extra_text else ()

    def documents(self, model: GPT) -> list[str]:
        """Ordinary text, shuffled: further text and every training question once, every fact of the world several
        times."""
        questions = [problem.question for problem in self.problems.train]
        documents = list(self.sentences(model)) * self.recipe.pretrain.fact_repeats + questions + self.extra_text
        random.Random(self.recipe.seed).shuffle(documents)
        return documents

    def solved(self, model: GPT) -> Solved:
        """The training problems with their solutions in `model`'s tokens, and notes about those left out."""
        tokenizer, block_size = tokenizer_of(model), model.config.block_size
        key = (tokenizer.fingerprint, block_size)
        if key not in self._solved:
            self._solved[key] = to_samples(self.problems.train, tokenizer, block_size=block_size)
        return self._solved[key]


def learned_world(model: GPT) -> bool:
    """Does the lineage say that the model was pretrained on the text of the embedded world?"""
    return any(done.text == EMBEDDED for done in model.lineage)
