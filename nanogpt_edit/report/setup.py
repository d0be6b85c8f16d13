"""What a run was made with: its recipe, versions, machine and hashes, as lines for a reader."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from nanogpt_edit.pipeline.records import READ_BY
from nanogpt_edit.report.run import Run

Settings = tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
"""(table, its (setting, value) lines)."""


def header(run: Run) -> tuple[str, ...]:
    """Recipe, moment and versions, a few words each."""
    environment = run.environment
    shown = [f"recipe {run.recipe['name']}"] if isinstance(run.recipe.get("name"), str) else []
    shown += [_moment(environment["started"])] if environment.get("started") else []
    shown += [f"{key} {environment[key]}" for key in ("torch", "python") if environment.get(key)]
    version = environment.get("nanogpt-edit")
    return (*shown, *([f"nanogpt_edit {version}"] if version not in (None, "not installed") else []))


def _moment(text: object) -> str:
    """'2026-03-01T12:00:00+00:00' -> '2026-03-01 12:00 UTC'; anything else as it stands."""
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    return moment.strftime("%Y-%m-%d %H:%M ") + (moment.tzname() or "").replace("UTC+00:00", "UTC")


def versions(run: Run) -> list[tuple[str, str]]:
    """Versions, machine and data hashes, one line each."""
    lines: list[tuple[str, str]] = []
    for key, value in run.environment.items():
        if isinstance(value, dict):
            lines += [(f"{key}: {name}", _setting(inner)) for name, inner in value.items()]
        else:
            lines.append((key, _setting(value)))
    return lines


def settings(run: Run) -> Settings:
    """The recipe by table, without [expect] (judged above) and the settings of stages that it leaves out."""
    unused = {table for table, stage in READ_BY.items() if stage not in run.planned}
    groups: dict[str, list[tuple[str, str]]] = {}

    def walk(prefix: str, table: Mapping[str, object]) -> None:
        for key, value in table.items():
            if isinstance(value, dict):
                walk(f"{prefix}.{key}" if prefix else key, value)
            else:
                groups.setdefault(prefix or "recipe", []).append((key, _setting(value)))

    walk("", {key: value for key, value in run.recipe.items() if key not in {"expect", *unused}})
    return tuple((name, tuple(rows)) for name, rows in groups.items())


def _setting(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(_setting(item) for item in value)
    return str(value)
