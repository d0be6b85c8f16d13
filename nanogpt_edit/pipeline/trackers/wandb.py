"""Weights & Biases: offline, in the run's folder `wandb`, unless WANDB_MODE says otherwise; `wandb sync` sends it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import wandb

from nanogpt_edit.common.terminal import say
from nanogpt_edit.pipeline.trackers.tracker import PROJECT, Started, Tracker

Mode = Literal["online", "offline", "disabled", "shared"]
MODES: Mapping[str, Mode] = {"online": "online", "disabled": "disabled", "shared": "shared"}


class _WandB:
    """Every stage has an axis of its own, its step."""

    def __init__(self, started: Started) -> None:
        mode = MODES.get(os.environ.get("WANDB_MODE", ""), "offline")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=started.name,
            id=started.run_id,
            dir=str(started.folder),
            mode=mode,
            resume="allow" if mode == "online" else None,  # what is offline is put together by its id when it is sent
            config=dict(started.settings),
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.stages: set[str] = set()
        if mode == "offline":
            say(f"wandb: offline; `wandb sync {started.folder}/wandb/offline-run-*-{started.run_id}` sends it.")

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._axis(stage)
        self.run.log({f"{stage}/step": step, **{f"{stage}/{name}": value for name, value in values.items()}})

    def text(self, name: str, step: int, markdown: str) -> None:
        stage = name.partition("/")[0]
        self._axis(stage)
        self.run.log({f"{stage}/step": step, name: wandb.Html(f"<pre>{_escaped(markdown)}</pre>")})

    def report(self, folder: Path, step: int) -> None:
        self.run.log({"report": wandb.Html(str(folder / "report.html"), inject=False)})

    def close(self) -> None:
        self.run.finish()

    def _axis(self, stage: str) -> None:
        if stage not in self.stages:
            self.stages.add(stage)
            self.run.define_metric(f"{stage}/step", hidden=True)
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")


def open_run(started: Started) -> Tracker:
    return _WandB(started)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
