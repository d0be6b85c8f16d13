"""What a measurement was made on: the machine, the versions, its fp32 matrix peak; and where a result goes."""

from __future__ import annotations

import json
import os
import platform
import time
from datetime import date
from pathlib import Path

import torch

from nanogpt_edit.files import write_json


def hardware(device: torch.device | str = "cpu") -> dict[str, object]:
    """Processor, cores, threads, versions and today's date."""
    kind = torch.device(device)
    return {
        "device": torch.cuda.get_device_name(kind) if kind.type == "cuda" else processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "date": date.today().isoformat(),
    }


def processor() -> str:
    """The CPU's name as Linux gives it, or what Python knows."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def matrix_peak(device: torch.device | str = "cpu", *, size: int = 1536, tries: int = 3) -> float:
    """FLOP/s of the best of a few square fp32 matrix products."""
    left, right = torch.randn(2, size, size, device=device)
    best = float("inf")
    for _ in range(tries):
        started = time.perf_counter()
        float((left @ right)[0, 0])  # reading a number waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def finish(record: dict[str, object], out: Path | None) -> None:
    """Keep `record` in `out` and print it as the last line, one JSON object."""
    if out is not None:
        write_json(out, record)
    print(json.dumps(record))
