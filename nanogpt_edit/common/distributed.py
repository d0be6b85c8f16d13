"""Several processes that do one job together, as `torchrun --nproc_per_node=N -m nanogpt_edit …` starts them.

Every process runs the same program on the same data. Work is dealt out by rank and its results are given to all, in
the order one process would have them, so that what follows needs no thought about ranks. Only the first process (rank
0) writes files and speaks. torch.distributed keeps the group; without one, everything here is that of one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from nanogpt_edit.common import terminal
from nanogpt_edit.common.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")
PATIENCE = timedelta(hours=2)  # the first process may edit or write a report while the others wait


@contextmanager
def joined() -> Iterator[None]:
    """Be one of the processes that torchrun started: gradients travel by NCCL between GPUs, all else by Gloo.

    All but the first fall silent. The program should end with `leave`. Raises UserError when there are fewer GPUs than
    processes, and when another process has died.
    """
    if torch.cuda.is_available():
        here, devices = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if here > devices:
            raise UserError(
                f"torchrun started {here} processes on a machine with {devices} GPU(s) and each needs its own; start "
                f"--nproc_per_node={devices}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to compute on the CPU."
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=PATIENCE)
    else:
        distributed.init_process_group("gloo", timeout=PATIENCE)
    try:
        with nullcontext() if is_first() else _silence():
            yield
    except RuntimeError as error:
        if not _is_lost(error):
            raise
        raise UserError(
            "another process of this run has ended, so this one stops too. What was saved is kept; the same command "
            "goes on from there."
        ) from error
    # Left open after an error: the others may be inside something that this process will never join.
    distributed.destroy_process_group()


@contextmanager
def _silence() -> Iterator[None]:
    """Inside, nothing is said or shown."""
    terminal.quiet()
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _is_lost(error: RuntimeError) -> bool:
    """Does an error say that a process at the other end is gone?"""
    return isinstance(error, distributed.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error)


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def is_first() -> bool:
    """Is this the process that writes files and speaks?"""
    return rank() == 0


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part of `items`: every world_size()-th one, from its rank on."""
    return items[rank() :: world_size()]


def map_over_ranks(items: Sequence[Item], work: Callable[[Sequence[Item]], Sequence[Result]]) -> list[Result]:
    """`work(items)`, one result per item, with the items dealt out to the processes; all of them get all results.

    Every process must call it with the same items. A UserError in one process is raised in all of them.
    """
    if world_size() == 1:
        return list(work(items))
    mistake = ""
    own: Sequence[Result] = ()
    try:
        own = work(shard(items))
    except UserError as error:
        mistake = str(error)
    parts = all_gather((mistake, own))
    for found, _ in parts:
        if found:
            raise UserError(found)
    return [parts[index % world_size()][1][index // world_size()] for index in range(len(items))]


def all_gather(value: Item) -> list[Item]:
    """What each process brings, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    values = [value] * world_size()  # all but its own are overwritten
    distributed.all_gather_object(values, value)
    return values


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor in one piece, also where its shards are with several processes, all of which must ask for it."""
    full: torch.Tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    return full


def all_reduce_sum(values: Sequence[float]) -> list[float]:
    """Each of the `values` added up over all processes."""
    return _reduced(values, distributed.ReduceOp.SUM)


def all_reduce_max(values: Sequence[float]) -> list[float]:
    """The largest of each of the `values` over all processes."""
    return _reduced(values, distributed.ReduceOp.MAX)


def _reduced(values: Sequence[float], operation: distributed.ReduceOp.RedOpType) -> list[float]:
    if world_size() == 1:
        return list(values)
    numbers = torch.tensor(values, dtype=torch.float64)
    distributed.all_reduce(numbers, operation)
    return numbers.tolist()


def barrier() -> None:
    """Go on when every process has come here."""
    all_reduce_sum([0.0])
