"""A run folder -> `Run`.

Every stage is optional: a run that stopped half-way, or that has one checkpoint only, is read as far as it goes and
`Run.notes` says what is not there. A file that is present but damaged, or a metrics file without the raw records that
prove it, ends in a UserError that names the file.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json
from nanogpt_edit.common.records import read_json_as
from nanogpt_edit.evaluation.records import Comparison, Evaluation, Transcript
from nanogpt_edit.report.fields import read_lines, read_object
from nanogpt_edit.report.read_edits import read_edit, read_trace
from nanogpt_edit.report.read_rollouts import read_rollouts
from nanogpt_edit.report.records import STAGES, Run, Series

LOGS = ("pretrain", "sft", "grpo")


def read_run(path: Path) -> Run:
    """Read everything there is in a run folder.

    Raises UserError when `path` is not a run folder (no recipe.toml) or a file in it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. Name the folder that `run --out` wrote.")
    stages = _read_stages(path / "eval")
    edit, trace = read_edit(path / "edits"), read_trace(path / "edits" / "trace.json")
    told = path / "eval" / "transcript.json"
    transcript = read_json_as(Transcript, told) if told.exists() else None
    logs = {name: _read_log(path / "logs" / f"{name}.jsonl") for name in LOGS}
    logs = {name: log for name, log in logs.items() if log}
    environment = read_json(path / "environment.json") if (path / "environment.json").exists() else {}
    seconds = _read_seconds(path / "timing.json")
    present = {
        "the evaluation of base": "base" in stages,
        "the evaluation of sft": "sft" in stages,
        "the evaluation of grpo": "grpo" in stages,
        "the evaluation of the edited model": "edited" in stages,
        "the log of pretraining": "pretrain" in logs,
        "the log of SFT": "sft" in logs,
        "the log of GRPO": "grpo" in logs,
        "the edit": edit is not None,
        "the causal trace": trace is not None,
        "the transcript": transcript is not None,
        "the environment": bool(environment),
        "the timing": bool(seconds),
    }
    return Run(
        path=path,
        recipe=_read_recipe(path / "recipe.toml"),
        logs=logs,
        stages=stages,
        comparisons=_read_comparisons(path / "eval"),
        edit=edit,
        trace=trace,
        transcript=transcript,
        rollouts=read_rollouts(path / "logs" / "rollouts"),
        seconds=seconds,
        environment=environment,
        notes=tuple(name for name, there in present.items() if not there),
    )


def _read_recipe(path: Path) -> Mapping[str, object]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file, so {path.parent} is not the folder of a run.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error}).") from None


def _read_log(path: Path) -> Mapping[str, Series]:
    """Columns of a training log. Of a step written twice (a run killed and resumed) the last line counts."""
    if not path.exists():
        return {}
    by_step: dict[float, Mapping[str, object]] = {}
    for fields in read_lines(path):
        by_step[fields.number("step")] = fields.values
    columns: dict[str, tuple[list[float], list[float]]] = {}
    for step in sorted(by_step):
        for key, value in by_step[step].items():
            if key != "step" and isinstance(value, int | float) and math.isfinite(value):
                steps, values = columns.setdefault(key, ([], []))
                steps.append(step)
                values.append(float(value))
    return {key: Series(steps=tuple(steps), values=tuple(values)) for key, (steps, values) in columns.items()}


def _read_stages(folder: Path) -> Mapping[str, Evaluation]:
    """Evaluated checkpoints in the order of STAGES; stages of other names follow, by name."""
    names = {file.stem for file in folder.glob("*.json")} - {"transcript"}
    names = {name for name in names if not name.startswith("compare_")}
    return {name: Evaluation.load(folder, name) for name in sorted(names, key=lambda name: (_place(name), name))}


def _read_comparisons(folder: Path) -> Mapping[str, Comparison]:
    found = [Comparison.load(path) for path in folder.glob("compare_*.json")]
    found.sort(key=lambda pair: (_place(pair.after), -_place(pair.before), pair.name))
    return {comparison.name: comparison for comparison in found}


def _place(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _read_seconds(path: Path) -> Mapping[str, float]:
    if not path.exists():
        return {}
    stages = read_object(path).inner("stages")
    return {name: stages.number(name) for name in stages.values}
