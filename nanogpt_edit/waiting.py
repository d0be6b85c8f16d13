"""How threads wait for each other, set where the person has set nothing, before torch is loaded.

Torch's threads (OpenMP: libgomp, in some builds Intel's) share out every operator and meet at its end. Who comes first
spins there, by libgomp's default some 300,000 times, before it lets go of its core. On a quiet machine that saves a few
microseconds; where another process wants the core, the one that spins burns the time in which the last could end, at
every operator: training on two cores beside one busy process was slower by an order of magnitude. The setting is read
once, when the library is loaded, so it is of no use afterwards.
"""

from __future__ import annotations

import os
import sys

LEFT_ALONE = "NANOGPT_EDIT_WAIT_AS_TORCH"
"""Set to anything, this leaves all as torch comes; for measurements."""
NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", LEFT_ALONE)
SPINS = "0"


def wait_patiently() -> None:
    """Let threads that wait give their core away. Does nothing once torch is there, or where one of `NAMES` is set."""
    if "torch" in sys.modules or any(name in os.environ for name in NAMES):
        return
    os.environ["GOMP_SPINCOUNT"] = SPINS
    os.environ["KMP_BLOCKTIME"] = "0"
