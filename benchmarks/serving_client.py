"""A server in a process of its own, and a client of it that costs little: one connection, JSON in and out."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

Json = dict[str, object]


@dataclass(frozen=True)
class Process:
    """A running `nanogpt-edit serve`."""

    port: int
    pid: int

    @property
    def resident_bytes(self) -> int:
        """Of it and its child that writes; what both have in memory counts once."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text(encoding="ascii").split()
        return sum(map(proportional_bytes, (self.pid, *map(int, children))))


def proportional_bytes(pid: int) -> int:
    """Of a process: its own memory, and of what it shares with others its part."""
    told = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    found = re.search(r"^Pss:\s+(\d+) kB$", told, re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


@contextmanager
def server(models: Sequence[str], *flags: str) -> Iterator[Process]:
    """Serve `models` on a free port; ended by SIGTERM."""
    command = [sys.executable, "-m", "nanogpt_edit", "serve", *models, "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said = next((line for line in process.stderr if "http://" in line), "")
        found = re.search(r":(\d+)/", said)
        if found is None:
            raise SystemExit(f"the server did not start: {said}")
        yield Process(int(found[1]), process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        print(process.communicate(timeout=60)[1].strip())


def completion(reply: Json) -> tuple[str, int]:
    """(the first text, tokens of all texts) of an answer of /v1/completions."""
    choices, usage = reply["choices"], reply["usage"]
    assert isinstance(choices, list)
    assert isinstance(usage, dict)
    return str(choices[0]["text"]), int(usage["completion_tokens"])


class Connection:
    """One client. It opens its connection when it has none."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def post(self, path: str, body: Json | bytes) -> tuple[int, Json]:
        """(status, what came)."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        self.writer.write(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
        assert self.reader is not None
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = re.search(r"content-length: (\d+)", head)
        found = await self.reader.readexactly(int(length[1]) if length else 0)
        return int(head.split()[1]), json.loads(found)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.reader = self.writer = None
