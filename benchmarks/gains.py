"""What each optimisation of the engine and of the training step gains: with it and without it, alternately.

On GPT-2's sizes with random weights. Without it means the simple way that the tests compare with: padded rows, all
logits at once, x Wᵀ instead of W xᵀ, and so on. Seconds are medians over the rounds after a warm-up;
what was expected of each, and from what, is in docs/performance.md. The last line is one JSON object.

    python benchmarks/gains.py --data DIR --out benchmarks/results/gains.json
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from gpt2 import material, parser_of
from machine import finish, matrix_peak
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from nanogpt_edit.data.batch import Batch, micro_batches
from nanogpt_edit.data.samples import to_samples
from nanogpt_edit.engine import engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model import gpt, head
from nanogpt_edit.model import linear as products
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training import sft

Work = Callable[[], object]
NEVER = 2**40  # steps, numbers: more than there are
TARGETS = 512  # of the losses that are timed alone


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="those whose name holds this")
    chosen = parser.parse_args()
    peak = matrix_peak()
    with material(chosen) as given:
        model = given.model
    samples, _ = to_samples(given.problems[:8], given.tokenizer, block_size=1024)
    batch = next(micro_batches(samples, max_tokens=16_384))
    usual = simple(products.Linear, forward=torch.nn.Linear.forward)
    works = {
        "rows without padding": (lambda: step(model, batch), simple(sft, completion_loss_sum=padded_loss_sum)),
        "loss in chunks": (head_loss(model), simple(head, CHUNK_NUMBERS=NEVER)),
        "log-probabilities kept once": (head_logprobs(model), simple(head, head_logprobs=plain_logprobs)),
        "packed copies, 8 rows": (decode(model, prompts=1, packed=True), simple(engine, PACKING_PAYS=NEVER)),
        "packed copies, 30 rows": (
            decode(model, prompts=5, samples=6, packed=True),
            simple(engine, PACKING_PAYS=NEVER),
        ),
        "columns filled up, 30 rows": (decode(model, prompts=5, samples=6), simple(products, KERNEL_COLUMNS=1)),
        "W xᵀ in the head, 64 rows": (decode(model, prompts=8), simple(gpt, head_product=plain_head)),
        "W xᵀ in the head, 8 rows": (decode(model, prompts=1), simple(gpt, head_product=plain_head)),
        "W xᵀ in the layers, 64 rows": (decode(model, prompts=8), usual),
        "W xᵀ in the layers, 8 rows": (decode(model, prompts=1), usual),
        "clipping only what is too long": (lambda: norm_of(model), simple_scaling(model)),
    }
    found = {}
    for name, (work, without) in ((name, way) for name, way in works.items() if chosen.only in name):
        seconds = alternate(work, without, rounds=chosen.rounds)
        found[name] = {**seconds, "saved": 1 - seconds["with"] / seconds["without"]}
        print(name, found[name], flush=True)
    padded = len(batch.lengths) * int(batch.lengths.max())
    finish(
        {
            "name": "gains",
            "model": f"{chosen.size}, random weights, float32",
            "unit": "seconds, median",
            "ours": {name: each["with"] for name, each in found.items()},
            "peer": {name: each["without"] for name, each in found.items()},
            "ratio": {name: each["without"] / each["with"] for name, each in found.items()},
            "goal": "reported",
            "matrix_peak_gflops": peak / 1e9,
        },
        chosen.out,
        details={
            "parts": found,
            "tokens": {"real": int(batch.lengths.sum()), "padded": padded},
        },
    )


def alternate(work: Work, without: Any, *, rounds: int) -> dict[str, float]:
    """Median seconds of `work` as it is, and inside `without`."""
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    for number in range(rounds + 1):
        for name in ("with", "without"):
            started = time.perf_counter()
            if name == "with":
                work()
            else:
                with without():
                    work()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(each) for name, each in seconds.items()}


def simple(module: Any, **replacements: Any) -> Callable[[], Any]:
    """A context in which a module has the simple way instead."""
    return lambda: patch.multiple(module, **replacements)


def step(model: GPT, batch: Batch) -> None:
    """Forward and backward of one batch."""
    sft.completion_loss_sum(model, batch).backward()
    model.zero_grad(set_to_none=True)


def padded_loss_sum(model: GPT, batch: Batch) -> Tensor:
    flat, lengths = (batch.token_ids, batch.is_target), batch.lengths.tolist()
    token_ids, is_target = (pad_sequence(each.split(lengths), batch_first=True) for each in flat)
    predicted = is_target[:, 1:]
    states = model.hidden(token_ids[:, :-1])[predicted]
    return head.head_cross_entropy_sum(states, model.head_weight, token_ids[:, 1:][predicted])


def states_of(model: GPT) -> tuple[Tensor, Tensor]:
    states = torch.randn(TARGETS, model.config.n_embd, generator=torch.Generator().manual_seed(0))
    return states.requires_grad_(), torch.randint(0, 3000, (TARGETS,), generator=torch.Generator().manual_seed(0))


def head_loss(model: GPT) -> Work:
    states, targets = states_of(model)

    def work() -> None:
        head.head_cross_entropy_sum(states, model.head_weight, targets).backward()
        model.zero_grad(set_to_none=True)

    return work


def head_logprobs(model: GPT) -> Work:
    states, targets = states_of(model)

    def work() -> None:
        logprobs, entropy = head.head_logprobs(states, model.head_weight, targets, temperature=1.0)
        (logprobs * torch.linspace(-1, 1, TARGETS) - 0.01 * entropy).sum().backward()
        model.zero_grad(set_to_none=True)

    return work


def plain_logprobs(states: Tensor, weight: Tensor, targets: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    logprobs = ((states @ weight.T) / temperature).log_softmax(dim=-1)
    return logprobs.gather(1, targets[:, None]).squeeze(1), -(logprobs.exp() * logprobs).sum(dim=-1)


def plain_head(states: Tensor, weight: Tensor, packed: object = None) -> Tensor:
    return states @ weight.T


def decode(model: GPT, *, prompts: int, samples: int = 8, packed: bool = False) -> Work:
    """32 tokens by some samples of each prompt of 64 tokens; with `packed` copies as soon as they pay."""
    writer = engine.Engine(model)
    asked = [[(7 * token + row) % 3000 for token in range(64)] for row in range(prompts)]

    def work() -> None:
        with nullcontext() if packed else patch.multiple(engine, PACKING_PAYS=NEVER):
            writer.generate(asked, n=samples, sampling=Sampling(max_new_tokens=32))

    return work


def norm_of(model: GPT) -> None:
    torch.nn.utils.get_total_norm([weight.detach() for weight in model.parameters()])


def simple_scaling(model: GPT) -> Callable[[], Any]:
    """Multiplying by one as well, as `clip_grad_norm_` does when nothing is too long."""

    @contextmanager
    def scaled() -> Iterator[None]:
        torch._foreach_mul_([weight.detach() for weight in model.parameters()], torch.ones(()))
        yield

    return scaled


if __name__ == "__main__":
    main()
