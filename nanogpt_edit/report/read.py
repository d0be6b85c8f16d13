"""A run folder -> `Run`.

Every stage is optional: a run that stopped half-way, or that has one checkpoint only, is read as far as it goes and
`Run.notes` says what is not there. A file that is present but damaged, or a metrics file without the raw records that
prove it, ends in a UserError that names the file.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json
from nanogpt_edit.common.records import Typed, read_json_as
from nanogpt_edit.editing.records import Edit
from nanogpt_edit.evaluation.records import Comparison, Evaluation, ToldCompletion, Transcript, read_told
from nanogpt_edit.pipeline.records import STAGE_NAMES, Timing
from nanogpt_edit.report.run import RolloutStep, Run, Series
from nanogpt_edit.tracing.records import AverageTrace
from nanogpt_edit.training.records import read_log, read_rollouts, rollout_files

LOGS = ("pretrain", "sft", "grpo")
GROUPS = 2  # problems shown of each step of GRPO


def read_run(path: Path) -> Run:
    """Read everything there is in a run folder.

    Raises UserError when `path` is not a run folder (no recipe.toml) or a file in it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. Name the folder that `run --out` wrote.")
    recipe = _read_recipe(path / "recipe.toml")
    planned = _planned(recipe, path / "recipe.toml")
    stages = _read_stages(path / "eval", planned)
    edit, trace = _read_edit(path / "edits"), _read_if_there(AverageTrace, path / "edits" / "trace.json")
    transcript = _read_if_there(Transcript, path / "eval" / "transcript.json")
    logs = {name: read_series(path / "logs" / f"{name}.jsonl") for name in LOGS}
    logs = {name: log for name, log in logs.items() if log}
    environment = read_json(path / "environment.json") if (path / "environment.json").exists() else {}
    timing = _read_if_there(Timing, path / "timing.json")
    parts = (
        ("the evaluation of base", "base", "base" in stages),
        ("the evaluation of sft", "sft", "sft" in stages),
        ("the evaluation of grpo", "grpo", "grpo" in stages),
        ("the evaluation of the edited model", "edited", "edited" in stages),
        ("the log of pretraining", "pretraining", "pretrain" in logs),
        ("the log of SFT", "sft", "sft" in logs),
        ("the log of GRPO", "grpo", "grpo" in logs),
        ("the edit", "edited", edit is not None),
        ("the causal trace", "edited", trace is not None),
        ("the transcript", "grpo", transcript is not None),
        ("the environment", "base", bool(environment)),
        ("the timing", "base", timing is not None),
    )
    of_run = {*planned, "base"} | (set() if _source(recipe) else {"pretraining"})
    return Run(
        path=path,
        recipe=recipe,
        planned=planned,
        source=_source(recipe),
        logs=logs,
        stages=stages,
        comparisons=_read_comparisons(path / "eval", list(stages)),
        edit=edit,
        trace=trace,
        transcript=transcript,
        rollouts=_read_rollouts(path / "logs" / "rollouts"),
        told=_read_told(path / "eval", stages),
        seconds=timing.stages if timing else {},
        peak_bytes=timing.peak_bytes if timing else {},
        environment=environment,
        notes=tuple(name for name, stage, there in parts if stage in of_run and not there),
    )


def _read_recipe(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so {path.parent} is not the folder of a run.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error}).") from None


def _planned(recipe: Mapping[str, object], path: Path) -> tuple[str, ...]:
    """The stages that the recipe asks for; all, where it names none."""
    named = recipe.get("stages", STAGE_NAMES)
    if not isinstance(named, list | tuple) or not all(name in STAGE_NAMES for name in named):
        raise UserError(f"{path}: stages must be an array of some of {', '.join(STAGE_NAMES)}.")
    return tuple(named)


def _source(recipe: Mapping[str, object]) -> str | None:
    """The model that the run starts from; None where it makes one."""
    model = recipe.get("model")
    source = model.get("source") if isinstance(model, Mapping) else None
    return source if isinstance(source, str) else None


def read_series(path: Path) -> Mapping[str, Series]:
    """The columns of a training log; none where there is no file."""
    columns: dict[str, list[tuple[float, float]]] = {}
    for step, line in read_log(path).items() if path.exists() else ():
        for name, value in line.items():
            if value is not None:
                columns.setdefault(name, []).append((step, value))
    return {name: Series(*zip(*points, strict=True)) for name, points in columns.items()}


def _read_rollouts(folder: Path) -> tuple[RolloutStep, ...]:
    """First, middle and last step; none when the run kept no rollouts."""
    files = list(rollout_files(folder).items())
    chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    return tuple(_read_step(*files[place]) for place in chosen)


def _read_step(step: int, path: Path) -> RolloutStep:
    rollouts = read_rollouts(path)
    told = [each for each in rollouts if each.told]
    groups = list(dict.fromkeys(each.group for each in told))[:GROUPS]
    shown = [each for each in told if each.group in groups]
    shown.sort(key=lambda each: (groups.index(each.group), -each.advantage))
    return RolloutStep(step, len(rollouts), sum(each.correct for each in rollouts), tuple(shown))


def _read_stages(folder: Path, planned: Sequence[str]) -> Mapping[str, Evaluation]:
    """Evaluated checkpoints in the order in which they are planned; others follow, by name."""
    names = {file.stem for file in folder.glob("*.json")} - {"transcript"}
    names = {name for name in names if not name.startswith("compare_")}
    order = [*planned, *(name for name in STAGE_NAMES if name not in planned)]
    return {name: Evaluation.load(folder, name) for name in sorted(names, key=lambda name: (_place(name, order), name))}


def _read_told(folder: Path, stages: Iterable[str]) -> Mapping[str, tuple[ToldCompletion, ...]]:
    """Completions token by token, of the checkpoints that have some; earlier versions kept none."""
    files = {stage: folder / f"{stage}_tokens.jsonl" for stage in stages}
    return {stage: tuple(found) for stage, file in files.items() if file.exists() and (found := read_told(file))}


def _read_comparisons(folder: Path, stages: Sequence[str]) -> Mapping[str, Comparison]:
    found = [Comparison.load(path) for path in folder.glob("compare_*.json")]
    found.sort(key=lambda pair: (_place(pair.after, stages), -_place(pair.before, stages), pair.name))
    return {comparison.name: comparison for comparison in found}


def _read_edit(folder: Path) -> Edit | None:
    """The first edit by name. (A run makes one; `trace.json` lies in the same folder.)"""
    paths = sorted(path for path in folder.glob("*.json") if path.name != "trace.json")
    return Edit.load(paths[0]) if paths else None


def _read_if_there(kind: type[Typed], path: Path) -> Typed | None:
    return read_json_as(kind, path) if path.exists() else None


def _place(stage: str, order: Sequence[str]) -> int:
    return order.index(stage) if stage in order else len(order)
