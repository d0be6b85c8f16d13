"""How threads wait for each other, set where the person has set nothing, before torch is loaded.

Torch's threads (OpenMP: libgomp, in some builds Intel's) share out every operator and meet at its end. Who comes first
spins there, by libgomp's default some 300,000 times, before it lets go of its core. On a quiet machine that saves a few
microseconds at every operator. Where other processes want the cores, the one that spins burns the time in which the
last could end: training on two cores beside others was slower by an order of magnitude. So where the cores are wanted
when the program starts, threads do not spin at all, and else they spin for a while only, for what comes later. What
both cost is in docs/performance.md. The setting is read once, when the library is loaded.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

LEFT_ALONE = "NANOGPT_EDIT_WAIT_AS_TORCH"
"""Set to anything, this leaves all as torch comes; for measurements."""
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", LEFT_ALONE)
AMONG_OTHERS = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
ALONE = {"GOMP_SPINCOUNT": "8000"}
LOOKS, LOOK_SECONDS = 3, 0.004

LOAD = Path("/proc/loadavg")


def wait_patiently() -> None:
    """Set how threads wait. Does nothing once torch is there, or where one of `NAMES` is set."""
    if "torch" in sys.modules or any(name in os.environ for name in NAMES):
        return
    os.environ.update(AMONG_OTHERS if others_running() else ALONE)


def others_running() -> bool:
    """Do other processes want the cores just now? They do when some run at every one of a few looks."""
    for look in range(LOOKS):
        if look:
            time.sleep(LOOK_SECONDS)
        try:
            running = int(LOAD.read_text(encoding="ascii").split()[3].partition("/")[0])
        except (OSError, ValueError, IndexError):
            return False  # no Linux
        if running <= 1:  # this process itself
            return False
    return True
