"""How much memory something will take, said before it is taken: an estimate above what the machine has is a mistake."""

from __future__ import annotations

import os

from nanogpt_edit.common.errors import UserError

WHERE_UNKNOWN = 1 << 40  # the bound on a machine that does not say how much memory it has


def check_fits(what: str, needed_bytes: float, *, remedy: str) -> None:
    """Raise UserError when `what` would need more memory than the machine has; `remedy` says what to lower."""
    limit = machine_bytes()
    if needed_bytes > limit:
        raise UserError(
            f"{what} would need about {size_in_words(needed_bytes)} of memory, and this machine has "
            f"{size_in_words(limit)}; {remedy}."
        )


def machine_bytes() -> int:
    """The machine's memory, in use or not."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # where it cannot be asked (Windows has no sysconf)
        return WHERE_UNKNOWN


def size_in_words(size_bytes: float) -> str:
    """1536 -> '1.5 KiB'."""
    size, units = float(size_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size, units = size / 1024, units[1:]
    return f"{size:,.0f} {units[0]}" if units[0] == "bytes" else f"{size:,.1f} {units[0]}"
