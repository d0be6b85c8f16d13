"""The most memory that a part of a run takes: of the GPU once one is in use, else of this process (on Linux)."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import torch

STATUS, PEAK_MARK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): the peak of the resident set becomes its present size


def restart_peak() -> None:
    """Count the peak from here on."""
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
