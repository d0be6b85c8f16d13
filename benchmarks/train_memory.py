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
from nanogpt_edit.train.pretrain import next_token_loss

GOAL = 1.5
WAYS = ("plain", "chunked", "checkpointed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="gpt2")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help="file for the result")
    chosen = parser.parse_args()
    if chosen.way is not None:
        print(json.dumps(measure(chosen.way, chosen)))
        return
    found = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--size", chosen.size]
        command += ["--rows", str(chosen.rows), "--tokens", str(chosen.tokens)]
        found[way] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        print(way, found[way], flush=True)
    bound = found["chunked"]["state_bytes"] + found["chunked"]["activation_bytes"]
    finish(
        {
            "name": "train_memory",
            "sizes": {"model": chosen.size, "rows": chosen.rows, "tokens": chosen.tokens},
            "ours": found["chunked"]["peak_bytes"],
            "peer": found["plain"]["peak_bytes"],
            "checkpointed": found["checkpointed"]["peak_bytes"],
            "unit": "bytes at the peak of one step",
            "ratio": found["plain"]["peak_bytes"] / found["chunked"]["peak_bytes"],
            "over_the_least": found["chunked"]["peak_bytes"] / bound,
            "goal": GOAL,
        },
        chosen.out,
        details={"ways": found},
    )


def measure(way: str, chosen: argparse.Namespace) -> dict[str, float]:
    """Peak, and what it is made of, of two steps in this process; the second has its moments from the first."""
    watch = Watch()
    model = GPT(SIZES[chosen.size], seed=0)
    model.activation_checkpointing = way == "checkpointed"
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for weight in model.parameters():  # moments without a step for them
        optimizer.state[weight] = {"step": torch.tensor(1.0), "exp_avg": torch.zeros_like(weight),
                                   "exp_avg_sq": torch.zeros_like(weight)}  # fmt: skip
    windows = torch.randint(0, 50_257, (chosen.rows, chosen.tokens + 1))
    kept: dict[int, int] = {}
    ours = {weight.data_ptr() for weight in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in ours:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.hidden(windows[:, :-1])
        activations = sum(kept.values())  # of the blocks: the loss comes after
        del states
    kept.clear()
    started = time.perf_counter()
    if way == "plain":
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    else:
        loss = next_token_loss(model, windows)
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - started
    state = sum(weight.nbytes for weight in model.parameters()) * 4
    peak = watch.peak()
    return {"peak_bytes": peak, "state_bytes": state, "activation_bytes": activations, "seconds": seconds}


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
