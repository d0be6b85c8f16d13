"""Which text an edit spares, and by which recipe: the same whether a run, a verb or Python asks."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import cache_folder
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.facts import Fact, states_old_answer
from nanogpt_edit.data.text import pack, read_text
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import EMBEDDED
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.own_text import kept_own_text
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe, load_recipe, recipe_beside

OWN_TOKENS = 8192
"""Of text that a model writes itself, at most."""


def spared_blocks(inputs: RunInputs, model: GPT, facts: Sequence[Fact]) -> Tensor:
    """(N, T) token ids of what an edit must not disturb: the facts of the world, worked solutions, further text.

    Sentences that say the old answer of one of `facts` are left out: they would speak against the edit. So are the
    embedded world's problems where `model` has never seen any. A model that has learned nothing here and is given no
    text writes some itself. Raises UserError where too little is left.
    """
    recipe, tokenizer = inputs.recipe, tokenizer_of(model)
    context = min(recipe.pretrain.context_tokens, model.config.block_size)
    texts = _own(model, recipe) if _is_stranger(inputs, model) else _learned(inputs, model, facts)
    random.Random(recipe.seed).shuffle(texts)
    token_ids, _ = pack(texts, tokenizer)
    if len(token_ids) < context:
        raise UserError(f"the text to spare has {len(token_ids)} tokens, less than a row of {context}; give more.")
    return token_ids[: len(token_ids) // context * context].view(-1, context)


def _is_stranger(inputs: RunInputs, model: GPT) -> bool:
    """Is nothing known of what `model` has learned, neither its text nor its problems?"""
    own_data = inputs.recipe.problems.path is None and not inputs.extra_text
    return own_data and not inputs.knows_world(model) and not _knows_problems(inputs, model)


def _knows_problems(inputs: RunInputs, model: GPT) -> bool:
    return inputs.recipe.problems.path is not None or any(done.problems == EMBEDDED for done in model.lineage)


def _own(model: GPT, recipe: Recipe) -> list[Sequence[int]]:
    """Text that the model writes itself, once and for all, in its tokens."""
    tokens = min(recipe.edit.covariance_tokens, OWN_TOKENS)
    say(f"Edit: no text to spare is given (--pretrain.text); it is {tokens:,} tokens that the model writes itself.")
    texts = kept_own_text(model, tokens=tokens, seed=recipe.seed, cache_dir=cache_folder())
    return [tokenizer_of(model).encode(text) for text in texts]


def _learned(inputs: RunInputs, model: GPT, facts: Sequence[Fact]) -> list[Sequence[int]]:
    """The facts of the world, several times, further text, and the problems with their solutions, in tokens."""
    tokenizer = tokenizer_of(model)
    spared = [text for text in inputs.sentences(model) if not any(states_old_answer(text, fact) for fact in facts)]
    solved = inputs.solved(model)[0] if _knows_problems(inputs, model) else []
    sentences = [tokenizer.encode(text) for text in spared] * inputs.recipe.pretrain.fact_repeats
    further = [tokenizer.encode(text) for text in inputs.extra_text]
    return [*sentences, *further, *(sample.token_ids for sample in solved)]


def spared_text(
    model: GPT, facts: Sequence[Fact], recipe: Recipe, *, text: str | Path | Sequence[str] | None = None
) -> Tensor:
    """`spared_blocks` for a model by itself. `text` (a file, a folder, a hub data set, or a list of documents) takes
    the place of the recipe's own.
    """
    documents = read_text(text) if isinstance(text, str | Path) else text
    inputs = RunInputs(of_existing(recipe, str(model.source)), documents_given=documents)
    return spared_blocks(inputs, model, facts)


def of_existing(recipe: Recipe, source: str) -> Recipe:
    """`recipe` for a model that is there already: what it has learned, its lineage says."""
    return recipe if recipe.model.source is not None else replace(recipe, model=ModelConfig(source=source))


def recipe_for_edit(model: str | Path | None, chosen: str | Path | None = None) -> Recipe:
    """The recipe whose settings an edit of `model` takes, and whose text it spares; which, is said.

    `chosen`, over that of the run whose folder the model stands in, over the defaults.
    """
    beside = recipe_beside(model)
    recipe = Recipe(edit=EditConfig(preset="auto")) if beside is None else load_recipe(beside)
    if chosen is not None:
        recipe = load_recipe(chosen, over=recipe)
    sources = [str(source) for source in (chosen, beside) if source is not None]
    if sources:
        say(f"Edit: settings and spared text as in {' and '.join(sources)}, except what is given here.")
    else:
        say(
            f"Edit: no recipe.toml stands beside {model or 'the model'}; settings that are not given here are chosen "
            "for it. A recipe can be named (--recipe), and --sweep tries more of them."
        )
    return recipe
