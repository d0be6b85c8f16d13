"""How fast text comes out: the engine beside transformers' `generate`, on the same weights and prompts, in turns.

Three parts, at temperature 0.7 and top-k 50:
- groups: prompts × 8 samples, all completions equally long;
- lengths: the same, but a completion ends at a stop token, which one token in `--mean` is, or after `--longest`. What
  counts is the completion's tokens up to there; transformers goes on with a row until the last one has stopped;
- calls: one prompt × 8 samples per call, as a chat or a small rollout would. nanochat's engine, a third way to do this,
  is not on PyPI; its rows share one prefill, here transformers stands for both.

Peak is that of the machine's fp32 matrix products, measured in the same run. The last line is one JSON object.

    python benchmarks/generate.py --data DIR --out benchmarks/results/generate.json
    python benchmarks/generate.py --data DIR --tokens 64 --mean 62 --longest 200 --calls 8    # on a faster machine
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch
from gpt2 import SIZES, forward_flops, problems_and_tokenizer, write
from machine import finish, matrix_peak
from turns import Job, Options, Step, Turn, summary, take_turns

from nanogpt_edit.data.problems import Problem
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling import Sampling
from nanogpt_edit.model.checkpoint import load
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.run_folder import version

SAMPLES = 8
PROMPT_TOKENS = 64
GOALS = {"groups": 2.7, "lengths": 6.0, "calls": 1.5}


def ours(turn: Turn, options: Options) -> None:
    model = load(options["model"])
    engine = Engine(model)
    while job := turn.next():
        tokens = 0
        for call in job["calls"]:
            sampling = Sampling(temperature=0.7, top_k=50, max_new_tokens=job["longest"], seed=job["seed"])
            made = engine.generate(call, n=SAMPLES, sampling=sampling, stop_ids=frozenset(job["stop_ids"]))
            tokens += sum(len(completion.token_ids) for completion in made)
        turn.done(tokens=tokens)


def transformers(turn: Turn, options: Options) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(options["model"], dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # only what a job says ends a completion
    while job := turn.next():
        torch.manual_seed(job["seed"])
        stop = torch.tensor(job["stop_ids"])
        tokens = 0
        for call in job["calls"]:
            prompts = torch.tensor(call)
            with torch.inference_mode():
                made = model.generate(
                    prompts,
                    attention_mask=torch.ones_like(prompts),
                    do_sample=True,
                    temperature=0.7,
                    top_k=50,
                    num_return_sequences=SAMPLES,
                    max_new_tokens=job["longest"],
                    eos_token_id=job["stop_ids"] or None,
                    pad_token_id=0,
                )
            new = made[:, prompts.shape[1] :]
            stopped = torch.isin(new, stop)
            before = stopped.long().cumsum(dim=1) - stopped.long()  # stop tokens before each token
            tokens += int((before == 0).sum())
        turn.done(tokens=tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ and gpt2_tokenizer/; default: the embedded world")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--pairs", type=int, default=3, help="times that both sides run, after a short warm-up")
    parser.add_argument("--prompts", type=int, default=8, help=f"of {PROMPT_TOKENS} tokens, each sampled {SAMPLES} ×")
    parser.add_argument("--tokens", type=int, default=32, help="of every completion in groups and calls")
    parser.add_argument("--mean", type=int, default=31, help="one token in so many ends a completion in lengths")
    parser.add_argument("--longest", type=int, default=100, help="tokens of a completion in lengths")
    parser.add_argument("--calls", type=int, default=2, help="one after the other, in calls")
    parser.add_argument("--out", type=Path, help="file for the result")
    chosen = parser.parse_args()
    peak = matrix_peak()
    with tempfile.TemporaryDirectory() as folder:
        problems, tokenizer = problems_and_tokenizer(chosen.data)
        model = write(chosen.size, tokenizer, Path(folder) / "model")
        parts = make_parts(problems, tokenizer, chosen)
        jobs = [parts["calls"] | {"longest": 4, "seed": 0, "part": "warm-up"}]
        jobs += [job | {"seed": pair, "part": name} for pair in range(chosen.pairs) for name, job in parts.items()]
        sides = {"ours": ours, "transformers": transformers}
        steps = take_turns(sides, jobs, {"model": Path(folder) / "model"})
    found = {}
    for name, job in parts.items():
        at = [number for number, each in enumerate(jobs) if each["part"] == name]
        found[name] = compare({side: [steps[side][number] for number in at] for side in steps})
        tokens, seconds = found[name]["tokens"]["ours"], found[name]["seconds"]["ours"]["median"]
        prompt_tokens = PROMPT_TOKENS * sum(map(len, job["calls"]))
        flops = forward_flops(model.config, tokens=prompt_tokens + tokens, read=tokens)
        found[name]["fraction_of_limit"] = flops / seconds / peak
        print(f"{name}: {found[name]}")
    sizes = ("prompts", "tokens", "mean", "longest", "calls", "pairs")
    finish(
        {
            "name": "generate",
            "model": f"{chosen.size}, random weights, float32",
            "sizes": {name: getattr(chosen, name) for name in sizes},
            "ours": {name: part["tokens_per_second"]["ours"] for name, part in found.items()},
            "peer": {name: part["tokens_per_second"]["transformers"] for name, part in found.items()},
            "unit": "completion tokens per second, median over pairs",
            "ratio": {name: part["ratio"] for name, part in found.items()},
            "goal": GOALS,
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
    """Per side: seconds, tokens in the median, tokens per second; the ratio of the two, ours over theirs."""
    rates = {side: [step.found["tokens"] / step.seconds for step in each] for side, each in steps.items()}
    return {
        "seconds": {side: asdict(summary([step.seconds for step in each])) for side, each in steps.items()},
        "tokens": {side: median([step.found["tokens"] for step in each]) for side, each in steps.items()},
        "tokens_per_second": {side: median(each) for side, each in rates.items()},
        "ratio": median([a / b for a, b in zip(rates["ours"], rates["transformers"], strict=True)]),
    }


if __name__ == "__main__":
    main()
