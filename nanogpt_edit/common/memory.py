"""The most memory that a part of a run takes: of the GPU once one is in use, else of this process (on Linux).

And memory that nobody uses any more, given back.
"""

from __future__ import annotations

import ctypes
import re
from contextlib import suppress
from pathlib import Path

import torch

STATUS, PEAK_MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): the peak of the resident set becomes its present size


def restart_peak() -> None:
    """Count the peak from here on, without what has been freed before."""
    give_back()
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):  # no Linux, or a /proc that can only be read: the peak of the whole process stands
        PEAK_MARK.write_text(RESET_PEAK, encoding="ascii")


def peak_bytes() -> int | None:
    """The peak since `restart_peak`; None where the machine does not tell it."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return 1024 * int(found[1]) if found else None


def give_back() -> None:
    """Let the system have what has been freed. glibc keeps the pages between blocks that are still in use, after work
    on many tensors of a few megabytes most of what they took."""
    with suppress(OSError, AttributeError, TypeError):  # another C library, or another system
        ctypes.CDLL(None).malloc_trim(0)
