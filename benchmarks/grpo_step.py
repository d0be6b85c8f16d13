"""How fast GRPO goes: whole steps (sample, reward, update) by this package and by TRL's GRPOTrainer, in turns.

The same weights, GSM8K questions, group size, completion length, KL weight and reward (how many spaces a completion
has: differs within every group of a random model); float32, no dropout, one update per rollout. trl is the trainer
as it comes (it recomputes activations in the backward pass), trl-keep has that switched off. The work is proven by the
tokens sampled and by the KL from the reference, which must be 0 at the first step, where policy and reference are one.
The last line is one JSON object.

    python benchmarks/grpo_step.py --data DIR --problems 4 --out benchmarks/results/grpo_step.json
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from gpt2 import forward_flops, loaded, material, parser_of
from machine import finish, matrix_peak
from peers import BETA2, CLIP, LEARNING_RATE, common, peer_model, run
from turns import Job, Options, Step, Turn, summary, take_turns

from nanogpt_edit.data.problems import Problem
from nanogpt_edit.data.samples import prompt_ids
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline.environment import version
from nanogpt_edit.training.grpo_config import GRPOConfig
from nanogpt_edit.training.rollouts import RolloutSampler
from nanogpt_edit.training.trainer import Trainer
from nanogpt_edit.training.update import frozen, update

GOAL = 3.0
KL_COEF = 0.04


def spaces(problem: Problem, completion: str) -> float:
    return float(completion.count(" "))


def ours(turn: Turn, options: Options) -> None:
    config = GRPOConfig(
        group_size=options["group"],
        max_new_tokens=options["tokens"],
        rewards={"grpo_step:spaces": 1.0},
        kl_coef=KL_COEF,
        entropy_coef=0.0,
        final_entropy_coef=0.0,
        learning_rate=LEARNING_RATE,
        schedule="constant",
        grad_clip=CLIP,
        beta2=BETA2,
    )
    folder = Path(options["model"]).parent
    with loaded(options) as model:
        reference = copy.deepcopy(model)
        trainer = Trainer(model, config, label="grpo", state=folder / "state", log=folder / "log.jsonl")
        sampler = RolloutSampler.of(Engine(model), config, seed=0)
        while job := turn.next():
            problems = [Problem(**each) for each in job["problems"]]
            started = time.perf_counter()
            groups = sampler.sample_groups(problems, draw=job["step"])
            sampled = time.perf_counter()
            found = update(frozen(reference), groups, config, trainer).metrics
            turn.done(
                tokens=sum(group.tokens for group in groups),
                generate_seconds=sampled - started,
                kl=found["kl"],
                sampler_gap=found["sampler_gap"],
                signal=sum(group.has_signal for group in groups),
            )


def trl(turn: Turn, options: Options) -> None:
    use_trl(turn, options, gradient_checkpointing=True)


def trl_keep(turn: Turn, options: Options) -> None:
    use_trl(turn, options, gradient_checkpointing=False)


def use_trl(turn: Turn, options: Options, **settings: Any) -> None:
    from datasets import Dataset
    from trl import GRPOConfig as TRLConfig
    from trl import GRPOTrainer

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(completion.count(" ")) for completion in completions]

    args = TRLConfig(
        **common(options),
        per_device_train_batch_size=options["problems"] * options["group"],
        num_generations=options["group"],
        max_completion_length=options["tokens"],
        beta=KL_COEF,
        temperature=1.0,
        shuffle_dataset=False,
        **settings,
    )
    tokenizer, model = peer_model(options)
    data = Dataset.from_dict({"prompt": [each["question"] for batch in options["batches"] for each in batch]})
    trainer = GRPOTrainer(model, reward, args=args, train_dataset=data, processing_class=tokenizer)

    def found(job: Job, log: dict[str, float]) -> dict[str, float]:
        rows = options["problems"] * options["group"]
        return {"tokens": rows * log["completions/mean_length"], "kl": log["kl"], "signal": log["reward_std"] > 0}

    run(trainer, turn, found)


SIDES = {"ours": ours, "trl": trl, "trl-keep": trl_keep}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=3, help="of every side, after one that does not count")
    parser.add_argument("--problems", type=int, default=2, help="per step")
    parser.add_argument("--group", type=int, default=8, help="completions per problem")
    parser.add_argument("--tokens", type=int, default=64, help="of a completion")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=["ours", "trl"])
    chosen = parser.parse_args()
    peak = matrix_peak()
    with material(chosen) as given:
        asked = [asdict(problem) for problem in given.problems[: chosen.problems * (chosen.steps + 1)]]
        batches = [asked[step * chosen.problems :][: chosen.problems] for step in range(chosen.steps + 1)]
        jobs = [{"part": f"step {step}", "step": step, "problems": batch} for step, batch in enumerate(batches)]
        options = {"model": given.directory, "batches": batches, "steps": len(batches)}
        options |= {name: getattr(chosen, name) for name in ("problems", "group", "tokens")}
        steps = take_turns({name: SIDES[name] for name in chosen.sides}, jobs, options)
    first = {side: each[0].found["kl"] for side, each in steps.items()}
    if max(map(abs, first.values())) > 1e-4:
        raise SystemExit(f"policy and reference are not the same at the first step: {first}")
    seconds = {side: [step.seconds for step in each[1:]] for side, each in steps.items()}
    works = [work(given.model, batch, step) for batch, step in zip(batches[1:], steps["ours"][1:], strict=True)]
    finish(
        {
            "name": "grpo_step",
            "model": f"{chosen.size}, random weights, float32",
            "sizes": {name: getattr(chosen, name) for name in ("problems", "group", "tokens", "steps")},
            "ours": median(seconds["ours"]),
            "peer": {side: median(each) for side, each in seconds.items() if side != "ours"},
            "unit": "seconds per step, median",
            "ratio": {
                side: median([b / a for a, b in zip(seconds["ours"], each, strict=True)])
                for side, each in seconds.items()
                if side != "ours"
            },
            "goal": GOAL,
            "fraction_of_limit": median([w / s / peak for w, s in zip(works, seconds["ours"], strict=True)]),
            "matrix_peak_gflops": peak / 1e9,
        },
        chosen.out,
        details={
            "seconds": {side: asdict(summary(each)) for side, each in seconds.items()},
            "steps": {side: [asdict(step) for step in each] for side, each in steps.items()},
            "peers": {name: version(name) for name in ("transformers", "trl", "accelerate")},
        },
    )


def work(model: GPT, batch: list[dict[str, Any]], step: Step) -> float:
    """Floating point operations of a step: sampling, reference, and forward and backward of the policy."""
    assert model.tokenizer is not None
    prompts = sum(len(prompt_ids(each["question"], model.tokenizer)) for each in batch)
    made = step.found["tokens"]
    return 5 * forward_flops(model.config, tokens=prompts + made, read=made)


if __name__ == "__main__":
    main()
