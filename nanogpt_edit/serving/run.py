"""The server as a process: uvicorn, with connections that are closed when they wait too long."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import uvicorn

from nanogpt_edit.common import stopping
from nanogpt_edit.common.device import choose_device
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.serving.app import make_app
from nanogpt_edit.serving.connections import patient
from nanogpt_edit.serving.limits import Limits
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.shared_tensors import SharedTensors

LAST_PORT = 65_535
BACKLOG = 128
ENDING_SECONDS = 30  # for what runs when the server is told to end


def serve_models(
    sources: Sequence[str],
    *,
    host: str,
    port: int,
    token: str | None,
    names: tuple[str, ...],
    origins: tuple[str, ...],
    device: str,
    started: Callable[[str], object],
) -> None:
    """`serve`, from what a person names. Raises UserError as `Shelf.of`, `Limits` and `serve` do."""
    limits = Limits(host=host, token=token, names=names, origins=origins)
    check_port(port)
    serve(Shelf.of(sources, device=device, shared=shared_tensors(device)), port=port, limits=limits, started=started)


def watch_run(run_folder: Path, *, port: int, device: str, started: Callable[[str], object]) -> None:
    """`serve` for a run that may be under way. Raises UserError as `Shelf.watching` and `serve` do."""
    check_port(port)
    serve(Shelf.watching(run_folder, device=device, shared=shared_tensors(device)), port=port, started=started)


def shared_tensors(device: str) -> SharedTensors | None:
    """Where the weights are to lie for a process of its own to write with them; None: a thread of this one does."""
    return SharedTensors() if SharedTensors.possible(choose_device(device)) else None


def serve(
    shelf: Shelf,
    *,
    port: int = 8000,
    limits: Limits | None = None,
    room: Room | None = None,
    started: Callable[[str], object] = lambda address: None,
) -> None:
    """Serve until a signal comes; texts that are being written then are finished first.

    `started` is called with the address (port 0 takes a free one). Raises UserError when the port is taken.
    """
    limits, room = limits or Limits(), room or Room()
    leave_a_core()
    with listening(limits.host, port) as bound:
        server = uvicorn.Server(settings(shelf, limits, room))
        stopping.finish_within(ENDING_SECONDS + 5)
        started(address_of(bound))
        server.run([bound])


def leave_a_core() -> None:
    """Compute with a thread fewer than torch would, unless OMP_NUM_THREADS says how many: what reads requests needs a
    core too, and all threads of a product wait for the last."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))


def settings(shelf: Shelf, limits: Limits, room: Room) -> uvicorn.Config:
    """uvicorn's, without its log of every request, and of clients that are wrong or gone."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return uvicorn.Config(
        make_app(shelf, limits=limits, room=room),
        http=patient(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        h11_max_incomplete_event_size=limits.header_bytes,
        timeout_keep_alive=int(limits.patience_seconds),
        timeout_graceful_shutdown=ENDING_SECONDS,
    )


def check_port(port: int) -> None:
    """Raise UserError for a number that no port has."""
    if not 0 <= port <= LAST_PORT:
        raise UserError(f"port is {port}; a port is a number from 0 (any that is free) to {LAST_PORT}.")


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UserError for an address that is none, or taken."""
    check_port(port)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        # By its protocol's number asyncio knows it for TCP, and sends what is written at once: without, 40 ms later.
        bound = socket.socket(family, kind, protocol or socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise unusable(host, port, error) from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise unusable(host, port, error) from None
    return bound


def unusable(host: str, port: int, error: OSError | UnicodeError) -> UserError:
    """Why an address cannot be listened on."""
    reason = (getattr(error, "strerror", None) or "it is no address").lower()
    return UserError(f"{host}:{port} cannot be listened on ({reason}); choose another --host or --port.")


def address_of(bound: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = bound.getsockname()[:2]
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"
