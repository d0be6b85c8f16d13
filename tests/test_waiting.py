"""How threads wait is set before torch is loaded, and only where the person has set nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from nanogpt_edit import waiting

SHOW = "import os, nanogpt_edit; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, "0 0"),
        ({"GOMP_SPINCOUNT": "77"}, "77 None"),
        ({"OMP_WAIT_POLICY": "active"}, "None None"),
        ({"KMP_BLOCKTIME": "5"}, "None 5"),
        ({waiting.LEFT_ALONE: "1"}, "None None"),
    ],
)
def test_what_a_person_has_set_stays(own: dict[str, str], found: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in waiting.NAMES} | own
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == found
