"""What threads that wait cost: an SFT step on a quiet machine, and beside another process that never rests.

Between two pieces of shared work a thread of OpenMP first spins, hoping that the others are done in a moment. Where all
cores are taken, it spins away the time that the others need. How long it spins is read from the environment when torch
is loaded, so every setting lives in a process of its own and the processes take turns:

- torch: nothing set, as torch comes;
- alone, among others: what `nanogpt_edit` sets where nothing is set, as it finds the machine when it starts
  (`waiting.py`);
- and any other that `--settings` names, as NAME=VALUE.

One round is one turn of every setting quiet, then one of every setting with a busy loop beside it; each is timed after
one turn that is not. The last line is one JSON object.

    python benchmarks/busy_machine.py [--model DIR] [--rows 32] [--steps 10] [--rounds 5] [--out FILE]
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
from pathlib import Path
from statistics import median

from nanogpt_edit.common import waiting

WORK = "--work"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a model directory (default: a new one of the recipe tiny's sizes)")
    parser.add_argument("--rows", type=int, default=32, help="problems per step")
    parser.add_argument("--steps", type=int, default=10, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--settings", nargs="*", default=[], help="further ones, as NAME=VALUE")
    parser.add_argument("--out", type=Path)
    parser.add_argument(WORK, action="store_true", help="be one of the processes that take turns")
    chosen = parser.parse_args()
    if chosen.work:
        work(chosen)
    else:
        compare(chosen)


def compare(chosen: argparse.Namespace) -> None:
    """Every setting in a process of its own, in turns, quiet and busy."""
    environments = {
        "torch": {waiting.LEFT_ALONE: "1"},
        "alone": {waiting.LEFT_ALONE: "1", **waiting.ALONE},
        "among others": {waiting.LEFT_ALONE: "1", **waiting.AMONG_OTHERS},
        **{text: {waiting.LEFT_ALONE: "1", **dict([text.split("=", 1)])} for text in chosen.settings},
    }
    workers = {name: Worker(setting) for name, setting in environments.items()}
    seconds: dict[str, dict[str, list[float]]] = {name: {"quiet": [], "busy": []} for name in workers}
    for number in range(chosen.rounds + 1):
        for state in ("quiet", "busy"):
            with busy_loop() if state == "busy" else quiet():
                for name in list(workers)[:: 1 if number % 2 == 0 else -1]:
                    taken = workers[name].turn()
                    if number:  # the first turn of each warms up
                        seconds[name][state].append(taken / chosen.steps)
                    print(f"{number} {state} {name}: {taken / chosen.steps:.3f} s", file=sys.stderr, flush=True)
    for worker in workers.values():
        worker.process.kill()
    record = {
        "benchmark": "busy_machine",
        "model": Path(chosen.model).name if chosen.model else "tiny",
        "rows": chosen.rows,
        "threads": chosen.threads,
        "rounds": chosen.rounds,
        "step_seconds": {name: {state: median(own) for state, own in both.items()} for name, both in seconds.items()},
        "quiet_speed_beside_torch": {
            name: ratio(seconds["torch"]["quiet"], both["quiet"]) for name, both in seconds.items()
        },
        "busy_share_of_quiet_speed": {name: ratio(both["quiet"], both["busy"]) for name, both in seconds.items()},
    }
    if chosen.out:
        chosen.out.write_text(json.dumps({**record, "all_seconds": seconds}, indent=2) + "\n")
    print(json.dumps(record))


def ratio(before: list[float], after: list[float]) -> float:
    """Median over the rounds of before / after: each round is compared with itself only."""
    return round(median(one / other for one, other in zip(before, after, strict=True)), 3)


class Worker:
    """A process with a setting of its own, which takes a turn when it is told to."""

    def __init__(self, setting: dict[str, str]) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], WORK]
        clean = {name: value for name, value in os.environ.items() if name not in (*waiting.NAMES, "OMP_NUM_THREADS")}
        self.process = subprocess.Popen(
            command, env=clean | setting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def turn(self) -> float:
        """Its seconds."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write("go\n")
        return float(self.process.stdout.readline())


@contextmanager
def busy_loop() -> Iterator[None]:
    other = subprocess.Popen([sys.executable, "-c", "while 1: pass"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


@contextmanager
def quiet() -> Iterator[None]:
    yield


def work(chosen: argparse.Namespace) -> None:
    """`--steps` SFT steps for every line on standard input, and their seconds as a line of standard output."""
    import torch

    from nanogpt_edit.checkpoint.checkpoint import load
    from nanogpt_edit.data.batch import rows_of_step
    from nanogpt_edit.pipeline.fitted import training_samples
    from nanogpt_edit.pipeline.inputs import RunInputs
    from nanogpt_edit.pipeline.new_model import new_model
    from nanogpt_edit.pipeline.recipe import load_recipe
    from nanogpt_edit.training.sft import train_on
    from nanogpt_edit.training.trainer import Trainer

    torch.set_num_threads(chosen.threads)
    recipe = load_recipe("tiny")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        inputs = RunInputs(recipe)
        model = load(chosen.model, dtype=torch.float32) if chosen.model else new_model(inputs, torch.device("cpu"))
        samples = training_samples(inputs, model)
        trainer = Trainer(model, recipe.sft, label="sft", state=folder / "state", log=folder / "log.jsonl")
        model.train()
        step = 0
        for _ in sys.stdin:
            started = time.perf_counter()
            for _ in range(chosen.steps):
                rows = rows_of_step(len(samples), rows=chosen.rows, seed=0, step=step)
                train_on(trainer, [samples[row] for row in rows])
                step += 1
            print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
