"""The smallest run of every stage, on a model of a few thousand weights."""

from __future__ import annotations

from nanogpt_edit.data.world.world import WorldConfig
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.evaluation.config import EvaluateConfig
from nanogpt_edit.pipeline.recipe import ModelConfig, Recipe
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.pretrain_config import PretrainConfig
from nanogpt_edit.training.sft_config import SFTConfig

MICRO = Recipe(
    name="micro",
    device="cpu",
    model=ModelConfig(vocab_size=320, block_size=160, n_layer=2, n_head=2, n_embd=16),
    world=WorldConfig(problems=60, validation=10, test=10, largest_addend=10),
    pretrain=PretrainConfig(steps=6, batch_size=4, context_tokens=32, fact_repeats=1, save_every=2, evaluate_every=5),
    sft=SFTConfig(steps=6, batch_size=4, replay_tokens=32, save_every=2, evaluate_every=3, optimizer="muon"),
    grpo=GRPOConfig(
        steps=4,
        problems_per_step=3,
        group_size=2,
        max_new_tokens=8,
        rewards={"micro:length": 1.0},
        evaluate_problems=3,
        evaluate_samples=1,
        evaluate_every=2,
        save_every=1,
    ),
    evaluate=EvaluateConfig(
        problems=4, samples=2, edited_samples=2, arithmetic_samples=1, max_new_tokens=8, perplexity_tokens=512
    ),
    edit=EditConfig(steps=2, n_prefixes=1, prefix_tokens=2, covariance_tokens=2000, refine_steps=2),
)


def length(problem: object, completion_text: str) -> float:
    """A reward that an untrained model earns differently from sample to sample."""
    return len(completion_text) / 100
