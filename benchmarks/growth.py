"""How cost grows: decoding with the batch, the context and the prompts that wait; training with the model's size.

Cost should grow as the arithmetic does. A decode step of few rows is bound by reading the weights once, one of many
rows by products; a longer context adds the keys and values it reads; prompts that wait add nothing. Each number is the
best of `--tries`; a step's seconds are those of 32 further tokens, divided by 32. The last line is one JSON object.

    python benchmarks/growth.py --out benchmarks/results/growth.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpt2 import SIZES, forward_flops
from machine import finish, matrix_peak

from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training.pretrain import next_token_loss

VOCABULARY, PROMPT, SHORT, LONG = 50_304, 64, 16, 48
MODELS = {
    "1 M": GPTConfig(vocab_size=2048, block_size=1024, n_layer=4, n_head=4, n_embd=128),
    "10 M": GPTConfig(vocab_size=8192, block_size=1024, n_layer=6, n_head=5, n_embd=320),
    "30 M": SIZES["quarter"],
    "124 M": SIZES["gpt2"],
    "355 M": GPTConfig(vocab_size=VOCABULARY, block_size=1024, n_layer=24, n_head=16, n_embd=1024),
}
TRAIN_ROWS, TRAIN_TOKENS = 2, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file for the result")
    chosen = parser.parse_args()
    peak = matrix_peak()
    model = GPT(SIZES["gpt2"], seed=0).eval()
    found: dict[str, dict[str, dict[str, float]]] = {"batch": {}, "context": {}, "waiting": {}, "size": {}}
    for rows in (1, 8, 32, 64, 128, 256):
        found["batch"][f"{rows} rows"] = step(model, rows=rows, prompt=PROMPT, tries=chosen.tries, peak=peak)
    for prompt in (64, 256, 512, 960):
        found["context"][f"{prompt} tokens"] = step(model, rows=32, prompt=prompt, tries=chosen.tries, peak=peak)
    small = GPT(MODELS["10 M"], seed=0).eval()
    for prompts in (4, 16, 64):
        found["waiting"][f"{prompts} prompts"] = queue(small, prompts=prompts, tries=chosen.tries)
    for name, config in MODELS.items():
        found["size"][name] = train(config, tries=chosen.tries, peak=peak)
    for part, rows_of_part in found.items():
        for name, numbers in rows_of_part.items():
            print(part, name, {key: round(value, 4) for key, value in numbers.items()}, flush=True)
    finish(
        {
            "name": "growth",
            "unit": "tokens per second",
            "ours": {
                part: {name: each["tokens_per_second"] for name, each in rows.items()} for part, rows in found.items()
            },
            "goal": "reported",
            "matrix_peak_gflops": peak / 1e9,
        },
        chosen.out,
        details={"parts": found},
    )


def best(work: Callable[[], object], tries: int) -> float:
    seconds = []
    for _ in range(tries + 1):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def step(model: GPT, *, rows: int, prompt: int, tries: int, peak: float) -> dict[str, float]:
    """One decode step of `rows` samples of one prompt."""
    engine, asked = Engine(model), [[7 * token % 50_000 for token in range(prompt)]]

    def generate(tokens: int) -> None:
        engine.generate(asked, n=rows, sampling=Sampling(max_new_tokens=tokens))

    seconds = (best(lambda: generate(LONG), tries) - best(lambda: generate(SHORT), tries)) / (LONG - SHORT)
    seen = rows * (prompt + (SHORT + LONG) / 2)
    flops = forward_flops(model.config, tokens=rows, read=rows, seen=seen)
    weights = sum(weight.nbytes for weight in model.parameters())
    return {
        "seconds": seconds,
        "tokens_per_second": rows / seconds,
        "fraction_of_peak": flops / seconds / peak,
        "weights_gigabytes_per_second": weights / seconds / 1e9,
    }


def queue(model: GPT, *, prompts: int, tries: int) -> dict[str, float]:
    """All completions of `prompts` prompts, four samples each, through sixteen slots."""
    engine = Engine(model, max_slots=16)
    asked = [[(7 * token + row) % 8000 for token in range(PROMPT)] for row in range(prompts)]
    tokens = 24
    seconds = best(lambda: engine.generate(asked, n=4, sampling=Sampling(max_new_tokens=tokens)), tries)
    return {"seconds": seconds, "tokens_per_second": prompts * 4 * tokens / seconds}


def train(config: GPTConfig, *, tries: int, peak: float) -> dict[str, float]:
    """Forward, backward and update on a few rows, every token a target."""
    model = GPT(config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    windows = torch.randint(0, config.vocab_size, (TRAIN_ROWS, TRAIN_TOKENS + 1))

    def work() -> None:
        next_token_loss(model, windows).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    seconds, tokens = best(work, tries), TRAIN_ROWS * TRAIN_TOKENS
    flops = 3 * forward_flops(config, tokens=tokens, read=tokens, seen=TRAIN_ROWS * TRAIN_TOKENS**2 / 2)
    return {"seconds": seconds, "tokens_per_second": tokens / seconds, "fraction_of_peak": flops / seconds / peak}


if __name__ == "__main__":
    main()
