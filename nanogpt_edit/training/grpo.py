"""GRPO (Shao et al. 2024) with four changes from DAPO (Yu et al. 2025): an upper clip wider than the lower one, groups
without signal left out, a loss averaged over tokens instead of sequences, and an entropy bonus that decays.

A step: sample G completions of each of P problems and reward them (`rollouts.py`), take the advantage of each over its
group (`losses.group_advantages`), keep the groups that carry signal, and descend on the clipped objective
(`update.py`, `losses.grpo_loss`). The sampler's log-probabilities are the old ones of the ratio ρ; the trainer uses the
same temperature and neither uses top-k or top-p, so on the first update after a rollout ρ must be 1. How far it is
from 1 is logged (`sampler_gap`) and checked.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.data.problems import Problem
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.suite import solve
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora import Lora
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollout_log import write_rollouts
from nanogpt_edit.training.rollouts import RolloutGroup, RolloutSampler, describe, with_signal
from nanogpt_edit.training.stall_watch import StallWatch
from nanogpt_edit.training.trainer import Trainer
from nanogpt_edit.training.update import Reference, frozen, update

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

    Without `validation` the last are left. Every completion is kept in the folder `rollouts` beside `log`. Raises
    UserError for a reward that cannot be found, and, with the state saved, when one fails.
    """
    tokenizer, adapter = tokenizer_of(model), Lora.of(model, config.lora, seed=seed)
    reference = reference_of(model, adapter) if config.kl_coef > 0 else None
    trainer = Trainer(
        model, config, label="grpo", state=state, log=log, shard=shard, lora=adapter, frozen=config.frozen
    )
    engine = Engine(trainer.parallel.gathered_model, max_slots=config.problems_per_step * config.group_size)
    sampler, watch = RolloutSampler.of(engine, config, seed=seed), StallWatch(config, log)
    for step in trainer.steps():
        model.eval()  # no dropout in reinforcement learning: the policy that is trained is the one that was sampled
        metrics: dict[str, float] = {}
        if validation and trainer.is_time_to_evaluate():
            metrics["val_pass_at_1"] = validate(trainer, engine, validation, config, seed=seed)
        with timed(metrics, "generate"):
            groups = sample(trainer, sampler, problems, step=step)
        kept = with_signal(groups, config)
        with timed(metrics, "train"):
            updated = update(reference, kept, config, trainer)
        metrics |= describe(groups) | updated.metrics | speeds(metrics, groups, kept)
        write_rollouts(
            log.parent / "rollouts", step, groups, updated.details, tokenizer, detailed=config.detailed_rollouts
        )
        shown = [name for name in SHOWN if math.isfinite(metrics.get(name, math.nan))]
        trainer.log(metrics, tokens=tokens_of(groups), shown=shown)
        watch.look(step, kept, metrics)
        if watch.sees_collapse(step, metrics):
            watch.close(kept=trainer.finish("both"))
            return trainer
    if config.keep != "last" and config.steps and validation:
        validate(trainer, engine, validation, config, seed=seed)
    watch.close(kept=trainer.finish(config.keep))
    return trainer


def reference_of(model: GPT, adapter: Lora | None) -> Reference:
    """The model at the start: a copy, or with LoRA the model itself, with its adapter off."""
    return frozen(copy.deepcopy(model).eval()) if adapter is None else adapter.off


def sample(trainer: Trainer, sampler: RolloutSampler, problems: Sequence[Problem], *, step: int) -> list[RolloutGroup]:
    """The groups of one step, with rewards and advantages; when a reward fails, the run's state is saved first."""
    try:
        with trainer.parallel.gathered():
            return sampler.rollout(problems, step=step)
    except UserError:
        trainer.save_state()
        raise


def validate(trainer: Trainer, engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int) -> float:
    """pass@1 on validation now; the weights are kept when none before had more.

    What the stage begins with counts by the lower end of its 95% interval: with few problems it is luck which of two
    equals has more, and a hundred steps would be thrown away for one draw.
    """
    with trainer.parallel.gathered():
        found = validation_accuracy(engine, problems, config, seed=seed)
    trainer.keep_if_best(found.low if trainer.step == 0 else found.value)
    return found.value


def validation_accuracy(engine: Engine, problems: Sequence[Problem], config: GRPOConfig, *, seed: int) -> Interval:
    """pass@1 at temperature 0.7 on the first `evaluate_problems` validation problems, always with the same seed."""
    limit = config.max_new_tokens or engine.model.config.block_size
    sampling = Sampling(temperature=0.7, top_k=50, max_new_tokens=limit, seed=seed)
    records = solve(
        engine, problems[: config.evaluate_problems], n=config.evaluate_samples, sampling=sampling, skill="validation"
    )
    return share(np.reshape([record.correct for record in records], (-1, config.evaluate_samples)).mean(axis=1))


@contextmanager
def timed(metrics: dict[str, float], name: str) -> Iterator[None]:
    """How long what is inside takes, as `<name>_seconds` of the metrics."""
    started = time.perf_counter()
    yield
    metrics[f"{name}_seconds"] = time.perf_counter() - started


def speeds(metrics: dict[str, float], groups: Sequence[RolloutGroup], kept: Sequence[RolloutGroup]) -> dict[str, float]:
    """Completion tokens per second of generating all `groups`, and of training on those `kept`."""
    return {
        "generate_tokens_per_second": tokens_of(groups) / metrics["generate_seconds"],
        "train_tokens_per_second": tokens_of(kept) / metrics["train_seconds"],
    }


def tokens_of(groups: Sequence[RolloutGroup]) -> int:
    return sum(group.tokens for group in groups)
