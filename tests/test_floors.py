"""The house stands on floors: a room imports from the floors below it only. Read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import nanogpt_edit

PACKAGE = Path(nanogpt_edit.__file__).parent
FLOORS: tuple[tuple[str, ...], ...] = (
    ("common",),
    ("model",),
    ("checkpoint",),
    ("data",),
    ("engine",),
    ("evaluation",),
    ("training", "editing"),
    ("tracing", "doctor"),
    ("pipeline",),
    ("serving",),
    ("commands", "api", "cli", "__main__"),
)
RECORDS = {f"nanogpt_edit.{room}.records" for room in ("editing", "evaluation", "pipeline", "tracing", "training")}
RECORDS.add("nanogpt_edit.evaluation.prompt_records")
"""What the rooms write, as the report reads it too: these files stand on the ground as it does, and need no torch."""
ROOT_MODULES = {"__init__", "__main__", "api", "cli"}


def room_of(module: str) -> str:
    """nanogpt_edit.model.gpt -> model; the package itself -> __init__."""
    return [*module.split("."), "__init__"][1]


def imports_of(file: Path) -> Iterator[str]:
    """The modules of the package that a file imports anywhere in it, for types alone too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{file}: imports are absolute"
            yield from ([f"{node.module}.{alias.name}" for alias in node.names])


def files() -> Iterator[tuple[str, Path]]:
    """(room, file) of every module."""
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        yield parts[0], file


def modules_of(names: Iterator[str]) -> set[str]:
    return {room_of(name) for name in names if name.partition(".")[0] == "nanogpt_edit"}


def test_no_room_imports_from_above_or_beside() -> None:
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    upward = [
        f"{file.relative_to(PACKAGE)} imports {target}"
        for room, file in files()
        if room in floor
        for target in modules_of(imports_of(file)) - {room, "report"}
        if target not in floor or (floor[target] >= floor[room] and room not in FLOORS[-1])
    ]
    assert not upward


def test_the_report_and_the_records_it_reads_stand_on_the_ground() -> None:
    seen = [
        f"{file.relative_to(PACKAGE)} imports {name}"
        for room, file in files()
        if room == "report" or (file.name.endswith("records.py") and room != "common")
        for name in imports_of(file)
        if name.partition(".")[0] == "nanogpt_edit" and name.rpartition(".")[0] not in RECORDS
        if room_of(name) not in {"common", "report"}
    ]
    assert not seen


def test_only_the_face_what_people_touch_the_pipeline_and_a_trace_know_the_report() -> None:
    """The playground shows a run's ledger, a trace draws its own heat map; nothing else below the pipeline draws."""
    knowing = {room for room, file in files() if "report" in modules_of(imports_of(file))}
    assert knowing <= {"report", "tracing", "pipeline", "serving", "commands", "api", "cli"}


def test_the_commands_stand_beside_the_python_interface() -> None:
    """What both need lies in the rooms below: neither is the other's load-bearing wall."""
    beside = {"commands": {"api", "cli", "__main__"}, "api": {"commands", "cli", "__main__"}}
    across = [
        f"{file.relative_to(PACKAGE)} imports {target}"
        for room, file in files()
        for target in modules_of(imports_of(file)) & beside.get(room, set())
    ]
    assert not across


def test_every_room_is_on_a_floor_and_few_modules_lie_in_the_root() -> None:
    rooms = {room for room, file in files() if file.parent != PACKAGE}
    assert rooms == {room for rooms in FLOORS for room in rooms if room not in ROOT_MODULES} | {"report"} - {"recipes"}
    assert {file.stem for file in PACKAGE.glob("*.py")} == ROOT_MODULES
