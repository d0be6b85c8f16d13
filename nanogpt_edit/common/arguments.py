"""The arguments of the public functions, read as their annotations say before anything is done with them.

What a person gets wrong in Python is answered as a flag or a recipe's field is: by a sentence that names it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, get_type_hints

from nanogpt_edit.common.errors import UserError, about
from nanogpt_edit.common.records import Place, check_sound, to_value

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`function`, called with arguments of the types it names or not at all.

    Anything iterable does for a sequence, and a dictionary of its fields for a record. Raises UserError that names the
    function, the argument and what is right.
    """
    name = function.__qualname__ if "." in function.__qualname__ else f"ne.{function.__name__}"
    place, signature = Place(name, python=True), inspect.signature(function)
    kinds = functools.cache(functools.partial(get_type_hints, function))
    anything_by_name = inspect.Parameter.VAR_KEYWORD
    plain: Callable[..., Result] = function

    @functools.wraps(function)
    def checked_call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            given = signature.bind(*arguments, **named)
        except TypeError as error:
            raise UserError(f"{name}: {error}; it is called as {name}{signature}.") from None
        for argument, value in given.arguments.items():
            if argument in kinds() and signature.parameters[argument].kind is not anything_by_name:
                given.arguments[argument] = to_value(kinds()[argument], value, argument, place)
                with about(name):
                    check_sound(given.arguments[argument], argument)
        return plain(*given.args, **given.kwargs)

    return checked_call
