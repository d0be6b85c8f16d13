"""What a model takes of a run's data: problems and text in its tokens, and what it is measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from nanogpt_edit.common.errors import about
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.chat_samples import to_chat_samples
from nanogpt_edit.data.chats import Chat
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import Sample, to_samples, with_room
from nanogpt_edit.data.text import TokenStream, pack, token_blocks, token_stream
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.evaluation.perplexity import held_out_text
from nanogpt_edit.evaluation.probes import PROBES
from nanogpt_edit.evaluation.suite import Skills
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.training.grpo_config import GRPOConfig

HELD_OUT_TOKENS = 64


def base_text(inputs: RunInputs, model: GPT) -> TokenStream:
    """The text of pretraining."""
    context = inputs.recipe.pretrain.context_tokens
    return token_stream(inputs.documents(model), tokenizer_of(model), context_tokens=context)


def held_out_blocks(inputs: RunInputs, model: GPT) -> Tensor:
    """(N, T) token ids of `evaluate.text`, or of the questions of the validation problems."""
    tokenizer, block_size, source = tokenizer_of(model), model.config.block_size, inputs.recipe.evaluate.text
    if source is not None:
        with about("evaluate.text"):
            return held_out_text(source, tokenizer, block_size=block_size)
    tokens = len(pack(inputs.held_out, tokenizer)[0])  # of few and short questions less than one block
    return token_blocks(inputs.held_out, tokenizer, block_size=min(HELD_OUT_TOKENS, block_size, tokens - 1))


def measured_blocks(inputs: RunInputs, model: GPT) -> Tensor:
    """Of `held_out_blocks`, as much as perplexity is measured on."""
    blocks = held_out_blocks(inputs, model)
    return blocks[: max(1, inputs.recipe.evaluate.perplexity_tokens // blocks.shape[1])]


def training_samples(inputs: RunInputs, model: GPT) -> list[Sample]:
    """What SFT learns from; what is left out of it is said."""
    if inputs.chats is not None:
        return chat_samples(inputs.chats[0], model, what="sft")
    samples, notes = inputs.solved(model)
    for note in notes:
        say(f"sft: {note}")
    return samples


def validation_samples(inputs: RunInputs, model: GPT) -> list[Sample]:
    """What chooses among SFT's states."""
    if inputs.chats is not None:
        return chat_samples(inputs.chats[1], model, what="sft validation")
    return samples_of(inputs.problems.validation, model, what="sft validation")


def chat_samples(chats: Sequence[Chat], model: GPT, *, what: str) -> list[Sample]:
    """`chats` in `model`'s template and tokens; those left out are said."""
    samples, notes = to_chat_samples(chats, tokenizer_of(model), block_size=model.config.block_size)
    for note in notes:
        say(f"{what}: {note}")
    return samples


def samples_of(problems: Sequence[Problem], model: GPT, *, what: str) -> list[Sample]:
    """`problems` in `model`'s tokens; those left out are said."""
    samples, notes = to_samples(problems, tokenizer_of(model), block_size=model.config.block_size)
    for note in notes:
        say(f"{what}: {note}")
    return samples


def replay(inputs: RunInputs, model: GPT) -> TokenStream | list[Sample] | None:
    """What SFT mixes in against forgetting: text, further problems, or nothing."""
    config, source = inputs.recipe.sft, inputs.replay_source
    if config.replay == 0:
        return None
    with about("sft.replay_source"):
        if isinstance(source, tuple):
            return samples_of(source, model, what="sft replay")
        if source is not None:
            return token_stream(source, tokenizer_of(model), context_tokens=config.replay_tokens)
    if inputs.replays_text(model):
        return base_text(inputs, model)
    say(f"sft: no base text of {inputs.recipe.model.source} is here, so nothing is replayed (sft.replay_source).")
    return None


def fitting(problems: Sequence[Problem], model: GPT, *, room: int, what: str) -> list[Problem]:
    """The problems whose question leaves `room` tokens for a completion; how many do not is said."""
    kept, notes = with_room(problems, tokenizer_of(model), room=room, block_size=model.config.block_size)
    for note in notes:
        say(f"{what}: {note}")
    return kept


def grpo_problems(inputs: RunInputs, model: GPT) -> tuple[list[Problem], GRPOConfig]:
    """The training problems that leave room for a completion, and the settings with that room filled in."""
    room = inputs.recipe.grpo.max_new_tokens or longest_completion(inputs, model)
    problems = fitting(inputs.problems.train, model, room=room, what="grpo")
    return problems, replace(inputs.recipe.grpo, max_new_tokens=room)


def longest_completion(inputs: RunInputs, model: GPT) -> int:
    """Room for a completion: a quarter more tokens than 99 of 100 worked solutions in train have."""
    samples, _ = inputs.solved(model)
    lengths = sorted(sum(sample.loss_mask) for sample in samples)
    return min(model.config.block_size - 1, lengths[(len(lengths) - 1) * 99 // 100] * 5 // 4)


def skills(inputs: RunInputs, model: GPT, problems: Sequence[Problem], *, what: str) -> Skills:
    """All that a checkpoint of the run is measured on: `problems`, arithmetic, facts, probes, held-out text."""
    return Skills(
        problems=fitting(problems, model, room=1, what=what),
        arithmetic=fitting(inputs.world.arithmetic, model, room=1, what="arithmetic"),
        questions=inputs.questions(),
        probes=fitting(PROBES, model, room=1, what="probes"),
        text=held_out_blocks(inputs, model),
    )


def measuring(inputs: RunInputs, model: GPT) -> EvaluateConfig:
    """The settings of an evaluation, with the room for a completion filled in."""
    config = inputs.recipe.evaluate
    return replace(config, max_new_tokens=config.max_new_tokens or longest_completion(inputs, model))
