"""What the three training stages share: optimizer, learning rate, metrics log, checkpoints, exact resume.

A stage is a plain loop over `trainer.steps()`. Everything random in a step (which rows, which completions) is a
function of (seed, step), so the state of a run is its weights, the optimizer's moments and the step number: a killed
run takes up its last saved state, repeats the steps since, and ends with the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nanogpt_edit.errors import UserError
from nanogpt_edit.files import append_jsonl, atomic_file, read_jsonl, write_jsonl
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.progress import progress, say
from nanogpt_edit.train.muon import Muon

STATES_KEPT = 2
SKIPS_ALLOWED = 5  # steps in a row with a non-finite loss or gradient before the run stops


@dataclass(frozen=True)
class LoopConfig:
    """Fields every training stage has."""

    steps: int = 1000
    """Optimizer steps; 0 leaves the stage out."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw for every weight, or muon for the matrices of the blocks and adamw for the rest."""
    learning_rate: float = 1e-3
    """AdamW's peak step size."""
    muon_learning_rate: float = 0.02
    """Muon's peak step size."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """How the learning rate falls after the warm-up."""
    decay_share: float = 1.0
    """The learning rate falls over this last share of the steps after the warm-up, and is flat before."""
    final_learning_rate: float = 0.1
    """The last learning rate, as a share of the peak."""
    weight_decay: float = 0.0
    """AdamW's decoupled decay, on matrices only."""
    beta2: float = 0.95
    """AdamW's decay of the squared gradient."""
    grad_clip: float = 1.0
    """The gradient's norm is cut to this."""
    micro_batch_tokens: int = 16_384
    """Padded tokens that go through the model at once; memory only, the gradient is the same."""
    evaluate_every: int = 100
    """Steps between two looks at the validation set."""
    save_every: int = 50
    """Steps between two saved states, from which a killed run goes on."""

    def __post_init__(self) -> None:
        for name in ("steps", "warmup_steps", "learning_rate", "muon_learning_rate", "weight_decay"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it cannot be negative.")
        for name in ("evaluate_every", "save_every", "micro_batch_tokens", "grad_clip"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("decay_share", "final_learning_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it is a share, in [0, 1].")
        if not 0 <= self.beta2 < 1:
            raise UserError(f"beta2 is {self.beta2}; it must be in [0, 1).")


def schedule_at(step: int, config: LoopConfig) -> float:
    """The share of the peak learning rate at step 0, 1, …: linear warm-up, flat, then cosine or linear decay."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    last = config.steps - 1
    begin = last - config.decay_share * (last - config.warmup_steps)
    done = max(0.0, step - begin) / max(1.0, last - begin)
    left = (1 + math.cos(math.pi * done)) / 2 if config.schedule == "cosine" else 1 - done
    return config.final_learning_rate + (1 - config.final_learning_rate) * left


def make_optimizers(model: GPT, config: LoopConfig) -> list[torch.optim.Optimizer]:
    """AdamW, decaying matrices only; with Muon for the matrices of the blocks where the config says so."""
    inner = dict(model.blocks.named_parameters()) if config.optimizer == "muon" else {}
    orthogonal = [weight for weight in inner.values() if weight.dim() == 2]
    taken = {id(weight) for weight in orthogonal}
    others = [weight for weight in model.parameters() if id(weight) not in taken]
    adamw = torch.optim.AdamW(
        [
            {"params": [w for w in others if w.dim() >= 2], "weight_decay": config.weight_decay},
            {"params": [w for w in others if w.dim() < 2], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        fused=True,
    )
    if not orthogonal:
        return [adamw]
    return [adamw, Muon(orthogonal, lr=config.muon_learning_rate, weight_decay=config.weight_decay)]


class Trainer:
    """One stage's optimizer, log and saved states. See `sft.py` for how a stage uses it."""

    def __init__(self, model: GPT, config: LoopConfig, *, label: str, state: Path, log: Path) -> None:
        self.model, self.config, self.label = model, config, label
        self.state, self.log_path = state, log
        self.step = 0
        self.best_score = -math.inf
        self.skipped_in_a_row = 0
        self.optimizers = make_optimizers(model, config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]

    def steps(self) -> Iterator[int]:
        """The steps still to do. Saves the state now and then, and when SIGINT or SIGTERM asks to stop."""
        self._resume()
        self.model.train()
        with stop_after_step() as stop, progress(self.label, self.config.steps, done=self.step) as self.bar:
            while self.step < self.config.steps:
                self._started = time.perf_counter()
                yield self.step
                self.step += 1
                if self.step % self.config.save_every == 0 or stop.is_set():
                    self.save_state()
                if stop.is_set():
                    say(f"{self.label}: stopped after step {self.step}; the same command goes on from here.")
                    raise KeyboardInterrupt

    def apply_gradients(self) -> float:
        """Clip, step the optimizer at this step's learning rate, clear the gradients -> the norm before clipping.

        A gradient that is not finite is thrown away and counted; several in a row raise UserError.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        if math.isfinite(norm):
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule_at(self.step, self.config)
                optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped_in_a_row += 1
            say(f"{self.label}: step {self.step} has a gradient that is not finite; it is skipped.")
        self.model.zero_grad(set_to_none=True)
        if self.skipped_in_a_row >= SKIPS_ALLOWED:
            self.save_state()  # skipped steps have not touched the weights
            raise UserError(
                f"{self.label}: {SKIPS_ALLOWED} steps in a row had a gradient that is not finite, up to step "
                f"{self.step}. The last good state is kept in {self.state}; lower the learning rate."
            )
        return norm

    def log(self, metrics: Mapping[str, float], *, tokens: int, shown: Sequence[str] = ("loss", "val_loss")) -> None:
        """Write one line for this step: what happened, its learning rate, tokens/s and seconds; show some of it."""
        seconds = time.perf_counter() - self._started
        line = {
            "step": self.step,
            **metrics,
            "lr": self.config.learning_rate * schedule_at(self.step, self.config),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }
        append_jsonl(self.log_path, {k: _finite(v) for k, v in line.items()})
        self.bar.update(self.step + 1, **{name: float(metrics[name]) for name in shown if name in metrics})

    def is_time_to_evaluate(self) -> bool:
        """At step 0, every `evaluate_every` steps, and at the last step."""
        return self.step % self.config.evaluate_every == 0 or self.step == self.config.steps - 1

    def keep_if_best(self, score: float) -> bool:
        """Keep a copy of the weights when `score` (higher is better) beats all before."""
        if score <= self.best_score:
            return False
        self.best_score = score
        save_tensors(self.state / "best.safetensors", dict(self.model.named_parameters()), {"score": score})
        return True

    def finish(self, *, use_best: bool) -> None:
        """Leave the best (or the last) weights in the model."""
        best = self.state / "best.safetensors"
        if use_best and best.exists():
            tensors, _ = load_tensors(best)
            _copy_into(dict(self.model.named_parameters()), tensors)
        self.model.eval()

    def clear(self) -> None:
        """Delete the saved states; called once the stage's model directory is safe."""
        shutil.rmtree(self.state, ignore_errors=True)

    def save_state(self) -> None:
        """Write weights, moments and step number; the newest few states are kept."""
        tensors: dict[str, Tensor] = dict(self.model.named_parameters())
        for name, parameter in self.model.named_parameters():
            for optimizer in self.optimizers:
                for moment, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{moment}/{name}"] = value
        save_tensors(
            self.state / f"step_{self.step:08}.safetensors", tensors, {"step": self.step, "best_score": self.best_score}
        )
        for old in sorted(self.state.glob("step_*.safetensors"))[:-STATES_KEPT]:
            old.unlink()

    def _resume(self) -> None:
        for path in sorted(self.state.glob("step_*.safetensors"), reverse=True):
            try:
                tensors, notes = load_tensors(path)
            except UserError as error:
                say(f"{error} The state before it is used.")
                continue
            parameters = dict(self.model.named_parameters())
            _copy_into(parameters, {name: tensors[name] for name in parameters})
            owners = {id(p): o for o in self.optimizers for group in o.param_groups for p in group["params"]}
            for key, value in tensors.items():
                moment, _, name = key.rpartition("/")
                if moment:
                    parameter = parameters[name]
                    owners[id(parameter)].state[parameter][moment] = value.to(parameter.device)
            self.step, self.best_score = int(notes["step"]), float(notes["best_score"])
            say(f"{self.label}: goes on at step {self.step} of {self.config.steps}.")
            break
        if self.log_path.exists():
            done = [line for line in read_jsonl(self.log_path) if int(str(line["step"])) < self.step]
            write_jsonl(self.log_path, done)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, float]) -> None:
    """Write tensors and a few numbers as one safetensors file with a checksum, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(notes))
    metadata = {"notes": text, "sha256": _checksum(tensors, text)}
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Read what `save_tensors` wrote. Raises UserError naming the file when it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: damaged ({error}).") from None
    text = metadata.get("notes", "")
    if metadata.get("sha256") != _checksum(tensors, text):
        raise UserError(f"{path}: damaged (its contents do not match its checksum).")
    return tensors, json.loads(text)


def _checksum(tensors: dict[str, Tensor], notes: str) -> str:
    digest = hashlib.sha256(notes.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def _copy_into(parameters: dict[str, torch.nn.Parameter], tensors: dict[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])


@contextmanager
def stop_after_step() -> Iterator[threading.Event]:
    """While inside, SIGINT and SIGTERM set an event instead of ending the process (a second one does end it)."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.set()
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
