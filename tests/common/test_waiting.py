"""How threads wait is set before torch is loaded, and only where the person has set nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nanogpt_edit.common import waiting

SHOW = "import os, nanogpt_edit; print(os.environ.get('GOMP_SPINCOUNT'), os.environ.get('KMP_BLOCKTIME'))"


@pytest.mark.parametrize(
    ("own", "found"),
    [
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


@pytest.mark.parametrize(
    ("load", "others", "spins"),
    [
        ("0.10 0.20 0.30 1/80 9133", False, "8000"),
        ("1.70 2.77 2.36 3/80 9133", True, "0"),
        ("1.70 2.77 2.36", False, "8000"),  # no such line as Linux writes
        (None, False, "8000"),
    ],
)
def test_threads_spin_only_where_nobody_else_wants_the_cores(
    load: str | None, others: bool, spins: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if load is not None:
        (tmp_path / "loadavg").write_text(load)
    monkeypatch.setattr(waiting, "LOAD", tmp_path / "loadavg")
    assert waiting.others_running() == others
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    monkeypatch.setattr(sys, "modules", {})
    waiting.wait_patiently()
    assert environment["GOMP_SPINCOUNT"] == spins
