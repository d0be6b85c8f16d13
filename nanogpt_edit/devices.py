"""Where a model runs: "auto", "cpu", "cuda", "cuda:1", … as a torch device, and how many CPU threads it may use."""

from __future__ import annotations

import torch

from nanogpt_edit.errors import UserError


def choose_device(name: str = "auto", *, threads: int | None = None) -> torch.device:
    """The device called `name` (auto: a GPU when there is one), with `threads` CPU threads (None: torch's own choice).

    Raises UserError for a name torch does not know, a device this machine does not have, and fewer than one thread.
    """
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads is {threads}; at least 1 is needed.")
        torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        found = ", ".join(["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))])
        raise UserError(f'device "{name}" cannot be used here; this machine has: {found}. Or say auto.') from None
    return device
