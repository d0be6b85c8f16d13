"""What several processes cost and save: memory and communication computed per model size, and two processes measured.

Computed, for replicas (DistributedDataParallel) and for shards (FSDP2), in float32 with AdamW as the trainer has it:
bytes per process for weights, gradients and moments, and bytes each process sends per step or pass, from the sizes in
each model's config. Measured, with --measure: seconds per step of the same SFT batch of 32 rows x 128 tokens by one
process on one thread, one process on two threads, and two Gloo processes of one thread each, as replicas and as shards.

    python benchmarks/scaling.py [--measure] [--processes 8] [--out benchmarks/results/scaling.json]

The last line is one JSON object: the steps per second of two replicas (ours) and of one process on two threads (peer).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from machine import finish

from nanogpt_edit.common import distributed, stopping
from nanogpt_edit.common.files import write_json
from nanogpt_edit.data.batch import micro_batches
from nanogpt_edit.data.samples import Sample
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.training.config import LoopConfig
from nanogpt_edit.training.sft import share_of_loss, target_tokens
from nanogpt_edit.training.trainer import Trainer

FLOAT = 4  # bytes


def llama(
    vocab_size: int, n_layer: int, n_head: int, n_kv_head: int, n_embd: int, mlp_dim: int, **more: bool
) -> GPTConfig:
    return replace(
        GPTConfig(2, 2048, 1, 1, 2, norm="rmsnorm", activation="swiglu", positions="rope", bias=False, qkv_bias=False),
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_head=n_head,
        n_kv_head=n_kv_head,
        n_embd=n_embd,
        mlp_dim=mlp_dim,
        **more,
    )


MODELS = {
    "tiny recipe": GPTConfig(vocab_size=448, block_size=512, n_layer=3, n_head=4, n_embd=128),
    "GPT-2 (124M)": GPTConfig(vocab_size=50_304, block_size=1024, n_layer=12, n_head=12, n_embd=768),
    "GPT-2 medium": GPTConfig(vocab_size=50_304, block_size=1024, n_layer=24, n_head=16, n_embd=1024),
    "Qwen2.5-0.5B": llama(151_936, 24, 14, 2, 896, 4864, qkv_bias=True),
    "Llama-3.2-1B": llama(128_256, 16, 32, 8, 2048, 8192),
    "GPT-2 XL": GPTConfig(vocab_size=50_304, block_size=1024, n_layer=48, n_head=25, n_embd=1600),
    "Llama-2-7B": llama(32_000, 32, 32, 32, 4096, 11_008, tie_embeddings=False),
}


@dataclass(frozen=True)
class Cost:
    """One model trained by N processes. All in bytes per process, but for `parameters`."""

    parameters: int
    replica: int
    """Weights, gradients, two moments of AdamW."""
    shard: int
    """A share of each, and what is in one piece during a pass: the embeddings with their gradient, two blocks (the one
    at work and the one fetched ahead) and a block's gradient."""
    whole: int
    """On top of a shard's resting part: all weights, while the model generates, is validated or saved."""
    reference: int
    """GRPO's reference, whole in every process (0 with kl_coef 0)."""
    state: int
    """On disk: weights and moments."""
    replicas_send: float
    """Per step, whatever the micro-batches: a ring's all-reduce of the gradients."""
    shards_send: float
    """Per micro-batch: weights gathered forward and again backward, gradients reduced and scattered."""


def cost(config: GPTConfig, *, n: int) -> Cost:
    with torch.device("meta"):
        model = GPT(config)
    everything = sum(weight.numel() for weight in model.parameters())
    block = sum(weight.numel() for weight in model.blocks[0].parameters())
    rest = everything - config.n_layer * block
    others = (n - 1) / n
    return Cost(
        parameters=everything,
        replica=4 * FLOAT * everything,
        shard=4 * FLOAT * everything // n + FLOAT * (2 * rest + 3 * block),
        whole=FLOAT * everything,
        reference=FLOAT * everything,
        state=3 * FLOAT * everything,
        replicas_send=2 * others * FLOAT * everything,
        shards_send=others * FLOAT * (3 * everything - rest),  # the rest is kept between forward and backward
    )


