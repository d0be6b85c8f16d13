"""A model that has learned nothing yet: its sizes from the recipe, its vocabulary from the run's text."""

from __future__ import annotations

import torch

from nanogpt_edit.common.errors import about
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import ModelConfig

WORLD_VOCABULARY, OTHER_VOCABULARY = 400, 2048
TOKENIZER_PROBLEMS, TOKENIZER_FACTS = 1000, 3  # the vocabulary's text: so many problems, and all facts so many times


def new_model(inputs: RunInputs, device: torch.device) -> GPT:
    """An untrained GPT-2 of the recipe's sizes, with a tokenizer of its own."""
    tokenizer = new_tokenizer(inputs)
    model = GPT(new_config(inputs.recipe.model, vocab_size=tokenizer.vocab_size), seed=inputs.recipe.seed).to(device)
    model.tokenizer = tokenizer
    return model


def new_config(sizes: ModelConfig, *, vocab_size: int) -> GPTConfig:
    """Of a GPT-2 of these sizes. Raises UserError naming the field where they do not fit together."""
    with about("model"):
        return GPTConfig(
            vocab_size=vocab_size,
            block_size=sizes.block_size,
            n_layer=sizes.n_layer,
            n_head=sizes.n_head,
            n_embd=sizes.n_embd,
            activation=sizes.activation,
        )


def new_tokenizer(inputs: RunInputs) -> Tokenizer:
    """A byte-level BPE of the facts and some of the problems; small, so that names are several tokens long."""
    recipe = inputs.recipe
    entries = recipe.model.vocab_size or (WORLD_VOCABULARY if recipe.problems.path is None else OTHER_VOCABULARY)
    problems = [f"{problem.question} {problem.rationale}" for problem in inputs.problems.train[:TOKENIZER_PROBLEMS]]
    text = [*inputs.world.sentences * TOKENIZER_FACTS, *problems, *inputs.extra_text]
    return Tokenizer.train(text, vocab_size=entries)
