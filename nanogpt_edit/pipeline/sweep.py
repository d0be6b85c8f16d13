"""Which settings suit a checkpoint: layers, λ, clamp and KL, chosen by editing and measured on facts kept apart.

One setting after the other, each tried with the best of those before it: every layer alone, neighbouring layers that
the best one is among, then the strength of protection, the bound on δ, the weight of the KL. Half of the facts choose;
the other half, which no choice has seen, says what the chosen settings are worth. With the standard grid these are at
most 12 + 10 + 6 + 4 + 4 trials.

A trial's mark is the harmonic mean of four shares, so that none can be bought with another: new answers at rank 1,
paraphrases, neighbours, and how probable held-out text is still, exp(nats per token before − after). Every trial is a
line of a log; a sweep that was interrupted reads it and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import torch
from torch import Tensor

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import append_jsonl
from nanogpt_edit.common.records import read_jsonl_as
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.choose import group_up_to
from nanogpt_edit.editing.config import EditConfig, SweepConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.records import EditScores
from nanogpt_edit.editing.scores import compare_states, score_patch
from nanogpt_edit.evaluation.facts import FactState, measure_facts
from nanogpt_edit.evaluation.perplexity import block_nats
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT

FEWEST_FACTS = 4


@dataclass(frozen=True)
class Trial:
    """One edit of a sweep: what was tried and what came of it. Shares over the choosing facts."""

    step: str
    """Which setting was being chosen."""
    layers: tuple[int, ...]
    settings: dict[str, float]
    """The strength, the clamp and the KL weight."""
    success: float
    paraphrase: float | None
    neighbourhood: float | None
    text_kept: float
    """exp(nats per token of held-out text before − after), at most 1."""
    mark: float
    """Harmonic mean of the four."""
    seconds: float

    def describe(self) -> str:
        """One line of the table."""

        def percent(share: float | None) -> str:
            return "    –" if share is None else f"{share:5.0%}"

        settings = "  ".join(f"{name} {value:g}" for name, value in self.settings.items())
        shares = (self.success, self.paraphrase, self.neighbourhood, self.text_kept, self.mark)
        layers = ",".join(map(str, self.layers))
        return f"{self.step:<18}{layers:<12}" + "".join(f"{percent(s):>8}" for s in shares) + f"   {settings}"


HEADER = f"{'choosing':<18}{'layers':<12}" + "".join(
    f"{name:>8}" for name in ("rank 1", "paraphr", "neighb", "text", "mark")
)


@dataclass(frozen=True)
class Sweep:
    """All trials, the settings chosen, and their scores on the facts that did not choose."""

    trials: tuple[Trial, ...]
    chosen: EditConfig
    confirmed: EditScores


def sweep(
    model: GPT,
    facts: Sequence[Fact],
    start: EditConfig,
    grid: SweepConfig,
    *,
    covariance_blocks: Tensor | None,
    text: Tensor,
    log: Path,
    cache_dir: Path | None = None,
) -> Sweep:
    """Choose settings for `model`, beginning from `start`.

    `covariance_blocks` as in `edit_model`; `text` (N, T + 1) are token ids of held-out text; `log` is the file that
    keeps the trials. Raises UserError for too few facts.
    """
    if len(facts) < FEWEST_FACTS:
        raise UserError(
            f"a sweep needs at least {FEWEST_FACTS} facts, half of them to choose by; there are {len(facts)}."
        )
    trier = _Trier(model, facts[::2], covariance_blocks, text, log, cache_dir)
    best, trials = start, []
    say(HEADER)
    for step in ("layers alone", "layers together", "strength", "clamp", "kl_coef"):
        tried = [(config, trier.run(step, config)) for config in _candidates(step, best, grid, model.config)]
        trials += [trial for _, trial in tried]
        best = max(((best, trier.known(best)), *tried), key=lambda pair: pair[1].mark if pair[1] else -1.0)[0]
    patch = edit_model(model, facts[1::2], best, covariance_blocks=covariance_blocks, cache_dir=cache_dir)
    return Sweep(tuple(trials), best, score_patch(model, patch, text=text))


def _candidates(step: str, best: EditConfig, grid: SweepConfig, shape: GPTConfig) -> Iterator[EditConfig]:
    """What is tried in one step, the settings so far being `best`."""
    if step == "layers alone":
        n_layer = shape.n_layer
        count = min(grid.single_layers, n_layer)
        layers = sorted({round(i * (n_layer - 1) / max(1, count - 1)) for i in range(count)})
        yield from (replace(best, layers=(layer,)) for layer in layers)
    elif step == "layers together" and best.traits.many_layers:
        groups = [*_groups_around(best.layers[-1], grid.spans, shape.n_layer), group_up_to(best.layers[-1], shape)]
        yield from (replace(best, layers=layers) for layers in dict.fromkeys(groups) if len(layers) > 1)
    elif step == "strength" and (name := best.traits.strength):
        now = float(getattr(best, name))
        yield from (_with(best, name, now * factor) for factor in grid.strengths)
    elif step in ("clamp", "kl_coef") and best.traits.finds_values:
        values = grid.clamps if step == "clamp" else grid.kl_coefs
        yield from (_with(best, step, value) for value in values if value != getattr(best, step))


def _groups_around(layer: int, widths: Sequence[int], n_layer: int) -> Iterator[tuple[int, ...]]:
    """Neighbouring layers that `layer` is among. What the model's last layer writes reaches no later token: no group
    goes up to it, unless it is the best one itself."""
    end = max(layer + 1, n_layer - 1)
    for width in widths:
        lowest, highest = max(0, layer - width + 1), min(layer, end - width)
        yield from (tuple(range(first, first + width)) for first in range(lowest, highest + 1))


def _with(config: EditConfig, name: str, value: float) -> EditConfig:
    change: dict[str, Any] = {name: value}
    return replace(config, **change)


class _Trier:
    """Edits the choosing facts and marks the result; a trial that the log has is not run again."""

    def __init__(
        self,
        model: GPT,
        facts: Sequence[Fact],
        covariance_blocks: Tensor | None,
        text: Tensor,
        log: Path,
        cache_dir: Path | None,
    ) -> None:
        self.model, self.facts, self.text, self.log = model, facts, text, log
        self.covariance_blocks, self.cache_dir = covariance_blocks, cache_dir
        self.done = {_identity(trial): trial for trial in read_trials(log)} if log.exists() else {}
        self.before: tuple[FactState, ...] | None = None
        self.nats_before = 0.0

    def known(self, config: EditConfig) -> Trial | None:
        return self.done.get((config.layers, tuple(_settings(config).items())))

    def run(self, step: str, config: EditConfig) -> Trial:
        trial = self.known(config)
        if trial is None:
            trial = self._edit(step, config)
            append_jsonl(self.log, asdict(trial))
            self.done[_identity(trial)] = trial
        say(trial.describe())
        return replace(trial, step=step)

    def _edit(self, step: str, config: EditConfig) -> Trial:
        if self.before is None:
            self.before, self.nats_before = measure_facts(self.model, self.facts), self._nats()
        patch = edit_model(
            self.model, self.facts, config, covariance_blocks=self.covariance_blocks, cache_dir=self.cache_dir
        )
        with patch.applied(self.model):
            scores = compare_states(patch.edited, self.before, measure_facts(self.model, self.facts))
            kept = float(torch.tensor(self.nats_before - self._nats()).exp().clamp(max=1.0))
        shares = (
            scores.success.value,
            None if scores.paraphrase is None else scores.paraphrase.value,
            None if scores.neighbourhood_after is None else scores.neighbourhood_after.value,
            kept,
        )
        return Trial(step, config.layers, _settings(config), *shares, mark=mark(shares), seconds=patch.seconds)

    def _nats(self) -> float:
        nats = block_nats(self.model, self.text)
        return sum(nats) / len(nats)


def mark(shares: Sequence[float | None]) -> float:
    """The harmonic mean of the shares there are; 0 when one is 0."""
    return harmonic_mean([share for share in shares if share is not None])


def read_trials(log: Path) -> list[Trial]:
    """The trials of a sweep's log. Raises UserError naming file, line and field of what is none."""
    return read_jsonl_as(Trial, log, log=True)


def _settings(config: EditConfig) -> dict[str, float]:
    names = [name for name in (config.traits.strength, "clamp", "kl_coef") if name is not None]
    return {name: float(getattr(config, name)) for name in names}


def _identity(trial: Trial) -> tuple[tuple[int, ...], tuple[tuple[str, float], ...]]:
    return trial.layers, tuple(trial.settings.items())
