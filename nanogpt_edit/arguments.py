"""The arguments of the public functions, read as their annotations say before anything is done with them.

What a person gets wrong in Python is answered as a flag or a recipe's field is: by a sentence that names it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar, get_type_hints

from nanogpt_edit.errors import UserError, about
from nanogpt_edit.typed import Place, check_sound, to_value

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def checked(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """`function`, called with arguments of the types it names or not at all.

    A list does for a tuple, and a dictionary of its fields for a record. Raises UserError that names the function, the
    argument and what is right.
    """
    call, signature = f"ne.{function.__name__}", inspect.signature(function)
    place, kinds = Place(call, null="None"), functools.cache(lambda: get_type_hints(function))
    plain: Callable[..., Result] = function

    @functools.wraps(function)
    def checked_call(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            given = signature.bind(*arguments, **named)
        except TypeError as error:
            raise UserError(f"{call}: {error}; it is called as {call}{signature}.") from None
        for name, value in given.arguments.items():
            if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                given.arguments[name] = to_value(kinds()[name], value, name, place)
                with about(call):
                    check_sound(given.arguments[name], name)
        return plain(*given.args, **given.kwargs)

    return checked_call
