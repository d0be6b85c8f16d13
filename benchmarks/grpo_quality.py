"""What GRPO gains on the embedded world, and what each of its tricks is worth, over several seeds.

For every seed a model is made from nothing (the `tiny` recipe's base and SFT, on that seed's own problems), then
improved by GRPO once per row of the table: `all` with everything for SETTING's steps, `short` the same for fewer, and
from `short` one trick removed at a time, and from `recipe` (the recipe's own 45 steps) one of the objectives,
advantages or masks of 2025 put in its place. A row's gain is pass@1 after GRPO minus pass@1 after SFT, at temperature
0.7, on the same 400 held-out problems × 16 samples (8 after GRPO in all rows but the first). Its interval over seeds is
Student's t; the one over problems is a paired bootstrap over all problems of all seeds, which holds the seeds fixed.

    python benchmarks/grpo_quality.py --work runs/grpo_quality [--seeds 0,1,2,3,4] [--rows all,no_kl]

Every piece is kept in the work folder: called again, the script goes on where it was; --gather makes the table of what
is finished. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from machine import finish

from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.files import read_json
from nanogpt_edit.common.stats import quantity, student_t
from nanogpt_edit.evaluation import suite
from nanogpt_edit.evaluation.metrics import score_problems
from nanogpt_edit.evaluation.records import read_records
from nanogpt_edit.pipeline import fitted
from nanogpt_edit.pipeline.folder import RunFolder
from nanogpt_edit.pipeline.inputs import RunInputs
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe
from nanogpt_edit.pipeline.stages import BASE, GRPO, SFT, make_model

GOAL_POINTS, GOAL_SECONDS = 5.0, 150.0
# On top of the recipe's [grpo]; the weights that are best on validation are kept.
SETTING: Mapping[str, object] = {
    "steps": 50,
    "learning_rate": 4e-4,
    "kl_coef": 0.001,
    "evaluate_every": 25,
    "evaluate_problems": 200,
    "keep": "best",
}
SHORT: Mapping[str, object] = {"steps": 20, "evaluate_every": 20}
RECIPE: Mapping[str, object] = {"steps": 45, "kl_coef": 0.003, "evaluate_every": 15}
SHORT_SAMPLES = 8  # per problem after GRPO, in all rows but the first
ROWS: Mapping[str, Mapping[str, object]] = {
    "all": {},
    "short": SHORT,
    "no_clip_higher": {**SHORT, "clip_high": 0.2},
    "no_entropy_bonus": {**SHORT, "entropy_coef": 0.0, "final_entropy_coef": 0.0},
    "no_dynamic_sampling": {**SHORT, "dynamic_sampling": "off"},
    "no_token_level": {**SHORT, "normalise": "sequence"},
    "no_kl": {**SHORT, "kl_coef": 0.0},
    "recipe": RECIPE,
    "gspo": {**RECIPE, "objective": "gspo", "normalise": "sequence", "clip_low": 3e-4, "clip_high": 4e-4},
    "cispo": {**RECIPE, "objective": "cispo"},
    "sapo": {**RECIPE, "objective": "sapo"},
    "dr_grpo": {**RECIPE, "advantage": "mean", "normalise": "constant"},
    "batch_advantage": {**RECIPE, "advantage": "batch"},
    "uncertain_tokens": {**RECIPE, "uncertain_share": 0.2},
    "two_sided_clip": {**RECIPE, "dual_clip": 3.0},
}
LOSSES = ("gspo", "cispo", "sapo", "dr_grpo", "batch_advantage", "uncertain_tokens", "two_sided_clip")


@dataclass(frozen=True)
class Cell:
    """One seed of one row: problems × samples before and after."""

    seed: int
    before: np.ndarray  # (problems,) share of right samples of the SFT model
    after: np.ndarray
    seconds: float  # of GRPO, its validation included

    @property
    def gain(self) -> float:
        """Points of pass@1."""
        return 100 * float((self.after - self.before).mean())


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--work", type=Path, default=Path("runs/grpo_quality"), help="keeps every piece")
    arguments.add_argument("--out", type=Path, default=Path("benchmarks/results/grpo_quality.json"))
    arguments.add_argument("--seeds", default="0,1,2,3,4")
    arguments.add_argument("--rows", default=",".join(ROWS), help="of the table; none: the starting models only")
    arguments.add_argument("--gather", action="store_true", help="train nothing: the table of what is finished")
    arguments.add_argument("--threads", type=int, default=2)
    chosen = arguments.parse_args()
    rows = [row for row in chosen.rows.split(",") if row in ROWS]
    device = choose_device("cpu", threads=chosen.threads)
    recipe = load_recipe("tiny")
    recipe = replace(recipe, grpo=replace(recipe.grpo, **SETTING))
    seeds = [int(seed) for seed in chosen.seeds.split(",")]
    if chosen.gather:
        table = {row: gathered(chosen.work, row) for row in rows}
        return write_table({row: cells for row, cells in table.items() if cells}, recipe, device, chosen.out)
    for seed in seeds:
        make_start(replace(recipe, seed=seed), chosen.work / f"seed{seed}", device)
    table: dict[str, list[Cell]] = {}
    for row in rows:
        own = replace(recipe, grpo=replace(recipe.grpo, **ROWS[row]))
        if row != "all":
            own = replace(own, evaluate=replace(own.evaluate, samples=SHORT_SAMPLES))
        table[row] = [run_row(replace(own, seed=seed), row, chosen.work / f"seed{seed}", device) for seed in seeds]
    if table:
        write_table(table, recipe, device, chosen.out)


def gathered(work: Path, row: str) -> list[Cell]:
    """The finished seeds of a row."""
    done = (folder for folder in sorted(work.glob("seed*")) if (folder / row / "eval" / "grpo.json").exists())
    return [read_cell(folder, row) for folder in done]


def write_table(table: Mapping[str, Sequence[Cell]], recipe: Recipe, device: torch.device, out: Path) -> None:
    """The table as JSON, and the last line."""
    for row, cells in table.items():
        print_row(row, cells)
    finish(last_line(table), out, details=summarise(table, recipe), device=device)


def make_start(recipe: Recipe, path: Path, device: torch.device) -> None:
    """Base and SFT of one seed, and the SFT model's pass@1."""
    folder = RunFolder(path)
    with folder.locked():
        folder.keep_recipe(replace(recipe, grpo=load_recipe("tiny").grpo))
        inputs = RunInputs(recipe)
        make_model(BASE, inputs, folder, device, None)
        make_model(SFT, inputs, folder, device, folder.model("base"))
        measure(inputs, "sft", folder, device)


