"""The silent failures of training, each looked for in a moment: what was checked, what was found, what to do.

A run with any of these goes on without an error and teaches the wrong thing, or nothing: a reward that its own gold
answer does not earn, a loss that never sees the stop token, a prompt that ends in another token than the one generation
starts from, a trainer that disagrees with the sampler. Every check is a small function that returns a `Finding`
(`doctor_data.py`, `doctor_model.py`, `memory.py`); here are those of each stage.
"""

from __future__ import annotations

from collections.abc import Sequence

from nanogpt_edit.data.chats import Chat
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import Sample, to_sample
from nanogpt_edit.doctor.data_checks import (
    check_chat_prompts,
    check_endings,
    check_gold,
    check_held_out,
    check_leak,
    check_lengths,
    check_prompts,
    check_targets,
)
from nanogpt_edit.doctor.findings import Finding
from nanogpt_edit.doctor.memory import available_bytes, check_memory, training_bytes
from nanogpt_edit.doctor.model_checks import PROBLEMS_ASKED, check_agreement, check_signal, check_warmup, check_weights
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.config import LoopConfig
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollouts import RolloutGroup, RolloutSampler

PROBLEMS_LOOKED_AT = 100  # of rewards, masks and prompts


def check_pretrain(model: GPT, documents: Sequence[str], held_out: Sequence[str], config: LoopConfig) -> list[Finding]:
    """Everything that can be seen before pretraining on `documents`; `held_out` is what the perplexity is of."""
    return [
        check_held_out(documents, held_out),
        check_warmup(config),
        check_memory(training_bytes(model, config), available_bytes(model.device)),
    ]


def check_sft(
    model: GPT, train: Sequence[Problem], test: Sequence[Problem], samples: Sequence[Sample], config: LoopConfig
) -> list[Finding]:
    """Everything that can be seen before SFT; `samples` are those of `train` that fit."""
    tokenizer = tokenizer_of(model)
    problems = train[:PROBLEMS_LOOKED_AT]
    return [
        check_targets(samples, tokenizer),
        check_prompts(problems, [to_sample(problem, tokenizer) for problem in problems], tokenizer),
        check_leak(train, test),
        check_lengths(samples, problems=len(train), block_size=model.config.block_size),
        check_weights(model),
        check_warmup(config),
        check_memory(training_bytes(model, config), available_bytes(model.device)),
    ]


def check_chats(model: GPT, chats: Sequence[Chat], samples: Sequence[Sample], config: LoopConfig) -> list[Finding]:
    """Everything that can be seen before SFT on conversations; `samples` are those that fit."""
    tokenizer = tokenizer_of(model)
    return [
        check_endings(samples, tokenizer),
        check_chat_prompts(chats[:PROBLEMS_LOOKED_AT], tokenizer),
        check_lengths(samples, problems=len(chats), block_size=model.config.block_size),
        check_weights(model),
        check_warmup(config),
        check_memory(training_bytes(model, config), available_bytes(model.device)),
    ]


def check_grpo(
    model: GPT, train: Sequence[Problem], test: Sequence[Problem], config: GRPOConfig, *, seed: int
) -> list[Finding]:
    """Everything that can be seen before GRPO; the model writes a first, small rollout."""
    groups = first_rollout(model, train, config, seed=seed)
    return [
        check_gold(train[:PROBLEMS_LOOKED_AT], tokenizer_of(model), config),
        check_leak(train, test),
        *check_agreement(model, groups, config),
        check_signal(groups),
        check_warmup(config),
        check_memory(training_bytes(model, config), available_bytes(model.device)),
    ]


def first_rollout(model: GPT, train: Sequence[Problem], config: GRPOConfig, *, seed: int) -> list[RolloutGroup]:
    """A few groups as the first step will sample them."""
    engine = Engine(model, max_slots=PROBLEMS_ASKED * config.group_size)
    return RolloutSampler.of(engine, config, seed=seed).sample_groups(train[:PROBLEMS_ASKED], draw=0)
