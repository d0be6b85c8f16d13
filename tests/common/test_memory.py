"""The peak of a part is its own: memory that was given back before it began is not counted."""

from __future__ import annotations

import platform
import sys

import pytest
import torch

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


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries give back what they please")
def test_what_lies_free_between_blocks_in_use_is_given_back() -> None:
    restart_peak()
    blocks = [torch.ones(16 * 2**10) for _ in range(200 * 16)]  # of 64 KiB
    held = peak_bytes()
    in_use = blocks[::50]
    blocks.clear()
    restart_peak()
    left = peak_bytes()
    assert held is not None and left is not None and left < held - 150 * MIB
    assert len(in_use) == 64
