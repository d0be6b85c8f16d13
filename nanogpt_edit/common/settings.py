"""Settings on disk: frozen dataclasses to TOML tables and back, with errors that name file, table and field.

TOML has no null: a field that is None is left out when that is its default, and written as "none" otherwise, so that
reading gives back what was written.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Literal

import tomli_w

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import read_bytes, read_float, write_text
from nanogpt_edit.common.records import Place, Typed, default_of, to_dataclass

NONE = "none"
Precision = Literal["auto", "float32", "bfloat16"]


def read_settings(kind: type[Typed], path: Path, *, defaults: Mapping[str, object] | None = None) -> Typed:
    """Read one `kind` from a TOML file; `defaults` fill top-level fields that the file leaves out.

    Raises UserError for a missing or damaged file, an unknown field (with the nearest known one), a missing field and
    a value of the wrong type; what a dataclass's own validation says is prefixed by the file and the table.
    """
    try:
        table = tomllib.loads(read_bytes(path).decode("utf-8-sig"), parse_float=read_float)
    except RecursionError:
        raise UserError(f"{path}: not valid TOML (nested too deeply).") from None
    except ValueError as error:
        raise UserError(f"{path}: not valid TOML ({error}).") from None
    if not table:
        raise UserError(f"{path}: there is nothing in it; it should hold at least one setting.")
    return to_dataclass(kind, {**(defaults or {}), **table}, Place(path.name, none=NONE))


def write_settings(settings: object, path: Path) -> None:
    """Write a dataclass as TOML, atomically; `read_settings` gives back an equal one."""
    write_text(path, tomli_w.dumps(to_table(settings)))


def to_table(settings: object) -> dict[str, object]:
    """The dataclass as a TOML table: plain dictionaries, lists and scalars, every field resolved."""
    assert is_dataclass(settings)
    table: dict[str, object] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if value is not None:
            table[field.name] = _to_toml(value)
        elif default_of(field) is not None:
            table[field.name] = NONE
    return table


def differences(one: object, other: object, prefix: str = "") -> list[str]:
    """Dotted names of the fields in which two settings of one kind differ: `["seed", "grpo.steps"]`."""
    assert is_dataclass(one)
    found: list[str] = []
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if is_dataclass(mine) and type(mine) is type(theirs):
            found += differences(mine, theirs, f"{prefix}{field.name}.")
        elif mine != theirs:
            found.append(prefix + field.name)
    return found


def _to_toml(value: object) -> object:
    if is_dataclass(value):
        return to_table(value)
    if isinstance(value, tuple | list):
        return [_to_toml(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _to_toml(item) for key, item in value.items()}
    return str(value) if isinstance(value, Path) else value
