"""How good the edits of the `tiny` recipe are, over several seeds and all methods.

For every seed the recipe is run up to `--stage` (another initialisation, other data order), and the fifty facts are
edited by memit (as in the recipe, and as published), rome (one after the other), alphaedit and ft. Everything is
measured on the edited model: rank 1, paraphrases, neighbours, the facts that were not edited, perplexity of held-out
text. Intervals are over seeds (rank 1: over the facts of all seeds). Each model and each edit is kept under `--work`;
an interrupted run goes on. The last line is one JSON object.

    python benchmarks/edit_quality.py --seeds 10 --work runs/edit_quality --out benchmarks/results/edit_quality.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from machine import finish

from nanogpt_edit.common.files import read_json, write_json
from nanogpt_edit.common.stats import quantity, share
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.scores import score_patch
from nanogpt_edit.evaluation.facts import fact_metrics, recall
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import load_recipe
from nanogpt_edit.pipeline.spared import spared_blocks
from nanogpt_edit.pipeline.stages import STAGES, Start, make_model

FACTS = 50
GOALS = {"success": 1.0, "paraphrase": 0.9, "neighbourhood_drop": 0.03}
COLUMNS = {
    "success": "new answer at rank 1",
    "paraphrase": "paraphrases, p(new) > p(true)",
    "paraphrase_rank1": "paraphrases at rank 1",
    "neighbourhood_drop": "neighbours lost",
    "others_before": "other facts, before",
    "others_after": "other facts, after",
    "perplexity_factor": "perplexity, after / before",
    "seconds": "seconds (covariance cached)",
}
PLAIN = ("neighbourhood_drop", "perplexity_factor", "seconds")


@dataclass(frozen=True)
class Way:
    """One way to edit: settings, and whether the facts' rewordings are used."""

    config: EditConfig
    rewordings: bool = True


def ways(tiny: EditConfig) -> dict[str, Way]:
    """The recipe's settings; for the other methods what a few trials on the first seed gave."""
    alone = replace(tiny, layers=(0,), refine_steps=0, n_prefixes=6)
    return {
        "memit": Way(tiny),
        "memit as published": Way(replace(tiny, n_prefixes=5, preset="published"), rewordings=False),
        "alphaedit": Way(replace(tiny, method="alphaedit", null_share=0.1, refine_kl=75.0)),
        "rome": Way(replace(alone, method="rome"), rewordings=False),
        "ft": Way(replace(alone, method="ft", norm_constraint=0.02, ft_learning_rate=2e-3), rewordings=False),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="first seed; several processes can share the work folder")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument(
        "--stage", choices=[each.name for each in STAGES[:3]], default="grpo", help="the model that is edited"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/edit_quality"), help="where models and edits are kept")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in ways(EditConfig())}
    for seed in range(chosen.first, chosen.first + chosen.seeds):
        for way, measured in measure_seed(seed, chosen.work / f"seed-{seed}", chosen.stage).items():
            found[way].append(measured)
        record = summary(found, chosen.stage)
        print(table(record), flush=True)
    finish(record, chosen.out)


def measure_seed(seed: int, folder: Path, stage: str) -> dict[str, dict[str, float]]:
    """One model, every method; what is there already is read."""
    recipe = replace(load_recipe("tiny"), seed=seed)
    inputs, run, device = RunInputs(recipe), RunFolder(folder), torch.device("cpu")
    start: Start = None
    for each in STAGES:
        make_model(each, inputs, run, device, start)
        start = run.model(each.name)
        if each.name == stage:
            break
    bench: Bench | None = None
    results = {}
    for name, way in ways(recipe.edit).items():
        path = folder / f"edited-{stage}" / f"{name.replace(', ', '-').replace(' ', '-')}.json"
        if not path.exists():
            bench = bench or Bench(inputs, run.load(stage, device), folder / "cache")
            write_json(path, dict(bench.measure(way)))
        results[name] = {score: float(str(value)) for score, value in read_json(path).items()}
    return results


class Bench:
    """One model, and what is measured on it whatever the method."""

    def __init__(self, inputs: RunInputs, model: GPT, cache_dir: Path) -> None:
        self.model, self.facts = model, inputs.facts
        self.spared = spared_blocks(inputs, model, inputs.facts)
        self.held_out = fitted.held_out_blocks(inputs, model)
        self.others = [question for question in inputs.questions() if question.group == "recall"]
        self.others_before = self.others_recalled()
        self.cache_dir = cache_dir

    def others_recalled(self) -> float:
        return fact_metrics(recall(self.model, self.others))["recall"].value

    def measure(self, way: Way) -> dict[str, float]:
        """Edit the fifty facts, measure, and leave the model as it was."""
        facts = [fact if way.rewordings else replace(fact, rewordings=()) for fact in self.facts]
        patch = edit_model(self.model, facts, way.config, covariance_blocks=self.spared, cache_dir=self.cache_dir)
        scores = score_patch(self.model, patch, text=self.held_out)
        with patch.applied(self.model):
            others_after = self.others_recalled()
        assert scores.paraphrase and scores.paraphrase_rank1
        assert scores.neighbourhood_before and scores.neighbourhood_after
        assert scores.perplexity_before and scores.perplexity_after
        return {
            "success": scores.success.value,
            "paraphrase": scores.paraphrase.value,
            "paraphrase_rank1": scores.paraphrase_rank1.value,
            "neighbourhood_drop": scores.neighbourhood_before.value - scores.neighbourhood_after.value,
            "others_before": self.others_before,
            "others_after": others_after,
            "perplexity_factor": scores.perplexity_after.value / scores.perplexity_before.value,
            "seconds": patch.seconds,
        }


def summary(found: dict[str, list[dict[str, float]]], stage: str) -> dict[str, object]:
    """Means with 95% intervals over seeds; of the share at rank 1, over the facts of all seeds."""
    rows = {
        way: {name: mean(name, [one[name] for one in seeds]) for name in COLUMNS}
        for way, seeds in found.items()
        if seeds
    }
    ours = rows["memit"]
    return {
        "name": "edit_quality",
        "seeds": len(found["memit"]),
        "stage": stage,
        "unit": "shares of 50 facts, means over seeds with 95% intervals",
        "ours": {name: ours[name]["value"] for name in GOALS},
        "goal": GOALS,
        "methods": rows,
    }


def mean(name: str, values: Sequence[float]) -> dict[str, float]:
    if name == "success":  # where all seeds agree, they say nothing of the spread; the facts do
        values = [float(fact < round(FACTS * share)) for share in values for fact in range(FACTS)]
    interval = share(values) if name == "success" else quantity(values)
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def table(record: dict[str, object]) -> str:
    """As Markdown, methods down."""
    rows = record["methods"]
    assert isinstance(rows, dict)
    lines = ["| method | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method, cells in rows.items():
        lines.append(f"| {method} | " + " | ".join(cell(name, cells[name]) for name in COLUMNS) + " |")
    return "\n".join(lines)


def cell(name: str, interval: dict[str, float]) -> str:
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if name in PLAIN[1:]:
        return f"{value:.2f} [{low:.2f}, {high:.2f}]" if name != "seconds" else f"{value:.1f}"
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


if __name__ == "__main__":
    main()
