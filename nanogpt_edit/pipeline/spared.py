"""Which text an edit spares, and by which recipe: the same whether a run, a verb or Python asks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.facts import Fact, states_old_answer
from nanogpt_edit.data.text import pack, read_text
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import EMBEDDED
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.inputs import RunInputs, learned_world
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe, load_recipe, recipe_beside


def spared_blocks(inputs: RunInputs, model: GPT, facts: Sequence[Fact], *, remedy: str | None = None) -> Tensor:
    """(N, T) token ids of what an edit must not disturb: the facts of the world, worked solutions, further text.

    Sentences that say the old answer of one of `facts` are left out: they would speak against the edit. So are the
    embedded world's problems where `model` has never seen any. Raises UserError where too little is left; and, with a
    `remedy`, where it would be the embedded world alone and the model was not pretrained on that.
    """
    recipe = inputs.recipe
    if remedy is not None and recipe.problems.path is None and not inputs.extra_text:
        _require_world(model, remedy=remedy)
    tokenizer, context = tokenizer_of(model), min(recipe.pretrain.context_tokens, model.config.block_size)
    spared = [text for text in inputs.sentences(model) if not any(states_old_answer(text, fact) for fact in facts)]
    knows_problems = recipe.problems.path is not None or any(done.problems == EMBEDDED for done in model.lineage)
    solved = inputs.solved(model)[0] if knows_problems else []
    sentences = [tokenizer.encode(text) for text in spared] * recipe.pretrain.fact_repeats
    further = [tokenizer.encode(text) for text in inputs.extra_text]
    texts = [*sentences, *further, *(sample.token_ids for sample in solved)]
    random.Random(recipe.seed).shuffle(texts)
    token_ids, _ = pack(texts, tokenizer)
    if len(token_ids) < context:
        raise UserError(f"the text to spare has {len(token_ids)} tokens, less than a row of {context}; give more.")
    return token_ids[: len(token_ids) // context * context].view(-1, context)


def spared_text(
    model: GPT, facts: Sequence[Fact], recipe: Recipe, *, text: str | Path | Sequence[str] | None = None
) -> Tensor:
    """`spared_blocks` for a model by itself. `text` (a file, a folder, a hub data set, or a list of documents) takes
    the place of the recipe's own.

    Raises UserError where it would be the embedded world alone, the model was not pretrained on that, and no run took
    it for the model all the same.
    """
    documents = read_text(text) if isinstance(text, str | Path) else text
    inputs = RunInputs(of_existing(recipe, str(model.source)), documents_given=documents)
    return spared_blocks(inputs, model, facts, remedy="Give text" if recipe.model.source is None else None)


def of_existing(recipe: Recipe, source: str) -> Recipe:
    """`recipe` for a model that is there already: what it has learned, its lineage says."""
    return recipe if recipe.model.source is not None else replace(recipe, model=ModelConfig(source=source))


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


def _require_world(model: GPT, *, remedy: str) -> None:
    """Raise UserError unless `model` was pretrained here, where the embedded world is part of the text."""
    if not learned_world(model):
        raise UserError(
            f"which text is the edit to spare? {remedy}: a file, a folder or a hub data set like what the model was "
            "trained on. Without it the embedded world is taken, and this model was not pretrained on that."
        )
