"""Plain values, as TOML and JSON give them, to frozen dataclasses by their field types.

A dataclass is a table, a nested dataclass a table inside it, a tuple an array. What is missing, unknown or of another
type ends in a sentence that names file, table and field. Settings (`settings.py`) and records (`read_jsonl_as`) are
both read here.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeGuard, TypeVar, Union, get_args, get_origin, get_type_hints

from nanogpt_edit.common.errors import UserError, did_you_mean
from nanogpt_edit.common.files import read_json, read_numbered_jsonl

Typed = TypeVar("Typed")
Made = TypeVar("Made")
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text in quotes"}
MOST_SHOWN = 3  # items of a list that has the wrong type
LARGEST_BITS = 63  # of a whole number: torch's and numpy's are signed and have 64
SURROGATE = re.compile("[\ud800-\udfff]")
# By name, for this room knows neither torch nor models.
CLASSES = {
    "GPT": "a model (ne.load gives one)",
    "Tokenizer": "a tokenizer (model.tokenizer)",
    "dtype": "a torch.dtype",
    "device": "a torch.device",
}


class Answering(type):
    """Of classes that people make in Python: a call that fits none of their fields is answered by a sentence."""

    def __call__(cls: type[Made], *values: Any, **named: Any) -> Made:
        """Raises UserError for an unknown field, with the nearest known one, and for one that is missing."""
        try:
            made: Made = type.__call__(cls, *values, **named)
        except TypeError as error:
            if (mistake := _miscalled(cls, values, named)) is not None:
                raise mistake from None
            raise error
        return made

    @property
    def __signature__(cls) -> inspect.Signature:
        """What `help` shows: the fields, not the arguments of any call."""
        own = inspect.signature(inspect.getattr_static(cls, "__init__"))
        return own.replace(parameters=list(own.parameters.values())[1:], return_annotation=own.empty)


class Settings(metaclass=Answering):
    """What all settings are: a dataclass of which a person may misspell a field in Python."""


def _miscalled(kind: type, values: Sequence[object], named: Mapping[str, object]) -> UserError | None:
    """What is wrong with a call of a dataclass; None where it fits."""
    known = _fields(kind)[0]
    for name in named:
        if name not in known:
            return UserError(f'{kind.__name__} has an unknown field "{name}"{did_you_mean(name, known)}')
    try:
        inspect.signature(kind).bind(*values, **named)
    except TypeError as error:
        needed = ", ".join(name for name, field in known.items() if default_of(field) is MISSING) or "nothing"
        return UserError(f"{kind.__name__}: {error}; it needs {needed}, and has {', '.join(known)}.")
    return None


@dataclass(frozen=True)
class Place:
    """Where in which file a value stands, for error messages, and how nothing is written there."""

    file: str
    table: str = ""
    none: str | None = None
    """The word that stands for None; None where the format has a null of its own."""
    python: bool = False
    """Is it a value that a person hands over in Python? Then it is spoken of in Python's words."""

    def __str__(self) -> str:
        return f"{self.file}: [{self.table}]" if self.table else f"{self.file}:"

    def inner(self, field: str) -> Place:
        return replace(self, table=f"{self.table}.{field}" if self.table else field)


def read_json_as(kind: type[Typed], path: Path) -> Typed:
    """The `kind` in a JSON file, as `asdict` wrote it. Raises UserError naming the file and the field in question."""
    return _read(kind, read_json(path), str(path))


def read_jsonl_as(kind: type[Typed], path: Path, *, log: bool = False) -> list[Typed]:
    """One `kind` per line of a JSONL file (or a `log`, which may end in a torn line), as `asdict` wrote them.

    Raises UserError naming file, line and field.
    """
    return [_read(kind, record, f"{path}:{number}") for number, record in read_numbered_jsonl(path, log=log)]


def _read(kind: type[Typed], record: Mapping[str, object], where: str) -> Typed:
    assert is_dataclass(kind)
    plain = _plain_fields(kind)
    if (
        not hasattr(kind, "__post_init__")
        and record.keys() == plain.keys()
        and all(type(record[name]) in fits for name, fits in plain.items())
    ):
        return kind(**record)  # nearly every record there is, in a fraction of the time
    try:
        return to_dataclass(kind, record, Place(where))
    except UserError as error:
        raise UserError(f"{error} It is the wrong file, one of another version, or damaged.") from None


