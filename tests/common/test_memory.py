"""The peak of a part is its own: memory that was given back before it began is not counted."""

from __future__ import annotations

import sys

import pytest

from nanogpt_edit.common.memory import peak_bytes, restart_peak

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from Linux's /proc")
def test_a_peak_is_what_was_taken_since_it_was_restarted() -> None:
    restart_peak()
    before = peak_bytes()
    assert before is not None
    taken = bytearray(b"x") * (200 * MIB)
    with_it = peak_bytes()
    assert with_it is not None and with_it - before > 150 * MIB
    del taken
    held = peak_bytes()
    assert held is not None and abs(held - with_it) < MIB
    restart_peak()
    after = peak_bytes()
    assert after is not None and after < with_it - 150 * MIB
