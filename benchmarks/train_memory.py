"""How much memory a training step takes at its peak: 8 rows of 1,024 tokens, every one a target, through GPT-2.

Three ways, each in a process of its own: all logits at once, as a plain loop has them (peer); the loss in chunks, as
the stages have it (ours); and with `activation_checkpointing`. What the process took before the model was made is
subtracted. The bound of the first goal is 1.5 times what cannot be left out: weights, gradients, AdamW's two moments,
and what the blocks keep for the backward pass, as counted by autograd's own hooks. The last line is one JSON object.

    python benchmarks/train_memory.py --out benchmarks/results/train_memory.json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from gpt2 import SIZES
from machine import finish
from torch import Tensor

from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training.pretrain import next_token_loss

GOAL = 1.5
WAYS = ("chunked", "checkpointed", "plain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--way", choices=("count", *WAYS), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file for the result")
    chosen = parser.parse_args()
    if chosen.way is not None:
        print(json.dumps(measure(chosen.way, chosen)))
        return
    found = {}
    for way in ("count", *WAYS):
        command = [sys.executable, __file__, "--way", way, "--size", chosen.size]
        command += ["--rows", str(chosen.rows), "--tokens", str(chosen.tokens)]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(way, found[way], flush=True)
    least = found["count"]["state_bytes"] + found["count"]["activation_bytes"]
    finish(
        {
            "name": "train_memory",
            "sizes": {"model": chosen.size, "rows": chosen.rows, "tokens": chosen.tokens},
            "ours": found["chunked"]["peak_bytes"],
            "peer": found["plain"]["peak_bytes"],
            "checkpointed": found["checkpointed"]["peak_bytes"],
            "unit": "bytes at the peak of one step",
            "ratio": found["plain"]["peak_bytes"] / found["chunked"]["peak_bytes"],
            "over_the_least": found["chunked"]["peak_bytes"] / least,
            "goal": GOAL,
        },
        chosen.out,
        details={"ways": found},
    )


def measure(way: str, chosen: argparse.Namespace) -> dict[str, float]:
    """The peak of one step in this process, or (count) what it is made of."""
    watch = Watch()
    model = GPT(SIZES[chosen.size], seed=0)
    model.activation_checkpointing = way == "checkpointed"
    windows = torch.randint(0, 50_257, (chosen.rows, chosen.tokens + 1))
    if way == "count":
        return {"state_bytes": 4 * bytes_of(model), "activation_bytes": kept_bytes(model, windows[:, :-1])}
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for weight in model.parameters():  # moments without a step for them
        optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(weight),
                                   "exp_avg_sq": torch.zeros_like(weight)}  # fmt: skip
    started = time.perf_counter()
    if way == "plain":
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    else:
        loss = next_token_loss(model, windows)
    loss.backward()
    optimizer.step()
    return {"peak_bytes": watch.peak(), "seconds": time.perf_counter() - started}


def bytes_of(model: GPT) -> int:
    return sum(weight.nbytes for weight in model.parameters())


def kept_bytes(model: GPT, token_ids: Tensor) -> int:
    """What a forward pass through the blocks keeps for the backward pass, the weights left out."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.hidden(token_ids)
    total = sum(size for place, size in kept.items() if place not in weights)
    del states
    return total


class Watch:
    """The most memory this process has held since the watch began, beyond what it held then."""

    def __init__(self) -> None:
        self.before = self.most = resident()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            self.most = max(self.most, resident())
            time.sleep(0.005)

    def peak(self) -> int:
        return max(self.most, resident()) - self.before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


if __name__ == "__main__":
    main()
