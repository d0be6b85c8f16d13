"""What a process frees stays with it, unless its environment says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanogpt_edit.common.freed_memory import CHOSEN_BY

LARGE = 256 * 2**20
JOB = f"""
import re
from pathlib import Path
from nanogpt_edit.common.freed_memory import keep_freed_memory

def resident():
    return 1024 * int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

kept, before = keep_freed_memory(), resident()
block = bytearray({LARGE})
del block
print(kept, resident() - before > {LARGE // 2})
"""


def said(**more: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN_BY} | more
    run = subprocess.run([sys.executable, "-c", JOB], env=environment, capture_output=True, text=True, check=True)
    return run.stdout.strip()


@pytest.mark.skipif(
    not hasattr(os, "confstr") or not (os.confstr_names.get("CS_GNU_LIBC_VERSION")), reason="the C library is not glibc"
)
def test_what_is_freed_stays_unless_the_environment_chooses() -> None:
    assert said() == "True True"
    assert said(MALLOC_TRIM_THRESHOLD_="131072") == "False False"
