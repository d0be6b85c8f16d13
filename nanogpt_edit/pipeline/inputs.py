"""What the stages of a run read, made when first asked for: the world, problems, base text, facts, held-out text; and
what a given model can take of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError, about
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact, states_old_answer
from nanogpt_edit.data.problems import (
    Problem,
    ProblemSplits,
    Sample,
    load_splits,
    read_problems,
    to_samples,
    with_room,
)
from nanogpt_edit.data.rows import ROW_SUFFIXES
from nanogpt_edit.data.text import read_text, token_blocks
from nanogpt_edit.data.world.world import World, make_world
from nanogpt_edit.evaluation.facts import Question
from nanogpt_edit.evaluation.perplexity import held_out_text
from nanogpt_edit.evaluation.probes import PROBES
from nanogpt_edit.evaluation.suite import EvaluateConfig, Skills
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe, load_recipe, recipe_beside
from nanogpt_edit.training.pretrain import TokenStream, token_stream

PRETRAINED = "pretrained for"  # begins the lineage of models that have learned the world
TRAINED = (PRETRAINED, "SFT for", "GRPO for")  # and of those that know the form of its problems
HELD_OUT_DOCUMENTS, HELD_OUT_TOKENS = 400, 64


@dataclass
class RunData:
    """The data of one recipe."""

    recipe: Recipe
    documents_given: Sequence[str] | None = field(default=None, kw_only=True)
    """Plain text that takes the place of `pretrain.text`."""

    @cached_property
    def world(self) -> World:
        return make_world(self.recipe.world.seeded(self.recipe.seed))

    @cached_property
    def problems(self) -> ProblemSplits:
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

    @property
    def replays_text(self) -> bool:
        """Does SFT mix in text: that of its own source, or the base text where there is one?"""
        if self.recipe.sft.replay == 0 or isinstance(self.replay_source, tuple):
            return False
        return self.replay_source is not None or self.recipe.model.source is None or bool(self.extra_text)

    @property
    def sentences(self) -> tuple[str, ...]:
        """The world's facts; none for a model that exists already and is given text: it has not learned the world."""
        return self.world.sentences if self.recipe.model.source is None or not self.extra_text else ()

    @cached_property
    def documents(self) -> list[str]:
        """Ordinary text, shuffled: further text and every training question once, every fact of the world several
        times."""
        questions = [problem.question for problem in self.problems.train]
        documents = list(self.sentences) * self.recipe.pretrain.fact_repeats + questions + self.extra_text
        random.Random(self.recipe.seed).shuffle(documents)
        return documents

    def stream(self, tokenizer: Tokenizer) -> TokenStream:
        return token_stream(self.documents, tokenizer, context_tokens=self.recipe.pretrain.context_tokens)

    @property
    def held_out(self) -> list[str]:
        """Text no stage trains on: the questions of the validation problems."""
        return [problem.question for problem in self.problems.validation[:HELD_OUT_DOCUMENTS]]

    def held_out_blocks(self, tokenizer: Tokenizer, block_size: int) -> Tensor:
        """Blocks of `evaluate.text`, or of the questions of the validation problems."""
        if self.recipe.evaluate.text is not None:
            with about("evaluate.text"):
                return held_out_text(self.recipe.evaluate.text, tokenizer, block_size=block_size)
        return token_blocks(self.held_out, tokenizer, block_size=min(HELD_OUT_TOKENS, block_size))

    def ordinary_text(self, model: GPT, facts: Sequence[Fact]) -> Tensor:
        """(N, T) token ids of what an edit must not disturb: the facts of the world, worked solutions, further text.

        Sentences that say the old answer of one of `facts` are left out: they would speak against the edit. So are the
        embedded world's problems where `model` has never seen any. Raises UserError where too little is left.
        """
        tokenizer, context = tokenizer_of(model), min(self.recipe.pretrain.context_tokens, model.config.block_size)
        spared = [text for text in self.sentences if not any(states_old_answer(text, fact) for fact in facts)]
        knows_problems = self.recipe.problems.path is not None or was_trained(model, *TRAINED)
        solved = self.solved(model)[0] if knows_problems else []
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        texts = [[*tokenizer.encode(text), *end] for text in spared] * self.recipe.pretrain.fact_repeats
        texts += [[*tokenizer.encode(text), *end] for text in self.extra_text]
        texts += [[*sample.token_ids, *end] for sample in solved]
        random.Random(self.recipe.seed).shuffle(texts)
        token_ids = torch.tensor([token_id for text in texts for token_id in text], dtype=torch.long)
        if len(token_ids) < context:
            raise UserError(f"the text to spare has {len(token_ids)} tokens, less than a row of {context}; give more.")
        return token_ids[: len(token_ids) // context * context].view(-1, context)

    def questions(self) -> list[Question]:
        """True facts the edits leave alone, the facts they change, and the new answers."""
        edited = {(fact.relation, fact.subject.lower()) for fact in self.facts}
        questions = [
            Question("recall", f"{s.relation}: {s.subject}", prompt, s.target)
            for s in self.world.statements
            if s.held_out < 0 and (s.relation, s.subject.lower()) not in edited
            for prompt in s.prompts
        ]
        for fact in self.facts:
            subject = f"{fact.relation}: {fact.subject}"
            questions.append(Question("recall_edited", subject, fact.prompt, fact.target_true))
            questions.append(Question("edited", subject, fact.prompt, fact.target_new))
        return questions

    # --- for a model ---

    def skills(self, model: GPT, problems: Sequence[Problem], *, what: str) -> Skills:
        """All that a checkpoint of the run is measured on: `problems`, arithmetic, facts, probes, held-out text."""
        return Skills(
            problems=self.fitting(problems, model, room=1, what=what),
            arithmetic=self.world.arithmetic,
            questions=self.questions(),
            probes=PROBES,
            text=self.held_out_blocks(tokenizer_of(model), model.config.block_size),
        )

    def measuring(self, model: GPT) -> EvaluateConfig:
        """The settings of an evaluation, with the room for a completion filled in."""
        config = self.recipe.evaluate
        return replace(config, max_new_tokens=config.max_new_tokens or self.longest_completion(model))

    @cached_property
    def _solved(self) -> dict[tuple[str, int], tuple[list[Sample], tuple[str, ...]]]:
        """By tokenizer and block size: the models of a run share both, and each is asked for by several stages."""
        return {}

    def solved(self, model: GPT) -> tuple[list[Sample], tuple[str, ...]]:
        """The training problems with their solutions in `model`'s tokens, and notes about those left out."""
        tokenizer, block_size = tokenizer_of(model), model.config.block_size
        key = (tokenizer.fingerprint, block_size)
        if key not in self._solved:
            self._solved[key] = to_samples(self.problems.train, tokenizer, block_size=block_size)
        return self._solved[key]

    def training_samples(self, model: GPT) -> list[Sample]:
        """What SFT learns from; the problems left out are said."""
        samples, notes = self.solved(model)
        for note in notes:
            say(f"sft: {note}")
        return samples

    def samples(self, problems: Sequence[Problem], model: GPT, what: str) -> list[Sample]:
        """`problems` in `model`'s tokens; those left out are said."""
        samples, notes = to_samples(problems, tokenizer_of(model), block_size=model.config.block_size)
        for note in notes:
            say(f"{what}: {note}")
        return samples

    def replay(self, model: GPT) -> TokenStream | list[Sample] | None:
        """What SFT mixes in against forgetting: text, further problems, or nothing."""
        config, source, tokenizer = self.recipe.sft, self.replay_source, tokenizer_of(model)
        if config.replay == 0:
            return None
        with about("sft.replay_source"):
            if isinstance(source, tuple):
                return self.samples(source, model, "sft replay")
            if source is not None:
                return token_stream(source, tokenizer, context_tokens=config.replay_tokens)
        if self.replays_text:
            return self.stream(tokenizer)
        say(f"sft: no base text of {self.recipe.model.source} is here, so nothing is replayed (sft.replay_source).")
        return None

    def fitting(self, problems: Sequence[Problem], model: GPT, *, room: int, what: str) -> list[Problem]:
        """The problems whose question leaves `room` tokens for a completion; how many do not is said."""
        kept, notes = with_room(problems, tokenizer_of(model), room=room, block_size=model.config.block_size)
        for note in notes:
            say(f"{what}: {note}")
        return kept

    def longest_completion(self, model: GPT) -> int:
        """Room for a completion: a quarter more tokens than 99 of 100 worked solutions in train have."""
        samples, _ = self.solved(model)
        lengths = sorted(sum(sample.loss_mask) for sample in samples)
        return min(model.config.block_size - 1, lengths[(len(lengths) - 1) * 99 // 100] * 5 // 4)


def was_trained(model: GPT, *how: str) -> bool:
    """Does a note of the model's lineage begin so?"""
    return any(note.startswith(how) for note in model.lineage)


def for_model(recipe: Recipe, model: GPT, source: str) -> Recipe:
    """`recipe` for a model that was not pretrained on the embedded world: that is no text of its own then."""
    return recipe if was_trained(model, PRETRAINED) else replace(recipe, model=ModelConfig(source=source))


def recipe_for_edit(model: str | Path | None, chosen: str | Path | None = None) -> Recipe:
    """The recipe whose settings an edit of `model` takes, and whose text it spares; which, is said.

    `chosen`, over that of the run whose folder the model stands in, over the defaults.
    """
    beside = recipe_beside(model)
    recipe = Recipe() if beside is None else load_recipe(beside)
    if chosen is not None:
        recipe = load_recipe(chosen, over=recipe)
    sources = [str(source) for source in (chosen, beside) if source is not None]
    if sources:
        say(f"Edit: settings and spared text as in {' and '.join(sources)}, except what is given here.")
    else:
        say(
            f"Edit: no recipe.toml stands beside {model or 'the model'}; what is not given here is as for the small "
            "model of the recipe tiny. A recipe can be named (--recipe), and --sweep chooses settings."
        )
    return recipe


def spared_text(
    model: GPT, facts: Sequence[Fact], recipe: Recipe, *, text: str | Path | Sequence[str] | None = None
) -> Tensor:
    """`RunData.ordinary_text` for a model by itself. `text` (a file, a folder, a hub data set, or a list of documents)
    takes the place of the recipe's own.

    Raises UserError where it would be the embedded world alone, and the model was not pretrained on that.
    """
    documents = read_text(text) if isinstance(text, str | Path) else text
    data = RunData(recipe, documents_given=documents)
    if recipe.model.source is None:
        data.recipe = for_model(recipe, model, str(model.source))
    if recipe.problems.path is None and not data.extra_text:
        require_world(model, remedy="Give text")
    return data.ordinary_text(model, facts)


def require_world(model: GPT, *, remedy: str) -> None:
    """Raise UserError unless `model` was pretrained here, where the embedded world is part of the text."""
    if not was_trained(model, PRETRAINED):
        raise UserError(
            f"which text is the edit to spare? {remedy}: a file, a folder or a hub data set like what the model was "
            "trained on. Without it the embedded world is taken, and this model was not pretrained on that."
        )
