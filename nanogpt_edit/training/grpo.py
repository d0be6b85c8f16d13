"""GRPO (Shao et al. 2024) with four changes from DAPO (Yu et al. 2025): an upper clip wider than the lower one, groups
without signal left out, a loss averaged over tokens instead of sequences, and an entropy bonus that decays.

A step: sample G completions of each of P problems, reward them, compare each with its group, and raise the
probability of the better ones. The sampler's log-probabilities are the old ones of the ratio ρ; the trainer uses the
same temperature and neither uses top-k or top-p, so on the first update after a rollout ρ must be 1. How far it is
from 1 is logged (`sampler_gap`) and checked.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nanogpt_edit.common import distributed
from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.evaluation.suite import solve
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.grpo_config import GRPOConfig as GRPOConfig
from nanogpt_edit.training.rollout_log import write_rollouts
from nanogpt_edit.training.rollouts import describe, rollouts, why_stalled
from nanogpt_edit.training.trainer import Trainer, logged
from nanogpt_edit.training.update import update

QUIET_STEPS = 20  # from one sentence about a stall to the next
SHOWN = ("accuracy", "well_formed", "entropy", "mean_tokens", "val_pass_at_1")


@checked
def grpo(
    model: GPT,
    problems: Sequence[Problem],
    validation: Sequence[Problem],
    config: GRPOConfig,
    *,
    seed: int,
    state: Path,
    log: Path,
    shard: bool = False,
) -> Trainer:
    """Improve `model` in place on `problems`, and leave its best (or last) weights in it.

    Every completion is kept in the folder `rollouts` beside `log`. Raises UserError, with the state saved, when a
    reward fails.
    """
    tokenizer = tokenizer_of(model)
    reference = copy.deepcopy(model).eval() if config.kl_coef > 0 else None
    trainer = Trainer(model, config, label="grpo", state=state, log=log, shard=shard)
    engine = Engine(trainer.whole_model, max_slots=config.problems_per_step * config.group_size)
    quiet_until = short_steps = 0
    for step in trainer.steps():
        model.eval()  # no dropout in reinforcement learning: the policy that is trained is the one that was sampled
        metrics: dict[str, float] = {}
        if trainer.is_time_to_evaluate():
            with trainer.whole():
                metrics["val_pass_at_1"] = validation_accuracy(engine, validation, config, seed=seed)
            trainer.keep_if_best(metrics["val_pass_at_1"])
        started = time.perf_counter()
        try:
            with trainer.whole():
                groups = rollouts(engine, problems, config, seed=seed, step=step)
        except UserError:
            trainer.save_state()
            raise
        sampled = time.perf_counter()
        kept = [group for group in groups if group.has_signal or config.dynamic_sampling == "off"]
        kept = kept[: config.problems_per_step]
        if config.dynamic_sampling == "refill" and len(kept) < config.problems_per_step:
            short_steps += 1
            if short_steps == 1:
                say(
                    f"grpo: step {step}: after {config.max_resample_rounds} further rounds {len(kept)} of "
                    f"{config.problems_per_step} groups carry signal; the step is that much smaller. More such steps "
                    f"are counted."
                )
        updated = update(reference, kept, config, trainer)
        trained = time.perf_counter()
        metrics |= describe(groups) | updated.metrics
        metrics |= {
            "generate_seconds": sampled - started,
            "generate_tokens_per_second": sum(group.tokens for group in groups) / (sampled - started),
            "train_seconds": trained - sampled,
            "train_tokens_per_second": sum(group.tokens for group in kept) / (trained - sampled),
        }
        if distributed.is_first():
            write_rollouts(
                log.parent / "rollouts",
                step,
                groups,
                updated.details,
                tokenizer,
                advantage=config.advantage,
                detailed=config.detailed_rollouts,
            )
        trainer.log(
            metrics,
            tokens=sum(group.tokens for group in groups),
            shown=[name for name in SHOWN if math.isfinite(metrics.get(name, math.nan))],
        )
        if step >= quiet_until and (reason := why_stalled(metrics)):
            say(f"grpo: step {step}: {reason}")
            quiet_until = step + QUIET_STEPS
        if metrics["well_formed"] < config.stop_below and was_well_formed(log, config.stop_below):
            say(
                f"grpo: step {step}: only {metrics['well_formed']:.0%} of the completions are well-formed (stop_below "
                f"is {config.stop_below:.0%}); the policy has collapsed. The run stops and keeps its best weights, "
                f"with pass@1 {trainer.best_score:.1%} on validation; try a lower learning_rate or a higher kl_coef."
            )
            tell_short(short_steps)
            trainer.finish("both")
            return trainer
    tell_short(short_steps)
    if config.keep != "last" and config.steps:
        with trainer.whole():
            score = validation_accuracy(engine, validation, config, seed=seed)
        trainer.keep_if_best(score)
    trainer.finish(config.keep)
    return trainer


def tell_short(steps: int) -> None:
    """How many steps refill could not fill, when it was more than the one that was said at once."""
    if steps > 1:
        say(f"grpo: {steps} steps were smaller than asked for: too few groups carried signal (dynamic_sampling).")


def was_well_formed(log: Path, share: float) -> bool:
    """Did any step's completions have that share well-formed? From the log, so that a resumed run decides the same."""
    found = distributed.is_first() and any(one >= share for one in logged(log, "well_formed"))
    return any(distributed.all_gather(found))  # only the first process knows that its line is written


def validation_accuracy(engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int) -> float:
    """pass@1 at temperature 0.7 on the first `evaluate_problems` validation problems, always with the same seed."""
    limit = config.max_new_tokens or engine.model.config.block_size
    sampling = Sampling(temperature=0.7, top_k=50, max_new_tokens=limit, seed=seed)
    records = solve(
        engine, problems[: config.evaluate_problems], n=config.evaluate_samples, sampling=sampling, skill="validation"
    )
    return float(np.mean([record.correct for record in records]))