def to_dataclass(kind: type[Typed], table: object, place: Place) -> Typed:
    """A `kind` with the fields of `table`; those left out keep their defaults.

    Raises UserError for an unknown field (with the nearest known one), a missing one and a value of the wrong type;
    what the dataclass's own validation says is prefixed by the place.
    """
    assert is_dataclass(kind)
    if not isinstance(table, Mapping):
        if place.python:
            raise UserError(
                f'{place.file}: "{place.table}" must be {_wanted(kind, place)}, found {_found(table, place)}.'
            )
        name = place.table.rpartition(".")[2]
        raise UserError(
            f'{place.file}: "{place.table}" must be a table of fields ([{name}]), found {_found(table, place)}.'
        )
    known, types = _fields(kind)
    for name in table:
        if name not in known:
            raise UserError(f'{str(place).rstrip(":")} has an unknown field "{name}"{did_you_mean(name, known)}')
    values: dict[str, object] = {}
    for name, field in known.items():
        if name in table:
            values[name] = to_value(types[name], table[name], name, place)
        elif default_of(field) is MISSING:
            raise UserError(f'{place} the field "{name}" is missing ({_wanted(types[name], place)}).')
    try:
        return kind(**values)
    except UserError as error:
        raise error.at(str(place)) from None


def check_fields(record: object) -> None:
    """Raise UserError for the first field of a dataclass whose value is not of the field's type.

    For `__post_init__`: a record that a person makes in Python is held to what is asked of one read from a file, and a
    list becomes the tuple that it stands for.
    """
    kind: type = type(record)
    place = Place(kind.__name__, python=True)
    for name, fits in _plain_fields(kind).items():
        value = getattr(record, name)
        if type(value) not in fits:
            value = to_value(_fields(kind)[1][name], value, name, place)
            object.__setattr__(record, name, value)
        check_sound(value, name)


def check_sound(value: object, name: str) -> None:
    """Raise UserError for a value of the right type and no use: NaN, infinity, more than 64 bits, half a character."""
    if type(value) is str and value.isascii():
        return  # nearly every value there is, in a fraction of the time
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"is {value}; it must be a finite number.", field=name)
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        raise UserError(f"is a number of {value.bit_length()} bits; it can have {LARGEST_BITS} at most.", field=name)
    if isinstance(value, str) and (half := SURROGATE.search(value)):
        raise UserError(
            f"has {half[0]!a} at character {half.start() + 1}, half of a surrogate pair and so no Unicode text; take "
            "it out.",
            field=name,
        )
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            check_sound(item, f"{name}[{i}]")
    if isinstance(value, dict):
        for key, item in value.items():
            check_sound(item, f"{name}.{key}")


def default_of(field: Field[Any]) -> object:
    return field.default_factory() if field.default_factory is not MISSING else field.default


@cache
def _fields(kind: type) -> tuple[dict[str, Field[Any]], dict[str, Any]]:
    """The fields one gives to make a `kind`, and their types. (Finding them takes longer than reading a record.)"""
    return {field.name: field for field in fields(kind) if field.init}, get_type_hints(kind)


@cache
def _plain_fields(kind: type) -> dict[str, tuple[object, ...]]:
    """The types that the value of each field may have as it stands; none where it has to be made from what is read."""
    unions = {
        name: get_args(each) if get_origin(each) in (Union, UnionType) else (each,)
        for name, each in _fields(kind)[1].items()
    }
    return {name: each if set(each) <= {*WORDS, NoneType} else () for name, each in unions.items()}