def run_row(recipe: Recipe, row: str, path: Path, device: torch.device) -> Cell:
    """GRPO of one seed with one row's settings, measured on the same problems as the SFT model."""
    folder = RunFolder(path / row)
    with folder.locked():
        folder.keep_recipe(recipe)
        inputs = RunInputs(recipe)
        with folder.timed("grpo"):
            make_model(GRPO, inputs, folder, device, path / "sft")
        measure(inputs, "grpo", folder, device)
    return read_cell(path, row)


def read_cell(path: Path, row: str) -> Cell:
    """What is on file of one row of the seed in `path`."""
    timing = read_json(path / row / "timing.json")["stages"]
    assert isinstance(timing, dict)
    before, after = shares(path / "eval" / "sft.jsonl"), shares(path / row / "eval" / "grpo.jsonl")
    assert before.keys() == after.keys()
    return Cell(
        seed=int(path.name.removeprefix("seed")),
        before=np.array(list(before.values())),
        after=np.array([after[problem] for problem in before]),
        seconds=float(timing["grpo"]),
    )


def measure(inputs: RunInputs, stage: str, folder: RunFolder, device: torch.device) -> None:
    if (folder.evaluations / f"{stage}.json").exists():
        return
    model = folder.load(stage, device)
    config = replace(inputs.recipe.evaluate, max_new_tokens=fitted.longest_completion(inputs, model))
    skills = suite.Skills(problems=inputs.problems.test)
    suite.evaluate(model, skills, config, stage=stage).save(folder.evaluations)


