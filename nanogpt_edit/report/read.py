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
from typing import get_args

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_json
from nanogpt_edit.common.stats import Difference, Interval, Verdict
from nanogpt_edit.report.fields import Fields, is_number, read_interval, read_lines, read_object
from nanogpt_edit.report.read_edits import read_edit, read_trace
from nanogpt_edit.report.read_rollouts import read_rollouts
from nanogpt_edit.report.records import (
    STAGES,
    Comparison,
    Completion,
    RecalledFact,
    Run,
    Series,
    Stage,
    Token,
    Transcript,
)

LOGS = ("pretrain", "sft", "grpo")


def read_run(path: Path) -> Run:
    """Read everything there is in a run folder.

    Raises UserError when `path` is not a run folder (no recipe.toml) or a file in it is damaged.
    """
    if not path.is_dir():
        raise UserError(f"{path}: no such folder. Name the folder that `run --out` wrote.")
    stages = _read_stages(path / "eval")
    edit, trace = read_edit(path / "edits"), read_trace(path / "edits" / "trace.json")
    transcript = _read_transcript(path / "eval" / "transcript.json")
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


def _read_stages(folder: Path) -> Mapping[str, Stage]:
    """Evaluated checkpoints in the order of STAGES; stages of other names follow, by name."""
    names = {file.stem for file in folder.glob("*.json")} - {"transcript"}
    names = {name for name in names if not name.startswith("compare_")}
    ordered = [name for name in STAGES if name in names] + sorted(names - set(STAGES))
    return {name: _read_stage(folder, name) for name in ordered}


def _read_stage(folder: Path, name: str) -> Stage:
    path = folder / f"{name}.json"
    fields = read_object(path)
    skills = {skill: _read_metrics(fields.inner("skills").inner(skill)) for skill in fields.inner("skills").values}
    settings = fields.optional_inner("settings")
    facts = folder / f"{name}_facts.jsonl"
    return Stage(
        name=name,
        fingerprint=fields.text("fingerprint", ""),
        seconds=fields.optional_number("seconds"),
        settings=settings.values if settings else {},
        skills={skill: metrics for skill, metrics in skills.items() if metrics},
        completions=_read_completions(folder / f"{name}.jsonl"),
        facts=_read_facts(facts) if "facts" in skills or facts.exists() else (),
    )


def _read_metrics(fields: Fields) -> Mapping[str, Interval]:
    """Metrics of one skill; one that could not be measured (null) is left out."""
    metrics = {key: read_interval(fields, key) for key in fields.values}
    return {key: interval for key, interval in metrics.items() if interval is not None}


def _read_completions(path: Path) -> tuple[Completion, ...]:
    if not path.exists():
        metrics = path.with_suffix(".json")
        raise UserError(f"{path}: no such file, so nothing proves {metrics.name}; remove {metrics} and run again.")
    completions = []
    for fields in read_lines(path):
        strict, flexible = fields.values.get("strict"), fields.values.get("flexible")
        completions.append(
            Completion(
                skill=fields.text("skill"),
                problem_id=fields.text("problem_id"),
                sample_index=fields.integer("sample_index"),
                prompt=fields.text("prompt"),
                gold=fields.text("gold", ""),
                text=fields.text("text"),
                answer=str(strict) if strict is not None else str(flexible) if flexible is not None else None,
                correct=fields.flag("correct"),
                well_formed=fields.flag("well_formed"),
                thinking_tokens=fields.integer("thinking_tokens"),
                answer_tokens=fields.integer("answer_tokens"),
                finish_reason=fields.text("finish_reason", ""),
            )
        )
    return tuple(completions)


def _read_facts(path: Path) -> tuple[RecalledFact, ...]:
    facts = []
    for fields in read_lines(path):
        facts.append(
            RecalledFact(
                group=fields.text("group", "recall"),
                subject=fields.text("subject", fields.text("prompt")),
                prompt=fields.text("prompt"),
                target=fields.text("target"),
                greedy=fields.text("greedy"),
                rank=fields.integer("rank"),
                p_target=fields.number("p_target"),
                recalled=fields.flag("recalled"),
            )
        )
    return tuple(facts)


def _read_comparisons(folder: Path) -> Mapping[str, Comparison]:
    comparisons = []
    for path in sorted(folder.glob("compare_*.json")):
        after, _, before = path.stem.removeprefix("compare_").partition("-")
        metrics = read_object(path).inner("metrics")
        changes = {key: _read_change(metrics.inner(key)) for key in metrics.values if metrics.values[key] is not None}
        comparisons.append(Comparison(after=after, before=before, metrics=changes))
    comparisons.sort(key=lambda pair: (_place(pair.after), -_place(pair.before), pair.name))
    return {comparison.name: comparison for comparison in comparisons}


def _place(stage: str) -> int:
    return STAGES.index(stage) if stage in STAGES else len(STAGES)


def _read_change(fields: Fields) -> Difference:
    written = fields.text("verdict")
    verdict = next((known for known in get_args(Verdict) if known == written), None)
    if verdict is None:
        raise fields.error("verdict", f"one of {', '.join(get_args(Verdict))}")
    return Difference(
        delta=fields.number("delta"),
        low=fields.number("low"),
        high=fields.number("high"),
        p_value=fields.number("p_value"),
        n=fields.integer("n"),
        smallest_detectable=fields.number("smallest_detectable"),
        verdict=verdict,
    )


def _read_transcript(path: Path) -> Transcript | None:
    if not path.exists():
        return None
    fields = read_object(path)
    return Transcript(
        prompt=_read_tokens(fields, "prompt"),
        completion=_read_tokens(fields, "completion"),
        decoded=fields.text("decoded", ""),
        thinking_tokens=fields.integer("thinking_tokens"),
        answer_tokens=fields.integer("answer_tokens"),
        stage=fields.text("stage", ""),
        gold=fields.text("gold", ""),
        correct=fields.flag("correct"),
    )


def _read_tokens(fields: Fields, key: str) -> tuple[Token, ...]:
    """[id, text] of the prompt, [id, text, kind] of the completion."""
    tokens = []
    for item in fields.items(key):
        if not isinstance(item, list) or len(item) not in (2, 3) or not is_number(item[0]):
            raise fields.error(key, "tokens as [id, text] or [id, text, kind]")
        tokens.append(Token(id=int(item[0]), text=str(item[1]), kind=str(item[2]) if len(item) == 3 else "prompt"))
    return tuple(tokens)


def _read_seconds(path: Path) -> Mapping[str, float]:
    if not path.exists():
        return {}
    stages = read_object(path).inner("stages")
    return {name: stages.number(name) for name in stages.values}
