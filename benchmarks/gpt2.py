"""What every speed benchmark works with: GPT-2's sizes with random weights, and word problems, for both sides.

GPT-2's published config asks for dropout 0.1, which its trainers then apply; here every side's dropout is 0, or the
sides would not do the same work (and GRPO would not be on-policy: with dropout the KL of a policy from its own copy is
0.06 at the first step).
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from turns import Options

from nanogpt_edit.checkpoint.checkpoint import load, save
from nanogpt_edit.common.device import autocast
from nanogpt_edit.data.problems import Problem, read_problems
from nanogpt_edit.data.world.world import World, WorldConfig, make_world
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer

SIZES = {
    "gpt2": GPTConfig(vocab_size=50_304, block_size=1024, n_layer=12, n_head=12, n_embd=768),
    "quarter": GPTConfig(vocab_size=50_304, block_size=1024, n_layer=6, n_head=6, n_embd=384),
    "tiny": GPTConfig(vocab_size=3072, block_size=512, n_layer=2, n_head=2, n_embd=64),
}
POSITIONS = 20.0  # times the usual: else a random tied model repeats its input and never stops


@cache
def world() -> World:
    return make_world(WorldConfig(problems=2000))


@dataclass(frozen=True)
class Material:
    """What the sides of a comparison work on."""

    problems: Sequence[Problem]
    tokenizer: Tokenizer
    model: GPT
    directory: Path
    """Where the model was saved, for the sides to load; it is gone when the comparison ends."""


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """With what every speed benchmark asks."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ and gpt2_tokenizer/; default: the embedded world")
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--out", type=Path, help="file for the result")
    return parser


@contextmanager
def material(chosen: argparse.Namespace) -> Iterator[Material]:
    """Problems, their vocabulary and a random model of the chosen size."""
    problems, tokenizer = problems_and_tokenizer(chosen.data)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        yield Material(problems, tokenizer, write(chosen.size, tokenizer, directory), directory)


def problems_and_tokenizer(data: Path | None) -> tuple[Sequence[Problem], Tokenizer]:
    """GSM8K and GPT-2's vocabulary from the folder `data`; without one, the embedded world and a vocabulary of its."""
    problems = problems_of(data)
    if data is not None:
        return problems, Tokenizer.load(data / "gpt2_tokenizer")
    text = [*world().sentences, *(f"{problem.question} {problem.rationale}" for problem in problems)]
    return problems, Tokenizer.train(text, vocab_size=3000)


def problems_of(data: Path | None) -> Sequence[Problem]:
    return world().problems.train if data is None else read_problems(str(data / "gsm8k" / "train.jsonl"))


def write(size: str, tokenizer: Tokenizer, directory: Path) -> GPT:
    """Random weights of that size with that vocabulary, as a model directory."""
    model = GPT(SIZES[size], seed=0)
    model.tokenizer = tokenizer
    assert model.positions is not None
    model.positions.weight.data.mul_(POSITIONS)
    save(model, directory)
    return model.eval()


@contextmanager
def loaded(options: Options) -> Iterator[GPT]:
    """A side's model on its device, and inside its precision: weights and products in float32 where the options name
    none; "autocast": products in bfloat16, as the stages have them on a GPU; "bfloat16": the weights too."""
    device, precision = torch.device(options.get("device", "cpu")), options.get("precision", "float32")
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    with autocast(device, "bfloat16" if precision == "autocast" else "float32"):
        yield load(options["model"], device=device, dtype=dtype)


def forward_flops(config: GPTConfig, *, tokens: float, read: float, seen: float = 0.0) -> float:
    """Of the matrix products of a forward pass: `tokens` through the blocks, logits at `read` of them, and `seen`
    pairs of a token and one it looks at."""
    width = config.n_embd
    block = 2 * (4 * width * width + 2 * width * config.mlp_size)
    return config.n_layer * (tokens * block + 4 * width * seen) + 2 * width * config.vocab_size * read