def shares(path: Path) -> dict[str, float]:
    """Problem -> share of its samples that are right."""
    scores = score_problems(read_records(path), ks=(1,), seed=0)
    return dict(zip(scores.problem_ids, scores.values["pass_at_1"], strict=True))


def over_seeds(gains: Sequence[float]) -> tuple[float, float, float]:
    """Mean and 95% interval (Student's t)."""
    mean = float(np.mean(gains))
    half = (
        student_t(len(gains) - 1) * float(np.std(gains, ddof=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    )
    return mean, mean - half, mean + half


def bounded(interval: tuple[float, float, float]) -> list[float | None]:
    """For JSON: one seed has no interval."""
    return [None if math.isnan(value) else value for value in interval]


def over_problems(cells: Sequence[Cell]) -> tuple[float, float, float]:
    """The same by a paired bootstrap over all problems of these seeds."""
    found = quantity(np.concatenate([100 * (cell.after - cell.before) for cell in cells]))
    return found.value, found.low, found.high


def print_row(row: str, cells: Sequence[Cell]) -> None:
    mean, low, high = over_seeds([cell.gain for cell in cells])
    _, inner_low, inner_high = over_problems(cells)
    gains = " ".join(f"{cell.gain:+.1f}" for cell in cells)
    seconds = max(cell.seconds for cell in cells)
    print(
        f"{row:<20} {mean:+.1f} points [{low:+.1f}, {high:+.1f}] over seeds, [{inner_low:+.1f}, {inner_high:+.1f}] "
        f"over problems; seeds {gains}; at most {seconds:.0f} s",
        flush=True,
    )


def summarise(table: Mapping[str, Sequence[Cell]], recipe: Recipe) -> dict[str, object]:
    whole, default = table.get("short"), table.get("recipe")
    rows = {}
    for row, cells in table.items():
        gains = [cell.gain for cell in cells]
        rows[row] = {
            "changed": dict(ROWS[row]),
            "seeds": [cell.seed for cell in cells],
            "before": [100 * float(cell.before.mean()) for cell in cells],
            "after": [100 * float(cell.after.mean()) for cell in cells],
            "gain": gains,
            "mean_gain": bounded(over_seeds(gains)),
            "mean_gain_over_problems": over_problems(cells),
            "seconds": [cell.seconds for cell in cells],
            "lost_by_removing": None if whole is None or not row.startswith("no_") else difference(whole, cells),
            "more_than_default": None if default is None or row not in LOSSES else difference(cells, default),
        }
    return {"grpo": asdict(recipe.grpo), "rows": rows}


def difference(one: Sequence[Cell], other: Sequence[Cell]) -> dict[str, object]:
    """How much more one row gains than another, in pairs: seed by seed (those that both have), problem by problem."""
    by_seed = {cell.seed: cell for cell in other}
    pairs = [(cell, by_seed[cell.seed]) for cell in one if cell.seed in by_seed]
    by_problem = quantity(np.concatenate([100 * (more.after - less.after) for more, less in pairs]))
    return {
        "over_seeds": bounded(over_seeds([more.gain - less.gain for more, less in pairs])),
        "over_problems": (by_problem.value, by_problem.low, by_problem.high),
    }


def last_line(table: Mapping[str, Sequence[Cell]]) -> dict[str, object]:
    row, cells = next(iter(table.items()))
    gains = [cell.gain for cell in cells]
    mean, low, high = bounded(over_seeds(gains))
    seconds = max(cell.seconds for cell in cells)
    goal = {
        "goal": f">= {GOAL_POINTS:g} points within {GOAL_SECONDS:g} s, no seed below its start",
        "met": float(np.mean(gains)) >= GOAL_POINTS and min(gains) >= 0 and seconds <= GOAL_SECONDS,
    }
    return {
        "name": "grpo_quality",
        "row": row,
        "ours": mean,
        "peer": 0.0,
        "unit": "points of pass@1 over SFT, mean over seeds",
        "low": low,
        "high": high,
        "worst_seed": min(gains),
        "seconds": seconds,  # by the clock: other work beside it counts
    } | (goal if row == "all" else {})


if __name__ == "__main__":
    main()
