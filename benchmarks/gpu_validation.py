"""The earlier system's four stages at its sizes (the recipe `gpt2`): SFT, GRPO, evaluation, edits.

Each begins from what the one before has left, or from the base model, and is stopped when its time is over. Its seconds
are then extrapolated from the steps (completions, facts) that were done, and the line says so. A model with random
weights earns no reward: GRPO trains on every group here, whether it carries signal or not, and completions that nothing
ends take all of their 256 tokens, so that its seconds are the most such steps can take.
"""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import torch
from edit_speed import fifty_facts
from gpu_setting import Found, Setting
from machine import device_memory, timed

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.device import autocast
from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.data.samples import to_samples, with_room
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.scores import score_patch
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.suite import solve
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training import grpo as grpo_stage
from nanogpt_edit.training import sft as sft_stage
from nanogpt_edit.training.config import LoopConfig

VALIDATION_PROBLEMS = 200
EARLIER_SECONDS = {"sft": 35 * 60, "grpo": 2 * 3600, "evaluation": 50 * 60, "edit": 112.6}  # on a Quadro RTX 8000
FIRST_FACTS = 5  # their time says whether all can be edited in time


def sft(setting: Setting) -> Found:
    """2,000 steps of 32 problems."""
    model, config = newest(setting, "base"), setting.recipe().sft
    samples, _ = to_samples(setting.problems(), tokenizer_of(model), block_size=model.config.block_size)
    held_out, samples = samples[:VALIDATION_PROBLEMS], samples[VALIDATION_PROBLEMS:]

    def stage(state: Path, log: Path) -> None:
        sft_stage.sft(model, samples, held_out, config, replay=None, seed=0, state=state, log=log)

    return trained(setting, "sft", model, config, stage)


def grpo(setting: Setting) -> Found:
    """500 steps of 8 problems × 8 completions of at most 256 tokens."""
    model, config = newest(setting, "sft", "base"), replace(setting.recipe().grpo, dynamic_sampling="off")
    room, block_size = config.max_new_tokens or 1, model.config.block_size
    problems, _ = with_room(setting.problems(), tokenizer_of(model), room=room, block_size=block_size)
    held_out, problems = problems[:VALIDATION_PROBLEMS], problems[VALIDATION_PROBLEMS:]

    def stage(state: Path, log: Path) -> None:
        grpo_stage.grpo(model, problems, held_out, config, seed=0, state=state, log=log)

    found = trained(setting, "grpo", model, config, stage)
    lines = read_jsonl(setting.work / "grpo.jsonl")
    for name in ("generate_seconds", "train_seconds", "mean_tokens", "sampler_gap"):
        found[f"median_{name}"] = median(float(str(line[name])) for line in lines)
    return found


def trained(setting: Setting, name: str, model: GPT, config: LoopConfig, stage: Callable[[Path, Path], None]) -> Found:
    """Run a training stage until its time is over, and leave the model for the next one."""
    state, log = setting.work / f"{name}-state", setting.work / f"{name}.jsonl"
    shutil.rmtree(state, ignore_errors=True)
    log.unlink(missing_ok=True)
    started = time.perf_counter()
    with autocast(setting.device), stopped_after(setting.limit_seconds):
        stage(state, log)
    elapsed = time.perf_counter() - started
    lines = read_jsonl(log)
    checkpoint.save(model, setting.work / name)
    return {
        "steps": config.steps,
        "steps_done": len(lines),
        "measured_seconds": elapsed,
        "losses": [lines[0]["loss"], lines[-1]["loss"]],
        "median_step_seconds": median(float(str(line["seconds"])) for line in lines),
        **whole(setting, name, elapsed + seconds_left(lines, config), done=len(lines) == config.steps),
        **device_memory(),
    }


def seconds_left(lines: Sequence[dict[str, object]], config: LoopConfig) -> float:
    """What the steps that were not done would take: those that evaluate as long as one that did, others as the others
    (the first step of all, which loads what is needed, counts as neither where there are more)."""
    seconds = [float(str(line["seconds"])) for line in lines]
    evaluating = [at % config.evaluate_every == 0 or at == config.steps - 1 for at in range(config.steps)]
    own = [taken for taken, evaluates in zip(seconds, evaluating, strict=False) if evaluates]
    others = [taken for taken, evaluates in zip(seconds, evaluating, strict=False) if not evaluates]
    dear, plain = mean(own[1:] or own), mean(others[1:] or others or own)
    return sum(dear if evaluates else plain for evaluates in evaluating[len(lines) :])


