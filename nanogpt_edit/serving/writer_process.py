"""The writer in a process of its own, so that it and whoever reads requests do not share Python's lock.

The steps of a small model are hundreds of operations of a few microseconds each, and between any two of them Python
runs: in one process the time of HTTP and JSON would come on top of theirs. Orders and reports go through a pair of
sockets; the weights lie in memory that both processes see (`shared_tensors.py`).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

import torch

from nanogpt_edit.serving.messages import Order, Report, WriterEnded
from nanogpt_edit.serving.room import Room
from nanogpt_edit.serving.shared_tensors import Borrowed, SharedTensors
from nanogpt_edit.serving.writer import write

log = logging.getLogger(__name__)
ENDING_SECONDS = 5  # for the process to end when its socket is closed


class ProcessWriter:
    """The process, as the one sees it that gives it orders."""

    def __init__(self, room: Room, shared: SharedTensors) -> None:
        """Start it. The models that it is told of must lie in `shared`. Raises OSError where it cannot be started."""
        self.shared, self._sending = shared, threading.Lock()
        self._connection, theirs = Pipe()
        with theirs, ExitStack() as undone:
            undone.callback(self._connection.close)
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
                start_new_session=True,  # a terminal's Ctrl-C is for this process, which lets the other finish
            )
            undone.pop_all()  # it has started
        self._send((room, torch.get_num_threads()))

    def _send(self, thing: object) -> None:
        data = self.shared.dumps(thing)
        with self._sending, suppress(OSError):  # where it has ended, `hear` says so
            self._connection.send_bytes(data)

    def tell(self, order: Order) -> None:
        """Returns at once: the process always reads."""
        self._send(order)

    def hear(self) -> Report:
        """The next report, waited for. Raises WriterEnded."""
        try:
            report: Report = self._connection.recv()
        except (EOFError, OSError):
            raise WriterEnded(f"the process that writes texts has ended ({self._why()})") from None
        return report

    def _why(self) -> str:
        try:
            code = self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            return "it does not answer"
        return f"status {code}" if code >= 0 else f"signal {-code}, {signal.strsignal(-code)}"

    @property
    def ended(self) -> bool:
        """Is it there no more?"""
        return self._process.poll() is not None

    def end(self) -> None:
        """End it, whatever it is at."""
        with self._sending:
            self._connection.close()
        try:
            self._process.wait(ENDING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def main(descriptor: int) -> None:
    """The process. It ends when the other end of its socket is closed, however that came about."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    connection, borrowed = Connection(descriptor), Borrowed()
    room, threads = borrowed.loads(connection.recv_bytes())
    torch.set_num_threads(threads)
    orders: SimpleQueue[Order | None] = SimpleQueue()

    def read() -> None:
        try:
            while True:
                orders.put(borrowed.loads(connection.recv_bytes()))
        except (EOFError, ConnectionError):
            os._exit(0)
        except Exception:
            log.exception("an order cannot be read")
            os._exit(1)

    def tell(report: Report) -> None:
        try:
            connection.send(report)
        except ConnectionError:
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    write(orders, tell, room)


if __name__ == "__main__":
    main(int(sys.argv[1]))
