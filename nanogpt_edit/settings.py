"""Settings on disk: frozen dataclasses to TOML tables and back, with errors that name file, table and field.

A dataclass is a table, a nested dataclass a table inside it, a tuple an array. TOML has no null: a field that is None
is left out when that is its default, and written as "none" otherwise, so that reading gives back what was written.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tomli_w

from nanogpt_edit.errors import UserError, did_you_mean
from nanogpt_edit.files import write_text

Settings = TypeVar("Settings")
NONE = "none"
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}


def read_settings(kind: type[Settings], path: Path, *, defaults: Mapping[str, object] | None = None) -> Settings:
    """Read one `kind` from a TOML file; `defaults` fill top-level fields that the file leaves out.

    Raises UserError for a missing or damaged file, an unknown field (with the nearest known one), a missing field and
    a value of the wrong type; what a dataclass's own validation says is prefixed by the file and the table.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise UserError(f"{path}: a folder, where a TOML file was expected.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid TOML ({error}).") from None
    return _to_dataclass(kind, {**(defaults or {}), **table}, _Place(path.name, ""))


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
        elif _default(field) is not None:
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


@dataclass(frozen=True)
class _Place:
    """Where in which file a value stands, for error messages."""

    file: str
    table: str

    def __str__(self) -> str:
        return f"{self.file}: [{self.table}]" if self.table else f"{self.file}:"

    def inner(self, field: str) -> _Place:
        return _Place(self.file, f"{self.table}.{field}" if self.table else field)


def _to_dataclass(kind: type[Settings], table: object, place: _Place) -> Settings:
    assert is_dataclass(kind)
    if not isinstance(table, Mapping):
        name = place.table.rpartition(".")[2]
        raise UserError(f'{place.file}: "{place.table}" must be a table of fields ([{name}]), found {_found(table)}.')
    known = {field.name: field for field in fields(kind) if field.init}
    for name in table:
        if name not in known:
            raise UserError(f'{str(place).rstrip(":")} has no field "{name}"{did_you_mean(name, known)}')
    types = get_type_hints(kind)
    values: dict[str, object] = {}
    for name, field in known.items():
        if name in table:
            values[name] = _to_value(types[name], table[name], name, place)
        elif _default(field) is MISSING:
            raise UserError(f'{place} the field "{name}" is missing ({_wanted(types[name])}).')
    try:
        return kind(**values)
    except UserError as error:
        raise UserError(f"{place} {error}") from None


def _to_value(kind: object, value: object, name: str, place: _Place) -> object:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return _to_dataclass(kind, value, place.inner(name))
    if origin in (Union, UnionType):
        return _to_optional(arguments, value, name, place)
    if origin is Literal:
        if value not in arguments:
            raise UserError(_wrong(kind, value, name, place))
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple) or (arguments[-1] is not ... and len(value) != len(arguments)):
            raise UserError(_wrong(kind, value, name, place))
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        return tuple(_to_value(kinds[i], item, f"{name}[{i}]", place) for i, item in enumerate(value))
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(_wrong(kind, value, name, place))
        return {key: _to_value(arguments[1], item, key, place.inner(name)) for key, item in value.items()}
    return _to_scalar(kind, value, name, place)


def _to_optional(kinds: tuple[object, ...], value: object, name: str, place: _Place) -> object:
    """A union: "none" stands for None; otherwise the first member that fits."""
    if NoneType in kinds and (value is None or value == NONE):
        return None
    candidates = [kind for kind in kinds if kind is not NoneType]
    if len(candidates) == 1 and is_dataclass(candidates[0]):
        return _to_value(candidates[0], value, name, place)
    for kind in candidates:
        try:
            return _to_value(kind, value, name, place)
        except UserError:
            continue
    raise UserError(_wrong(Union[kinds], value, name, place))  # noqa: UP007, kinds is a runtime tuple


def _to_scalar(kind: object, value: object, name: str, place: _Place) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    raise UserError(_wrong(kind, value, name, place))


def _wrong(kind: object, value: object, name: str, place: _Place) -> str:
    return f'{place} "{name}" must be {_wanted(kind)}, found {_found(value)}.'


def _wanted(kind: object) -> str:
    """The type in words a person types by."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(f'"{NONE}"' if item is NoneType else _wanted(item) for item in arguments)
    if origin is Literal:
        return "one of " + ", ".join(_found(item) for item in arguments)
    if origin is tuple:
        if arguments[-1] is ...:
            return f"an array ([…]) of {_wanted(arguments[0])}"
        return f"an array of {len(arguments)} ({', '.join(map(_wanted, arguments))})"
    if origin in (dict, Mapping) or is_dataclass(kind):
        return "a table of fields"
    return WORDS.get(kind, "text in quotes") if isinstance(kind, type) else str(kind)


def _found(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def _default(field: Field[object]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default
