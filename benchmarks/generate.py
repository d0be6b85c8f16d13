"""How fast text comes out: the engine beside transformers' `generate`, on the same weights and prompts, in turns.

Three parts, at temperature 0.7 and top-k 50:
- groups: prompts × 8 samples, all completions equally long;
- lengths: the same, but a completion ends at a stop token, which one token in `--mean` is, or after `--longest`. What
  counts is the completion's tokens up to there; transformers goes on with a row until the last one has stopped;
- calls: one prompt × 8 samples per call, as a chat or a small rollout would. Here a third side does what nanochat's
  engine (not on PyPI) does, with transformers' model: the prompt runs once, its keys and values are repeated for the
  samples, and a plain loop draws from the 50 likeliest tokens.

Peak is that of the machine's fp32 matrix products, measured in the same run. The last line is one JSON object.

    python benchmarks/generate.py --data DIR
    python benchmarks/generate.py --data DIR --tokens 64 --mean 62 --longest 200 --calls 8    # a quarter of an hour
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any, TypeVar

import torch
from gpt2 import forward_flops, loaded, material, parser_of
from machine import finish, matrix_peak
from peers import peer_model
from turns import Job, Options, Step, Turn, summary, take_turns

from nanogpt_edit.data.problems import Problem
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.pipeline.environment import version

SAMPLES, TEMPERATURE, TOP_K = 8, 0.7, 50
PROMPT_TOKENS = 64
Value = TypeVar("Value")
GOALS = {"groups": 2.7, "lengths": 6.0, "calls": 1.5}


def ours(turn: Turn, options: Options) -> None:
    with loaded(options) as model:
        engine = Engine(model)
        while job := turn.next():
            tokens, stop_ids = 0, frozenset(job["stop_ids"])
            sampling = Sampling(temperature=TEMPERATURE, top_k=TOP_K, max_new_tokens=job["longest"], seed=job["seed"])
            for call in job["calls"]:
                made = engine.generate(call, n=job.get("samples", SAMPLES), sampling=sampling, stop_ids=stop_ids)
                tokens += sum(len(completion.token_ids) for completion in made)
            turn.done(tokens=tokens)


def transformers(turn: Turn, options: Options) -> None:
    model = peer_model(options)[1].eval()
    model.generation_config.eos_token_id = None  # only what a job says ends a completion
    while job := turn.next():
        torch.manual_seed(job["seed"])
        stop = torch.tensor(job["stop_ids"], device=model.device)
        tokens = 0
        for call in job["calls"]:
            prompts = torch.tensor(call, device=model.device)
            with torch.inference_mode():
                made = model.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    do_sample=True,
                    temperature=TEMPERATURE,
                    top_k=TOP_K,
                    num_return_sequences=job.get("samples", SAMPLES),
                    max_new_tokens=job["longest"],
                    eos_token_id=job["stop_ids"] or None,
                    pad_token_id=0,
                )
            new = made[:, prompts.shape[1] :]
            stopped = torch.isin(new, stop)
            before = stopped.long().cumsum(dim=1) - stopped.long()  # stop tokens before each token
            tokens += int((before == 0).sum())
        turn.done(tokens=tokens)


def one_prefill(turn: Turn, options: Options) -> None:
    """Takes part in `calls` only: it knows one prompt at a time."""
    model = peer_model(options)[1].eval()
    while job := turn.next():
        tokens = 0
        for call in job["calls"] if all(len(call) == 1 for call in job["calls"]) else []:
            with torch.inference_mode():
                seen = model(torch.tensor(call), use_cache=True, logits_to_keep=1)
                cache, logits = seen.past_key_values, seen.logits[:, -1].expand(SAMPLES, -1)
                cache.batch_repeat_interleave(SAMPLES)
                for left in reversed(range(job["longest"])):
                    best, ids = (logits / TEMPERATURE).topk(TOP_K)
                    drawn = ids.gather(1, torch.multinomial(best.softmax(dim=-1), 1))
                    tokens += len(drawn)
                    if left:
                        logits = model(drawn, past_key_values=cache, use_cache=True).logits[:, -1]
        turn.done(tokens=tokens)


SIDES = {"ours": ours, "transformers": transformers, "one-prefill": one_prefill}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--parts", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--pairs", type=int, default=3, help="times that both sides run, after a short warm-up")
    parser.add_argument("--prompts", type=int, default=8, help=f"of {PROMPT_TOKENS} tokens, each sampled {SAMPLES} ×")
    parser.add_argument("--tokens", type=int, default=32, help="of every completion in groups and calls")
    parser.add_argument("--mean", type=int, default=31, help="one token in so many ends a completion in lengths")
    parser.add_argument("--longest", type=int, default=100, help="tokens of a completion in lengths")
    parser.add_argument("--calls", type=int, default=2, help="one after the other, in calls")
    chosen = parser.parse_args()
    peak = matrix_peak()
    with material(chosen) as given:
        every = make_parts(given.problems, given.tokenizer, chosen)
        parts = {name: every[name] for name in chosen.parts}
        jobs = [every["calls"] | {"longest": 4, "seed": 0, "part": "warm-up"}]
        jobs += [job | {"seed": pair, "part": name} for pair in range(chosen.pairs) for name, job in parts.items()]
        steps = take_turns(SIDES, jobs, {"model": given.directory})
    found = {}
    for name, job in parts.items():
        at = [number for number, each in enumerate(jobs) if each["part"] == name]
        found[name] = compare({side: [each[number] for number in at] for side, each in steps.items()})
        tokens, seconds = found[name]["tokens"]["ours"], found[name]["seconds"]["ours"]["median"]
        prompt_tokens = PROMPT_TOKENS * sum(map(len, job["calls"]))
        flops = forward_flops(given.model.config, tokens=prompt_tokens + tokens, read=tokens)
        found[name]["fraction_of_limit"] = flops / seconds / peak
        print(f"{name}: {found[name]}")
    sizes = ("prompts", "tokens", "mean", "longest", "calls", "pairs")
    finish(
        {
            "name": "generate",
            "model": f"{chosen.size}, random weights, float32",
            "sizes": {name: getattr(chosen, name) for name in sizes},
            "ours": {name: part["tokens_per_second"]["ours"] for name, part in found.items()},
            "peer": {name: without_ours(part["tokens_per_second"]) for name, part in found.items()},
            "unit": "completion tokens per second, median over pairs",
            "ratio": {name: part["ratio"] for name, part in found.items()},
            "goal": {name: GOALS[name] for name in parts},
            "fraction_of_limit": {name: part["fraction_of_limit"] for name, part in found.items()},
            "matrix_peak_gflops": peak / 1e9,
        },
        chosen.out,
        details={"parts": found, "peers": {"transformers": version("transformers")}},
    )


def make_parts(problems: Sequence[Problem], tokenizer: Tokenizer, chosen: argparse.Namespace) -> dict[str, Job]:
    """The work of one pair, by part."""
    every = [token for problem in problems[: 8 * chosen.prompts] for token in tokenizer.encode(problem.question)]
    prompts = [every[i * PROMPT_TOKENS : (i + 1) * PROMPT_TOKENS] for i in range(chosen.prompts)]
    stop_ids = list(range(0, tokenizer.first_added, chosen.mean))
    single = [[prompts[i % len(prompts)]] for i in range(chosen.calls)]
    return {
        "groups": {"calls": [prompts], "longest": chosen.tokens, "stop_ids": []},
        "lengths": {"calls": [prompts], "longest": chosen.longest, "stop_ids": stop_ids},
        "calls": {"calls": single, "longest": chosen.tokens, "stop_ids": []},
    }


def compare(steps: Mapping[str, Sequence[Step]]) -> dict[str, Any]:
    """Per side that took part: seconds, tokens in the median, tokens per second; the ratios, ours over theirs."""
    steps = {side: each for side, each in steps.items() if each[0].found["tokens"]}
    rates = {side: [step.found["tokens"] / step.seconds for step in each] for side, each in steps.items()}
    return {
        "seconds": {side: asdict(summary([step.seconds for step in each])) for side, each in steps.items()},
        "tokens": {side: median([step.found["tokens"] for step in each]) for side, each in steps.items()},
        "tokens_per_second": {side: median(each) for side, each in rates.items()},
        "ratio": {
            side: median([a / b for a, b in zip(rates["ours"], each, strict=True)])
            for side, each in without_ours(rates).items()
        },
    }


def without_ours(sides: Mapping[str, Value]) -> dict[str, Value]:
    return {side: value for side, value in sides.items() if side != "ours"}


if __name__ == "__main__":
    main()
