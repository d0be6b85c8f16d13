"""Memory that was freed is kept for what comes next, where the C library is glibc.

Every micro-batch asks for the same large tensors as the one before. glibc gives blocks of more than 32 MiB back to the
kernel at once, which hands them out again page by page, each filled with zeros: a tenth of an SFT step of a 135 M model
in float32, a fifth in bfloat16 (docs/performance.md). Kept, they are there. The peak stays what it is; between two
peaks the process holds more.
"""

from __future__ import annotations

import ctypes
import os

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # mallopt(3)
LARGEST = 2**31 - 1  # a C int
CHOSEN_BY = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def keep_freed_memory() -> bool:
    """Ask the C library to; False where it has no such wish to grant, or the environment says what it is to do."""
    choose = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if choose is None or any(name in os.environ for name in CHOSEN_BY):
        return False
    return all(choose(name, LARGEST) == 1 for name in (MMAP_THRESHOLD, TRIM_THRESHOLD))
