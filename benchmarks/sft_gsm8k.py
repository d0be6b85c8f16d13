"""SFT of a GPT-2 of 6 layers, width 384, from random weights on the real GSM8K: how fast, and what the loss becomes.

No peer takes part; `sft_step.py` compares speeds. With GPT-2's own vocabulary the loss begins at about ln 50,304 = 10.8
nats. The last line is one JSON object; `--out` keeps it.

    python benchmarks/sft_gsm8k.py --data ../shared/data --out benchmarks/results/sft_gsm8k.json
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from machine import finish, matrix_peak

from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.data.samples import to_samples
from nanogpt_edit.data.splits import ProblemsConfig, load_splits
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer
from nanogpt_edit.training.parallel import tokens_at_once
from nanogpt_edit.training.sft import sft, validation_loss
from nanogpt_edit.training.sft_config import SFTConfig

GOAL = 4.5  # nats per completion token on validation
ROWS = 50_304  # of the embedding: GPT-2's 50,257 entries and the padding that holds the reasoning tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with gsm8k/ and gpt2_tokenizer/")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=8, help="problems per step")
    parser.add_argument("--out", type=Path, help="file for the result")
    chosen = parser.parse_args()

    tokenizer = Tokenizer.load(chosen.data / "gpt2_tokenizer")
    splits = load_splits(ProblemsConfig(path=str(chosen.data / "gsm8k"), validation=64), seed=0)
    config = GPTConfig(vocab_size=ROWS, block_size=512, n_layer=6, n_head=6, n_embd=384)
    model = GPT(config, seed=0)
    model.tokenizer = tokenizer
    train, notes = to_samples(splits.train, tokenizer, block_size=config.block_size)
    validation, _ = to_samples(splits.validation, tokenizer, block_size=config.block_size)
    print("\n".join([*splits.notes, *notes]))
    settings = SFTConfig(
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        optimizer="muon",
        muon_learning_rate=0.02,
        learning_rate=1e-3,
        warmup_steps=10,
        schedule="linear",
        replay=0.0,
        evaluate_every=50,
        save_every=chosen.steps + 1,
    )
    before = validation_loss(model, validation, max_tokens=tokens_at_once(model, settings))
    peak = matrix_peak()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        log = Path(folder) / "sft.jsonl"
        sft(model, train, validation, settings, replay=None, seed=0,
            state=Path(folder) / "state", log=log)  # fmt: skip
        seconds = time.perf_counter() - started
        steps = read_jsonl(log)
    tokens = sum(float(step["tokens_per_second"]) * float(step["seconds"]) for step in steps)
    targets = sum(float(step["target_tokens"]) for step in steps)
    after = validation_loss(model, validation, max_tokens=tokens_at_once(model, settings))
    inner = sum(weight.numel() for weight in model.blocks.parameters())
    flops = 6 * (inner * tokens + ROWS * config.n_embd * targets)  # of matrix products, forward and backward
    finish(
        {
            "name": "sft_gsm8k",
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "steps": chosen.steps,
            "validation_loss_before": before,
            "validation_loss_after": after,
            "goal": GOAL,
            "reached": after < GOAL,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "unit": "nats per completion token; tokens are those of the problems, without padding",
            "fraction_of_limit": flops / seconds / peak,
        },
        chosen.out,
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
