"""What the three training stages share: optimizer, learning rate, metrics log, checkpoints, exact resume.

A stage is a plain loop over `trainer.steps()`. Everything random in a step (which rows, which completions) is a
function of (seed, step), so the state of a run is its weights, the optimizer's moments, the step number and the best
score: a killed run takes up its last saved state, repeats the steps since, and ends with the same bits.
"""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from torch import Tensor, nn

from nanogpt_edit.common import distributed
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_jsonl, read_numbered_jsonl, write_jsonl
from nanogpt_edit.common.records import Place, to_value
from nanogpt_edit.common.stopping import SIGNALS, Stopped
from nanogpt_edit.common.terminal import progress, say
from nanogpt_edit.model.compiled import compiled_blocks
from nanogpt_edit.model.frozen import freeze, thaw, weights_under
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lora import Lora
from nanogpt_edit.training import states
from nanogpt_edit.training.config import Keep, LoopConfig, schedule_at
from nanogpt_edit.training.log_lines import write_line
from nanogpt_edit.training.optimizers import make_optimizers
from nanogpt_edit.training.parallel import Parallel, tokens_at_once

SKIPS_ALLOWED = 5  # steps in a row with a non-finite loss or gradient before the run stops


class Trainer:
    """One stage's optimizer, log and saved states. See `sft.py` for how a stage uses it.

    Gradients are added by `parallel.backward`; `parallel.gathered` lends the model to validate and to save.

    With `lora` that is what learns, and what states hold; the model's own weights are those that it came with until
    `finish` merges what was learned. The parts named in `frozen` do not learn.
    """

    def __init__(
        self,
        model: GPT,
        config: LoopConfig,
        *,
        label: str,
        state: Path,
        log: Path,
        shard: bool = False,
        lora: Lora | None = None,
        frozen: Sequence[str] | None = None,
    ) -> None:
        self.model, self.config, self.label = model, config, label
        self.lora = lora
        self.trained: nn.Module = model if lora is None else lora
        self.state, self.log_path = state, log
        self.step = 0
        self.best_score = -math.inf
        self.skipped_in_a_row = 0
        self._touched = False  # are the weights no longer those at the step's start?
        self._saved_at = self._step_began = time.perf_counter()
        self._shown: dict[str, float] = {}  # of the step's metrics, in the line on the screen
        self._unmerged: dict[str, Tensor] = {}  # with LoRA, where other changes may take the place of those merged
        self.shard = shard
        model.activation_checkpointing = config.activation_checkpointing
        self.tokens_at_once = tokens_at_once(model, config)
        self._frozen = freeze(weights_under(model, frozen))  # now: dividing the model looks at what learns
        if lora is not None:
            say(f"{label}: {lora.describe(model)}; the learning rate is {config.learning_rate:g}.")
            lora.attach(model)
        self.parallel = Parallel(model, lora, shard=shard)
        self.optimizers = make_optimizers(self.trained, config)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["peak"] = group["lr"]

    def steps(self) -> Iterator[int]:
        """The steps still to do. Saves the state now and then, and when SIGINT or SIGTERM asks to stop."""
        self._resume()
        self.model.train()
        self._saved_at = time.perf_counter()
        compiled = compiled_blocks(self.model) if self.config.compile else nullcontext()
        work = progress(self.label, self.config.steps, done=self.step)
        with self._given_back_when_it_fails(), compiled, stop_after_step() as stop, work as bar:
            while self.step < self.config.steps:
                self._step_began = time.perf_counter()
                # Dropout, where a model has any: other masks in each step and process, the same when resumed.
                torch.manual_seed(self.step * distributed.world_size() + distributed.rank())
                try:
                    yield self.step
                except GeneratorExit:  # what ends the stage in mid-step ends this loop too, before it goes further
                    if stop.number is not None:
                        self._stop_in_step()
                    raise
                self.step += 1
                self._touched = False
                bar.update(self.step, **self._shown)
                late = time.perf_counter() - self._saved_at > 60 * self.config.save_minutes
                # A signal or a clock may reach one process only; all of them must do the same.
                stopping, late = map(bool, distributed.all_reduce_max([stop.number is not None, late]))
                if self.step % self.config.save_every == 0 or late or stopping:
                    self.save_state()
                if stopping:
                    say(f"{self.label}: stopped after step {self.step}; the same command goes on from here.")
                    raise Stopped(stop.number or signal.SIGINT)  # it may have reached another process only

    def apply_gradients(self) -> float:
        """Clip, step the optimizer at this step's learning rate, clear the gradients -> the norm before clipping.

        A gradient that is not finite is thrown away and counted; several in a row raise UserError.
        """
        gradients = [weight.grad for weight in self.trained.parameters() if weight.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        norm = float(distributed.gathered(total))
        self._touched = True
        if math.isfinite(norm):
            if norm > self.config.grad_clip:
                torch.nn.utils.clip_grads_with_norm_(self.trained.parameters(), self.config.grad_clip, total)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * schedule_at(self.step, self.config)
                optimizer.step()
            self.skipped_in_a_row = 0
        else:
            self.skipped_in_a_row += 1
            say(f"{self.label}: step {self.step} has a gradient that is not finite; it is skipped.")
        self.trained.zero_grad(set_to_none=True)
        if self.skipped_in_a_row >= SKIPS_ALLOWED:
            self.save_state()  # skipped steps have not touched the weights
            raise UserError(
                f"{self.label}: {SKIPS_ALLOWED} steps in a row had a gradient that is not finite, up to step "
                f"{self.step}. The last good state is kept in {self.state}; begin again in another folder, with a "
                f"lower learning_rate."
            )
        return norm

    def log(self, metrics: Mapping[str, float], *, tokens: int, shown: Sequence[str] = ("loss", "val_loss")) -> None:
        """Write one line for this step: what happened, its learning rate, tokens/s and seconds; show some of it."""
        seconds = time.perf_counter() - self._step_began
        line = {
            "step": self.step,
            **metrics,
            "lr": self.config.learning_rate * schedule_at(self.step, self.config),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }
        if distributed.is_first():
            write_line(self.log_path, {k: _finite(v) for k, v in line.items()})
        self._shown = {name: float(metrics[name]) for name in shown if name in metrics}

    def is_time_to_evaluate(self) -> bool:
        """At step 0, every `evaluate_every` steps, and at the last step."""
        return self.step % self.config.evaluate_every == 0 or self.step == self.config.steps - 1

    def keep_if_best(self, score: float) -> bool:
        """Keep a copy of the weights when no `score` before (higher is better) was higher.

        Of equals the last is kept: where validation cannot tell them apart, the one that was trained for longer.
        """
        if not score >= self.best_score:  # nor one that is no number
            return False
        self.best_score = score
        notes = {"score": score, "step": self.step}
        states.save_best(self.state, dict(self.trained.named_parameters()), notes, shards=self.shard)
        return True

    def finish(self, keep: Keep) -> dict[str, float] | None:
        """Leave the best weights in the model, or the last; with "both" the last ones are the newest saved state.

        Returns the step and the score of the best, where they are what is left.
        """
        if keep == "both":
            self.save_state()
        best = None if keep == "last" else self.use("best")
        if best is not None:
            say(f'{self.label}: kept are the weights of step {best["step"]} (keep = "{keep}").')
        if self.lora is not None and not self.shard:
            self.lora.detach(self.model)
            if keep == "both":
                self._unmerged = {name: self.model.get_parameter(name).clone() for name in self.lora.factors()}
            self.lora.merge(self.model)
        thaw(self._frozen)
        self.model.activation_checkpointing = False
        self.model.eval()
        return best

    def use(self, which: Literal["best", "last"]) -> dict[str, float] | None:
        """Put the best weights, or those of the newest saved state, into the model -> notes of the state, if any."""
        notes = states.load_newest(self.state, self._place) if which == "last" else self._load_best()
        for name, weight in self._unmerged.items():
            states.fill(self.model.get_parameter(name), weight)
        if self._unmerged and self.lora is not None:
            self.lora.merge(self.model)
        return notes

    def _load_best(self) -> dict[str, float] | None:
        best = states.best_of(self.state)
        try:
            return None if best is None else states.load(best, self._place)
        except UserError as error:
            say(f"{error} The last weights are kept instead of the best.")
            return None

    def clear(self) -> None:
        """Delete the saved states; called once the stage's model directory is safe."""
        if distributed.is_first():
            shutil.rmtree(self.state, ignore_errors=True)

    def save_state(self) -> None:
        """Write weights, moments, step number and best score; the newest few states are kept."""
        tensors: dict[str, Tensor] = dict(self.trained.named_parameters())
        for name, parameter in self.trained.named_parameters():
            for optimizer in self.optimizers:
                for moment, value in optimizer.state.get(parameter, {}).items():
                    tensors[f"{moment}/{name}"] = value
        notes = {"step": self.step, "best_score": self.best_score, "threads": torch.get_num_threads()}
        states.save_step(self.state, tensors, notes, shards=self.shard)
        self._saved_at = time.perf_counter()

    @contextmanager
    def _given_back_when_it_fails(self) -> Iterator[None]:
        """Whoever lent the model gets it back as it came, where the stage ends before its time."""
        try:
            yield
        except BaseException:
            if self.lora is not None:
                self.lora.detach(self.model)
            thaw(self._frozen)
            raise

    def _stop_in_step(self) -> None:
        """A step has been cut short. Until it changes the weights, they are those of its start, and can be kept."""
        if self._touched or distributed.world_size() > 1:
            say(f"{self.label}: stopped in step {self.step}; the same command goes on from the last saved state.")
            return
        with suppress(OSError):  # a full disk; what was saved before is still there
            self.save_state()
            say(f"{self.label}: stopped before step {self.step} was done; the same command goes on from its start.")

    def _resume(self) -> None:
        notes = states.load_newest(self.state, self._place)
        if notes is not None:
            self.step, self.best_score = int(notes["step"]), float(notes["best_score"])
            say(f"{self.label}: goes on at step {self.step} of {self.config.steps}.")
            now = torch.get_num_threads()
            before = int(notes.get("threads", now))
            if before != now:
                say(
                    f"{self.label}: it had {before} threads and goes on with {now}; the weights come out a little "
                    f"different from those of {before} alone (--threads {before})."
                )
        if distributed.is_first() and self.log_path.exists():
            lines, steps = read_jsonl(self.log_path, log=True), logged(self.log_path, "step")
            write_jsonl(self.log_path, [line for line, step in zip(lines, steps, strict=True) if step < self.step])

    def _place(self, name: str, shape: torch.Size) -> Tensor:
        """Where a tensor of a state belongs: `exp_avg/embed.weight` is a new moment, `embed.weight` the weight."""
        moment, _, name = name.rpartition("/")
        parameter = self.trained.get_parameter(name)
        if not moment:
            return parameter
        own = shape == parameter.shape
        value = torch.zeros_like(parameter) if own else torch.zeros(shape, device=parameter.device)
        for optimizer in self.optimizers:
            if any(parameter is each for group in optimizer.param_groups for each in group["params"]):
                optimizer.state[parameter][moment] = value
        return value


def logged(log: Path, name: str) -> list[float]:
    """The number under `name` in each line of a stage's log. Raises UserError naming the line where there is none."""
    return [
        to_value(float, line.get(name), name, Place(f"{log}:{number}"))
        for number, line in read_numbered_jsonl(log, log=True)
    ]


class _Stop:
    """Whether a signal has asked to stop."""

    number: int | None = None


@contextmanager
def stop_after_step() -> Iterator[_Stop]:
    """While inside, the first SIGINT or SIGTERM is noted instead of ending the process.

    A second one does end it, as does `stopping` when the step takes too long; not where torchrun has started the
    process, which passes on what the terminal has sent to all already.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, frame: FrameType | None) -> None:
        stop.number = number
        if distributed.world_size() == 1:
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
