"""Memory for keys and values: zeros that nobody has to write."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from nanogpt_edit.model.kv_cache import LARGE, zeros

MAPS, STATUS = Path("/proc/self/maps"), Path("/proc/self/status")


def rights_of(tensor: torch.Tensor) -> str:
    """How the memory of a tensor is mapped: "rw-p", the last letter for private."""
    for line in MAPS.read_text(encoding="ascii").splitlines():
        begin, end, rights = re.split("[- ]", line, maxsplit=2)
        if int(begin, 16) <= tensor.data_ptr() < int(end, 16):
            return rights[:4]
    raise AssertionError("no mapping holds the tensor")


def resident_bytes() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("numbers", [8, LARGE])
def test_they_are_zeros(numbers: int, dtype: torch.dtype) -> None:
    found = zeros(2, numbers // 2, device="cpu", dtype=dtype)
    assert found.shape == (2, numbers // 2) and found.dtype == dtype and not found.any()
    found[1] = 3
    assert found.sum(dtype=torch.float64) == 3 * (numbers // 2) and not found[0].any()


@pytest.mark.skipif(not MAPS.exists(), reason="no /proc/self/maps here")
def test_memory_is_taken_where_it_is_written_and_is_this_processs_alone() -> None:
    before = resident_bytes()
    found = zeros(64, LARGE, device="cpu", dtype=torch.float32)  # 256 MiB
    found[5] = 1
    assert resident_bytes() - before < found.nbytes / 8
    assert rights_of(found) == "rw-p"
