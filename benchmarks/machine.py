"""What a benchmark's times are judged by, the machine's own fp32 matrix peak, and where its result goes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch

from nanogpt_edit.files import write_json
from nanogpt_edit.run_folder import environment


def matrix_peak(device: torch.device | str = "cpu", *, size: int = 3072, tries: int = 5) -> float:
    """FLOP/s of the best of a few square fp32 matrix products."""
    left, right = torch.randn(2, size, size, device=device)
    best = float("inf")
    for _ in range(tries):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def finish(
    record: dict[str, object],
    out: Path | None,
    *,
    details: dict[str, object] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Print `record` as the last line, one JSON object; with `details` and the environment, keep it in `out`."""
    if out is not None:
        write_json(out, {**record, **(details or {}), "environment": environment(torch.device(device))})
    print(json.dumps(record))