def table(n: int) -> dict[str, Cost]:
    """Computed costs of every model, printed as rows of Markdown."""
    print(
        f"| model | parameters | replica, GB | 1 of {n} shards, GB | + whole, GB | state, GB | DDP sends, GB/step | "
        "FSDP2 sends, GB/micro-batch |"
    )
    print("|---|---|---|---|---|---|---|---|")
    found = {}
    for name, config in MODELS.items():
        found[name] = each = cost(config, n=n)
        values = (each.replica, each.shard, each.whole, each.state, each.replicas_send, each.shards_send)
        print(
            f"| {name} | {each.parameters / 1e6:,.1f} M | "
            + " | ".join(f"{value / 1e9:.3g}" for value in values)
            + " |"
        )
    return found


MEASURED = {
    "tiny": GPTConfig(vocab_size=448, block_size=128, n_layer=3, n_head=4, n_embd=128, activation="relu"),
    "wider": GPTConfig(vocab_size=448, block_size=128, n_layer=4, n_head=8, n_embd=384, activation="relu"),
}
ROWS, TOKENS, WARM_UP, STEPS = 32, 128, 2, 7


def measure_here(config: GPTConfig, folder: Path, *, shard: bool) -> dict[str, float]:
    """Median seconds of a step, and the loss after the last one, with the processes there are."""
    model = GPT(config, seed=0)
    loop = LoopConfig(steps=WARM_UP + STEPS, save_every=1000)
    trainer = Trainer(model, loop, label="measure", state=folder / "state", log=folder / "log.jsonl", shard=shard)
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(ROWS, TOKENS))
    rows = [Sample(tuple(row), (1,) * TOKENS) for row in ids.tolist()]
    seconds, loss = [], 0.0
    for _ in trainer.steps():
        started = time.perf_counter()
        batches = list(micro_batches(distributed.shard(rows), max_tokens=ROWS * TOKENS))
        share = partial(share_of_loss, targets=target_tokens(rows))
        loss = trainer.parallel.backward(share, batches, dummy=batches[0])
        trainer.apply_gradients()
        seconds.append(time.perf_counter() - started)
    return {"seconds": float(np.median(seconds[WARM_UP:])), "loss": loss}


def measure_all(out: Path) -> None:
    """Every model with the processes there are; the first process writes `out`."""
    found: dict[str, dict[str, float]] = {}
    for name, config in MEASURED.items():
        for shard in (False, True) if distributed.world_size() > 1 else (False,):
            with temporary_folder() as folder:
                found[f"{name}, shards" if shard else name] = measure_here(config, folder, shard=shard)
    if distributed.is_first():
        write_json(out, found)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def measured() -> dict[str, dict[str, dict[str, float]]]:
    """Each way of using two cores, in processes of its own."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    ways = {
        "1 process, 1 thread": ([], 1),
        "1 process, 2 threads": ([], 2),
        "2 processes, 1 thread each": (torchrun, 1),
    }
    results = {}
    for way, (launcher, threads) in ways.items():
        with temporary_folder() as folder:
            command = [sys.executable, *launcher, __file__, "--worker", str(folder / "found.json")]
            subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)
            results[way] = json.loads((folder / "found.json").read_text())
        for name, each in results[way].items():
            print(f"{way}: {name}: {each['seconds'] * 1000:.0f} ms per step, loss {each['loss']:.6f}")
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.worker is not None:
        if "WORLD_SIZE" in os.environ:
            with distributed.joined():
                measure_all(chosen.worker)
            stopping.leave(0)
        else:
            measure_all(chosen.worker)
        return
    computed = {name: asdict(each) for name, each in table(chosen.processes).items()}
    results = measured() if chosen.measure else {}
    last: dict[str, object] = {"name": "scaling", "unit": "steps per second", "goal": "reported"}
    if results:
        ours, peer = (
            1 / results[way]["wider"]["seconds"] for way in ("2 processes, 1 thread each", "1 process, 2 threads")
        )
        last |= {"ours": ours, "peer": peer, "ratio": ours / peer}
    finish(last, chosen.out, details={"computed": computed, "measured": results})


if __name__ == "__main__":
    main()
