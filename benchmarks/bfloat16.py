"""What products in bfloat16 gain on a CPU: decoding and SFT steps of one model in both precisions, in turns.

A decoding job is `rows` prompts of GSM8K, each continued by at most `--tokens`; an SFT step reads sixteen problems with
their solutions, forward, backward and AdamW. Losses are kept beside the seconds, for the two precisions must learn the
same. The last line is one JSON object.

    python benchmarks/bfloat16.py MODEL --data DIR --out benchmarks/results/bfloat16.json     # DIR: gsm8k/
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from machine import finish, matrix_peak

import nanogpt_edit as ne
from nanogpt_edit.common.device import autocast
from nanogpt_edit.common.settings import Precision
from nanogpt_edit.data.problems import Problem, read_problems
from nanogpt_edit.data.samples import prompt_ids, to_samples
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.training.sft import train_on
from nanogpt_edit.training.sft_config import SFTConfig
from nanogpt_edit.training.trainer import Trainer

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
PROBLEMS = 16  # of an SFT step


class Side:
    """One precision: an engine, and a trainer with a copy of the model."""

    def __init__(self, model: GPT, precision: Precision, problems: list[Problem], folder: Path) -> None:
        self.precision, self.problems, self.model = precision, problems, model
        self.engine = Engine(model)
        config = SFTConfig(learning_rate=1e-5, schedule="constant")
        self.trainer = Trainer(
            copy.deepcopy(model).train(), config, label="sft", state=folder / precision, log=folder / f"{precision}.log"
        )
        samples, _ = to_samples(problems, tokenizer_of(model), block_size=model.config.block_size)
        self.rows = samples[:PROBLEMS]

    def decode(self, rows: int, tokens: int) -> float:
        """Tokens per second."""
        prompts = [prompt_ids(problem, tokenizer_of(self.model)) for problem in self.problems[:rows]]
        began = time.perf_counter()
        with autocast(self.model.device, self.precision):
            made = self.engine.generate(prompts, sampling=Sampling(max_new_tokens=tokens))
        return sum(len(each.token_ids) for each in made) / (time.perf_counter() - began)

    def step(self) -> tuple[float, float]:
        """Tokens per second, and the loss."""
        began = time.perf_counter()
        with autocast(self.model.device, self.precision):
            loss, _ = train_on(self.trainer, self.rows)
        return sum(len(row.token_ids) for row in self.rows) / (time.perf_counter() - began), loss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k/")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    problems = list(read_problems(str(chosen.data / "gsm8k" / "train.jsonl")))[: max(*chosen.rows, PROBLEMS)]
    rates: dict[str, dict[str, list[float]]] = {}
    losses: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        sides = [Side(ne.load(chosen.model), precision, problems, Path(folder)) for precision in PRECISIONS]
        for number in range(chosen.pairs + 1):  # the first does not count
            for side in sides[:: 1 - 2 * (number % 2)]:
                found = {f"decode {rows}": side.decode(rows, chosen.tokens) for rows in chosen.rows}
                found["sft"], loss = side.step()
                losses[side.precision].append(loss)
                for work, rate in found.items() if number else ():
                    rates.setdefault(work, {}).setdefault(side.precision, []).append(rate)
    middle = {work: {name: median(of[name]) for name in PRECISIONS} for work, of in rates.items()}
    for work, of in middle.items():
        print(f"{work:>10}: " + ", ".join(f"{name} {rate:,.0f} tokens/s" for name, rate in of.items()), flush=True)
    finish(
        {
            "name": "bfloat16",
            "model": Path(chosen.model).name,
            "threads": torch.get_num_threads(),
            "unit": "tokens per second, median",
            "tokens_per_second": middle,
            "ratio": {work: of["bfloat16"] / of["float32"] for work, of in middle.items()},
            "goal": "reported",
            "matrix_peak_gflops": {
                name: matrix_peak(dtype=dtype) / 1e9
                for name, dtype in zip(PRECISIONS, (torch.float32, torch.bfloat16), strict=True)
            },
        },
        chosen.out,
        details={"every": rates, "losses": losses},
    )


if __name__ == "__main__":
    main()