def to_value(kind: object, value: object, name: str, place: Place) -> Any:
    """`value` as a `kind`, or a UserError that says where the field `name` should have one."""
    if kind is object or (kind is type(value) and kind in WORDS):
        return value
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        assert isinstance(kind, type)
        return value if isinstance(value, kind) else to_dataclass(kind, value, place.inner(name))
    if origin in (Union, UnionType):
        return _to_optional(kind, value, name, place)
    if origin is Literal:
        if type(value) not in map(type, arguments) or value not in arguments:
            raise UserError(_wrong(kind, value, name, place))
        return value
    if origin in (tuple, Sequence):
        of_any_length = origin is Sequence or arguments[-1] is ...
        if origin is Sequence and _is_many(value):
            value = list(value)
        if not isinstance(value, list | tuple) or not (of_any_length or len(value) == len(arguments)):
            raise UserError(_wrong(kind, value, name, place))
        kinds = [arguments[0]] * len(value) if of_any_length else arguments
        return tuple(to_value(kinds[i], item, f"{name}[{i}]", place) for i, item in enumerate(value))
    if origin is Callable:
        if not callable(value):
            raise UserError(_wrong(kind, value, name, place))
        return value
    if origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise UserError(_wrong(kind, value, name, place))
        return {key: to_value(arguments[1], item, key, place.inner(name)) for key, item in value.items()}
    if origin is Callable and callable(value):
        return value
    return _to_scalar(kind, value, name, place)


def _to_optional(union: object, value: object, name: str, place: Place) -> object:
    """A union: None, or the word for it; otherwise the first member that fits.

    Where only one member has the shape of the value (a table, an array), it says what is wrong inside.
    """
    kinds = get_args(union)
    if NoneType in kinds and (value is None or (place.none is not None and value == place.none)):
        return None
    candidates = [kind for kind in kinds if kind is not NoneType]
    shaped = [kind for kind in candidates if _has_shape(kind, value)]
    if len(shaped) == 1:
        return to_value(shaped[0], value, name, place)
    for kind in candidates:
        try:
            return to_value(kind, value, name, place)
        except UserError:
            continue
    raise UserError(_wrong(union, value, name, place))


def _is_many(value: object) -> TypeGuard[Iterable[object]]:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping)


def _has_shape(kind: object, value: object) -> bool:
    if _is_many(value):
        return get_origin(kind) in (tuple, Sequence)
    return isinstance(value, Mapping) and (is_dataclass(kind) or get_origin(kind) in (dict, Mapping))


def _to_scalar(kind: object, value: object, name: str, place: Place) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        if value.bit_length() > sys.float_info.max_exp:
            raise UserError(_wrong(kind, value, name, place))
        return float(value)
    if isinstance(kind, type) and isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool):
        return value
    raise UserError(_wrong(kind, value, name, place))


def _wrong(kind: object, value: object, name: str, place: Place) -> str:
    return f'{place} "{name}" must be {_wanted(kind, place)}, found {_found(value, place)}.'


def _wanted(kind: object, place: Place) -> str:
    """The type in words a person types by."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(_wanted(item, place) for item in arguments))
    if kind is NoneType:
        return _found(place.none, place)
    if origin is Literal:
        return "one of " + ", ".join(_found(item, place) for item in arguments)
    if origin in (tuple, Sequence):
        if origin is Sequence or arguments[-1] is ...:
            return f"{'a list' if place.python else 'an array ([…])'} of {_wanted(arguments[0], place)}"
        return f"an array of {len(arguments)} ({', '.join(_wanted(each, place) for each in arguments)})"
    if origin is Callable:
        return "a function"
    if origin in (dict, Mapping) or (is_dataclass(kind) and not place.python):
        return "a table of fields"
    if not isinstance(kind, type):
        return str(kind)
    if kind in (str, Path):
        return WORDS[str] if not place.python else "text" if kind is str else "a path"
    return WORDS.get(kind) or CLASSES.get(kind.__name__) or _a(kind)


def _found(value: object, place: Place) -> str:
    if value is None:
        return str(None) if place.python else "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        return f"one of {value.bit_length()} bits"
    if isinstance(value, list | tuple):
        more = ", …" if len(value) > MOST_SHOWN else ""
        return f"[{', '.join(_found(item, place) for item in value[:MOST_SHOWN])}{more}]"
    if isinstance(value, Mapping):
        return f"a table of {', '.join(map(str, value)) or 'nothing'}"[:60]
    if not isinstance(value, str | int | float):
        return _a(type(value))
    text = SURROGATE.sub("\ufffd", f'"{value}"' if isinstance(value, str) else str(value))
    return text if len(text) <= 60 else text[:57] + "…"


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOUaeio' else 'a'} {kind.__name__}"
