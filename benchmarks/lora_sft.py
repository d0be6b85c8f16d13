"""LoRA beside full SFT: the same steps on the same problems, each in a process of its own, one after the other.

Printed are each step's loss and processor seconds, the validation loss at the first and the last step, and the resident
memory at its peak. Of DATA (a folder with GSM8K's train.jsonl) the 600 shortest problems are taken, so that a step on a
CPU takes seconds.

    python benchmarks/lora_sft.py MODEL DATA --steps 40 --batch-size 16
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import nanogpt_edit as ne
from nanogpt_edit.common.files import read_jsonl
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora_config import LoraConfig
from nanogpt_edit.pipeline.recipe import SFT_ALONE
from nanogpt_edit.training import sft as stage
from nanogpt_edit.training.log_lines import lines_told_to
from nanogpt_edit.training.sft_config import SFTConfig

SHORTEST, LONGEST_TOKENS = 600, 1024


def main() -> None:
    given = arguments()
    if given.rank is None:
        for rank in (16, 0):
            subprocess.run([sys.executable, *sys.argv, "--rank", str(rank)], check=True)
        return
    torch.set_num_threads(given.threads)
    model = ne.load(given.model, dtype="float32")
    assert model.tokenizer is not None
    every, _ = ne.to_samples(ne.read_problems(given.data), model.tokenizer, block_size=LONGEST_TOKENS)
    samples = mixed(sorted(every, key=lambda sample: len(sample.token_ids))[:SHORTEST])
    config = SFTConfig(
        steps=given.steps,
        learning_rate=SFT_ALONE.learning_rate,
        batch_size=given.batch_size,
        evaluate_every=max(1, given.steps - 1),
        fit_problems=given.fit,
        replay=0.0,
        keep="last",
        lora=LoraConfig(rank=given.rank),
    )
    learn(model, samples[: given.validation], samples[given.validation :], config)


def learn(model: GPT, validation: list[Sample], train: list[Sample], config: SFTConfig) -> None:
    """Train, and print what each step was and what it took."""
    ends_of_steps: list[float] = []
    with tempfile.TemporaryDirectory() as folder, lines_told_to(lambda *_: ends_of_steps.append(time.process_time())):
        log, state = Path(folder) / "log.jsonl", Path(folder) / "state"
        stage.sft(model, train, validation, config, replay=None, seed=0, state=state, log=log)
        lines = read_jsonl(log)
    name = f"LoRA of rank {config.lora.rank}" if config.lora.rank else "full"
    # The first step and the last have the validation in them.
    for line, before, after in zip(lines[1:-1], ends_of_steps[:-2], ends_of_steps[1:-1], strict=True):
        print(f"{name}: step {line['step']}, loss {line['loss']:.3f}, {after - before:.1f} s of processor time")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    ends = " to ".join(f"{line['val_loss']:.3f}" for line in (lines[0], lines[-1]))
    print(f"{name}: learning rate {config.learning_rate:g}, validation loss {ends}, {peak:.2f} GiB at the peak")


def mixed(samples: list[Sample]) -> list[Sample]:
    order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))
    return [samples[place] for place in order.tolist()]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--validation", type=int, default=64, help="problems")
    parser.add_argument("--fit", type=int, default=32, help="problems on which the rows of new tokens are fitted first")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rank", type=int, help="this run alone, 0 for full training (without: 16, then 0)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
