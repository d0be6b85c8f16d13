"""What a benchmark's times are judged by, the machine's own peaks, and where its result goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from nanogpt_edit.common.files import write_json
from nanogpt_edit.pipeline.environment import environment

Result = TypeVar("Result")
PRODUCTS_ON_A_GPU = 20  # between two looks at the clock: one alone would be timed with the wait for it


def matrix_peak(
    device: torch.device | str = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
    size: int = 3072,
    tries: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of the best of a few square matrix products, by the seconds of `clock`."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    product = torch.empty_like(left)
    return (
        2
        * size**3
        / best_seconds(lambda: torch.mm(left, right, out=product), torch.device(device), tries=tries, clock=clock)
    )


def copy_bandwidth(device: torch.device | str = "cpu", *, numbers: int = 2**26, tries: int = 5) -> float:
    """Bytes per second, read and written, of the best of a few copies inside the device's memory."""
    source = torch.zeros(numbers, device=device)
    target = torch.ones_like(source)
    return 2 * source.nbytes / best_seconds(lambda: target.copy_(source), torch.device(device), tries=tries)


def best_seconds(
    work: Callable[[], object], device: torch.device, *, tries: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Of `work`, done once or, on a GPU, several times in a row, the best of some tries after one that does not
    count."""
    times = PRODUCTS_ON_A_GPU if device.type == "cuda" else 1

    def row() -> None:
        for _ in range(times):
            work()

    return min([timed(row, clock)[1] for _ in range(tries + 1)][1:]) / times


def timed(work: Callable[[], Result], clock: Callable[[], float] = time.perf_counter) -> tuple[Result, float]:
    """Its result, and its seconds."""
    wait_for_device()
    started = clock()
    result = work()
    wait_for_device()
    return result, clock() - started


def wait_for_device() -> None:
    """Until a GPU, where this process has used one, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def device_memory() -> dict[str, float]:
    """The most memory that tensors have taken on the GPU this process uses, since the last look; nothing on a CPU."""
    if not torch.cuda.is_initialized():
        return {}
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_memory_bytes": float(most)}


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
