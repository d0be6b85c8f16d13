"""What a person has written: `module:name`, importable or in a file of the folder that the program runs in."""

from __future__ import annotations

import importlib
import os
import sys

from nanogpt_edit.common.errors import UserError


def find_own(name: str, *, what: str, kind: str) -> object:
    """What `module:name` names; `what` it is for ("reward") and of which `kind` it has to be ("function").

    Raises UserError naming what could not be found.
    """
    module_name, _, inner = name.partition(":")
    if os.getcwd() not in sys.path:  # an installed command looks in its own folder instead
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a user's module may fail in any way
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f'{what} "{name}": module "{module_name}" cannot be imported ({reason}).') from error
    found: object = getattr(module, inner, None)
    if found is None:
        raise UserError(f'{what} "{name}": module "{module_name}" has no {kind} "{inner}".')
    return found