def evaluation(setting: Setting) -> Found:
    """Twice 200 problems × 16 completions, sampled and graded."""
    model, config = newest(setting, "grpo", "sft", "base"), setting.recipe().evaluate
    room = config.max_new_tokens or 1
    problems, _ = with_room(setting.problems(), tokenizer_of(model), room=room, block_size=model.config.block_size)
    problems = problems[: config.problems]
    engine = Engine(model, max_slots=config.max_slots)
    together = max(1, config.max_slots // config.samples)  # so many problems fill the slots
    jobs = [
        (seed, problems[first : first + together]) for seed in (0, 1) for first in range(0, len(problems), together)
    ]
    records, started = [], time.perf_counter()
    with autocast(setting.device):
        for seed, some in jobs:
            sampling = Sampling(temperature=config.temperature, top_k=config.top_k, max_new_tokens=room, seed=seed)
            records += solve(engine, some, n=config.samples, sampling=sampling, skill="problems")
            elapsed = time.perf_counter() - started
            if elapsed > setting.limit_seconds:
                break
    completions = 2 * len(problems) * config.samples
    return {
        "completions": completions,
        "completions_done": len(records),
        "measured_seconds": elapsed,
        "stopped": mean(record.finish_reason == "stop" for record in records),
        **whole(setting, "evaluation", elapsed / len(records) * completions, done=len(records) == completions),
        **device_memory(),
    }


def edit(setting: Setting) -> Found:
    """50 facts with MEMIT, covariances included, and their scores before and after."""
    model, facts = newest(setting, "grpo", "sft", "base"), fifty_facts()[: setting.sizes.facts]
    model.requires_grad_(False)
    tokens = setting.recipe().edit.covariance_tokens if setting.size != "tiny" else setting.sizes.covariance_tokens
    config = setting.edit_config(model, covariance_tokens=tokens)
    blocks = setting.ordinary_text(model, tokens=tokens)
    cache = setting.work / "covariances"
    first, covariance_and_first = timed(
        lambda: edit_model(model, facts[:FIRST_FACTS], config, covariance_blocks=blocks, cache_dir=cache)
    )
    _, first_seconds = timed(
        lambda: edit_model(model, facts[:FIRST_FACTS], config, covariance_blocks=blocks, cache_dir=cache)
    )
    covariance_seconds = covariance_and_first - first_seconds
    expected = first_seconds / len(first.edited) * len(facts)
    fits = covariance_and_first + first_seconds + expected < setting.limit_seconds
    patch, seconds = first, expected
    if fits:
        patch, seconds = timed(lambda: edit_model(model, facts, config, covariance_blocks=blocks, cache_dir=cache))
    scores, score_seconds = timed(lambda: score_patch(model, patch))
    return {
        "facts": len(facts),
        "facts_done": len(patch.edited),
        "covariance_tokens": blocks.numel(),
        "covariance_seconds": covariance_seconds,
        "edit_seconds": seconds,
        "score_seconds": score_seconds,
        "success": scores.success.value,
        **whole(setting, "edit", covariance_seconds + seconds, done=fits),
        **device_memory(),
    }


def newest(setting: Setting, *stages: str) -> GPT:
    """The model that the first of `stages` that ran has left; "base" is the one that the part was given."""
    left = next((setting.work / stage for stage in stages if (setting.work / stage / "config.json").exists()), None)
    return checkpoint.load(left or setting.checkpoint, device=setting.device, dtype=torch.float32)


def whole(setting: Setting, name: str, seconds: float, *, done: bool) -> Found:
    """A stage's seconds as a whole; where it is as large as the earlier system's, beside those."""
    found: Found = {"extrapolated": not done, "whole_seconds": seconds}
    if setting.size == "gpt2":
        found |= {"earlier_seconds": EARLIER_SECONDS[name], "times_as_fast": EARLIER_SECONDS[name] / seconds}
    return found


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """Inside, a training stage is asked to stop after its step when the time is over, as SIGTERM asks it: again and
    again, for before its first step and after its last nobody listens."""
    before, over = signal.signal(signal.SIGTERM, signal.SIG_IGN), threading.Event()

    def ask() -> None:
        waited = over.wait(seconds)
        while not waited:
            signal.raise_signal(signal.SIGTERM)
            waited = over.wait(0.2)

    clock = threading.Thread(target=ask)
    clock.start()
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        over.set()
        clock.join()
        signal.signal(signal.SIGTERM, before)
