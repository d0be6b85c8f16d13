"""`nanogpt-edit cache [list | clear]`: the covariances kept from earlier edits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nanogpt_edit.common.errors import UserError, did_you_mean
from nanogpt_edit.common.sizes import size_in_words

if TYPE_CHECKING:
    from nanogpt_edit.editing.covariance_cache import CachedCovariance

USAGE = """usage: nanogpt-edit cache [list | clear]

  list    show every covariance kept, check it against its hash, and add up their size (the default)
  clear   remove them all; an edit that needs one computes it again

An edit needs the covariance of ordinary text for each of its layers. It is computed once for a model, a text and its
settings, and kept in the folder that NANOGPT_EDIT_CACHE names, or nanogpt_edit in your cache folder."""


def cache(arguments: list[str]) -> int:
    """The verb `cache`."""
    name = arguments[0] if arguments else "list"
    if name in ("-h", "--help"):
        print(USAGE)
        return 0
    if name not in VERBS or len(arguments) > 1:
        stranger = name if name not in VERBS else arguments[1]
        raise UserError(f'cache has no verb "{stranger}"{did_you_mean(stranger, VERBS)} It has: {", ".join(VERBS)}.')
    return VERBS[name]()


def show() -> int:
    from nanogpt_edit.editing.covariance_cache import (  # here, for it imports torch
        cached_covariances,
        default_cache_dir,
    )

    place = default_cache_dir()
    found = cached_covariances(place)
    for each in found:
        print(describe(each))
    print(f"{place}: {len(found)} covariances, {size_in_words(sum(each.size_bytes for each in found))}")
    return 0


def describe(cached: CachedCovariance) -> str:
    """One line: the name's hash, size, and what it holds."""
    name = cached.path.stem.removeprefix("covariance-")[:12]
    holds = (
        "damaged or of another version; computed again when it is needed"
        if cached.covariance is None
        else cached.covariance.describe()
    )
    return f"{name}  {size_in_words(cached.size_bytes):>10}  {holds}"


def clear() -> int:
    from nanogpt_edit.editing.covariance_cache import clear_covariances, default_cache_dir  # here, for it imports torch

    print(f"{size_in_words(clear_covariances(default_cache_dir()))} freed.")
    return 0


VERBS: dict[str, Callable[[], int]] = {"list": show, "clear": clear}
