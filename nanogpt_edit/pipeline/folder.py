"""A run's folder: what lies where, who owns it, what recipe it was made with, and how long each stage took."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common import distributed
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import make_folder, read_json, write_json, write_text
from nanogpt_edit.common.memory import peak_bytes, restart_peak
from nanogpt_edit.common.records import read_json_as
from nanogpt_edit.common.settings import differences
from nanogpt_edit.common.terminal import say
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline.environment import environment
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe, save_recipe
from nanogpt_edit.pipeline.records import Timing

MAY_CHANGE = ("threads", "shard", "expect", "track")  # between two calls of one run
PATIENCE_SECONDS = 0.3  # for one that only looks whether the folder is in use


@dataclass(frozen=True)
class RunFolder:
    """Where the files of a run are."""

    path: Path

    def model(self, stage: str) -> Path:
        return self.path / stage

    def has_model(self, stage: str) -> bool:
        return (self.path / stage / "config.json").exists()

    def load(self, stage: str, device: torch.device) -> GPT:
        """The model of a stage, in float32."""
        return checkpoint.load(self.model(stage), device=device, dtype=torch.float32)

    def begun(self, stage: str = "*") -> bool:
        """Has the stage (or any) left a model, or a state to go on from?"""
        return any(self.path.glob(f"{stage}/config.json")) or any(self.path.glob(f"state/{stage}/*"))

    def state(self, stage: str) -> Path:
        return self.path / "state" / stage

    def log(self, stage: str) -> Path:
        return self.path / "logs" / f"{stage}.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.path / "eval"

    @property
    def edits(self) -> Path:
        return self.path / "edits"

    def with_threads(self, recipe: Recipe) -> Recipe:
        """`recipe` with its number of CPU threads, on which the last digits of a sum depend, and so the weights.

        It is what the recipe says, else what the run in this folder has begun with, else torch's own choice here.
        """
        own, path, threads = torch.get_num_threads(), self.path / "recipe.toml", recipe.threads
        if threads is None and path.exists() and self.begun():
            threads = load_recipe(path).threads
        if threads is None or threads == own:
            return replace(recipe, threads=own)
        say(
            f"Threads: {threads}, as the recipe says, where torch would take {own} on this machine; with another "
            "number the weights come out a little different (--threads)."
        )
        return replace(recipe, threads=threads)

    def keep_recipe(self, recipe: Recipe) -> None:
        """Write recipe.toml, or check that the one there asks for the same run.

        What a run expects, how many threads it uses and how it is shared out may change between calls, and everything
        as long as no stage has begun. Raises UserError naming the fields that differ.
        """
        if not distributed.is_first():
            return
        path = self.path / "recipe.toml"
        if path.exists() and self.begun():
            changed = [name for name in differences(load_recipe(path), recipe) if name not in MAY_CHANGE]
            if changed:
                raise UserError(
                    f"{self.path} holds a run with other settings ({', '.join(changed)}); choose another --out, or "
                    f"delete the folder."
                )
        save_recipe(recipe, path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder: a second run in it is refused while the first lives. A killed run's lock is free.

        The first process holds it for all processes of a run. A folder made for a mistake, in which nothing has begun,
        goes again.
        """
        if not distributed.is_first():
            yield
            return
        made = not self.path.exists()
        make_folder(self.path)
        try:
            with self._lock():
                yield
        except (UserError, OSError):
            if made and not self.begun():
                shutil.rmtree(self.path)
            raise

    def in_use(self) -> bool:
        """Is a run at work in the folder now, of whatever process and machine?"""
        if not self._file_lock.exists():
            return False
        try:
            with FileLock(self._file_lock, timeout=0):
                return False
        except Timeout:
            return True
        except OSError:  # a folder that can only be read: who wrote its lock is not known to have ended
            return self._owner.exists()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        lock = FileLock(self._file_lock, timeout=PATIENCE_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"{self.path} is in use by process {self._named_owner()}; wait for it, or choose another --out."
            ) from None
        try:
            write_text(self._owner, str(os.getpid()))
            yield
        finally:
            self._owner.unlink(missing_ok=True)
            lock.release()

    @property
    def _file_lock(self) -> Path:
        return self.path / ".lock"

    @property
    def _owner(self) -> Path:
        """Who holds the lock, in a file of its own: where the lock is a lock of bytes, nobody else can read them."""
        return self.path / ".owner"

    def _named_owner(self) -> str:
        try:
            return self._owner.read_text(encoding="utf-8").strip() or "unknown"
        except OSError:  # it is just about to write it, or to let go
            return "unknown"

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the seconds spent inside to the stage's entry in timing.json, also when it is interrupted, and keep the
        most memory that it took.
        """
        started = time.perf_counter()
        restart_peak()
        try:
            yield
        finally:
            if distributed.is_first():
                self.add_seconds(stage, time.perf_counter() - started, peak_bytes())

    def add_seconds(self, stage: str, seconds: float, peak: int | None = None) -> None:
        path = self.path / "timing.json"
        known = read_json_as(Timing, path) if path.exists() else Timing({})
        stages = {**known.stages, stage: round(known.stages.get(stage, 0.0) + seconds, 3)}
        peaks = dict(known.peak_bytes)
        if peak is not None:
            peaks[stage] = max(peaks.get(stage, 0), peak)
        write_json(path, asdict(Timing(stages, peaks)))

    def keep_environment(self, device: torch.device, **facts: object) -> None:
        """Write what this run ran on, once, and any further `facts` about its data and model."""
        if not distributed.is_first():
            return
        path = self.path / "environment.json"
        known = read_json(path) if path.exists() else environment(device)
        write_json(path, known | facts)
