"""A server under everything at once, for minutes: people, leavers, slow and silent connections, rubbish, and edits.

The server is a process of its own and offers one model under two names. `steady` never changes: its answers must be
those of the engine. The weights of `edited` are switched there and back under `Shelf.exclusive`, some times a second:
each of its answers must be wholly that of the one or of the other weights. Nothing may be answered with a status of 500
or more, the server's memory must not grow after a warm-up, and people who behave must not wait longer than a bound.

    python benchmarks/serving_soak.py --model runs/tiny/grpo --seconds 600
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from machine import finish
from serving_client import Connection, Json, Process, completion

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.engine.generate import generate
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.limits import Limits
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.run import serve, shared_tensors

PROMPTS = ("Tom has 3 apples. He buys 14 more. How many apples does Tom have?", "Mia reads 2 pages a day.")
SEEDS, TOKENS = range(4), 24
FACTOR = 1.01  # of the edited weights
PATIENCE_SECONDS = 2.0
RUBBISH: tuple[object, ...] = (None, -1, 0, 1, 2.5, 1e9, 2**70, True, "", "hot", "\u0000", [], {}, [[]], ["a", 1])
FIELDS = ("prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "logprobs", "echo")
FIELDS += ("model", "messages", "stream_options", "return_token_ids", "best_of", "suffix", "logit_bias", "heat")


@dataclass
class Seen:
    """What the clients have met."""

    statuses: Counter[str] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    resident_bytes: list[int] = field(default_factory=list)


# The server's process


def serve_both(model: str) -> None:
    """Offer the model twice, and edit one of the two until the process is ended."""
    shelf = Shelf(shared=shared_tensors("cpu"))
    shelf.add("steady", load(model))
    shelf.add("edited", copy.deepcopy(shelf.open("steady")), parent="steady")
    threading.Thread(target=edit_for_ever, args=(shelf,), daemon=True).start()
    serve(
        shelf,
        port=0,
        limits=Limits(patience_seconds=PATIENCE_SECONDS, connections=200),
        started=lambda address: print(address, file=sys.stderr, flush=True),
    )


def edit_for_ever(shelf: Shelf) -> None:
    original = [weight.detach().clone() for weight in shelf.open("edited").parameters()]
    for turn in range(10**9):
        with shelf.exclusive("edited") as model, torch.no_grad():
            switch(model, original, edited=turn % 2 == 0)
        time.sleep(0.1)


def switch(model: GPT, original: list[torch.Tensor], *, edited: bool) -> None:
    """Weight by weight, with time between: half-edited weights would be seen, could anybody see them."""
    for weight, before in zip(model.parameters(), original, strict=True):
        weight.copy_(before * FACTOR if edited else before)
        time.sleep(0)


# Clients


def answers(model: GPT) -> dict[tuple[str, int], str]:
    """What a lone client gets, by prompt and seed."""
    return {
        (prompt, seed): generate(model, prompt, temperature=1.0, top_k=None, max_new_tokens=TOKENS, seed=seed)[0].text
        for prompt in PROMPTS
        for seed in SEEDS
    }


async def person(port: int, seen: Seen, right: dict[str, list[dict[tuple[str, int], str]]]) -> None:
    """Asks, reads, and checks the answer."""
    connection, model = Connection(port), random.choice(list(right))
    for _ in range(random.randint(1, 5)):
        prompt, seed = random.choice(PROMPTS), random.choice(SEEDS)
        begun = time.perf_counter()
        asked: Json = {"model": model, "prompt": prompt, "seed": seed, "max_tokens": TOKENS}
        status, reply = await connection.post("/v1/completions", asked)
        seen.statuses[f"person {status}"] += 1
        if status == 200:
            seen.waits.append(time.perf_counter() - begun)
            text, _ = completion(reply)
            if text not in [each[prompt, seed] for each in right[model]]:
                seen.wrong.append(f"{model}, {prompt!r}, seed {seed}: {text!r}")
        elif status != 429:
            seen.wrong.append(f"{status}: {reply}")
        await asyncio.sleep(random.random() * 0.2)
    connection.close()


async def stranger(port: int, seen: Seen) -> None:
    """Asks for anything."""
    path = random.choice(("/v1/completions", "/v1/chat/completions", "/v1/models", "/nothing"))
    body: Json = {"prompt": random.choice(PROMPTS), "max_tokens": 4}
    if "chat" in path:
        body = {"messages": [{"role": random.choice(("user", "system", "")), "content": "Tom?"}], "max_tokens": 4}
    for name in random.sample(FIELDS, random.randint(0, 2)):
        body[name] = random.choice(RUBBISH)
    raw = json.dumps(body).encode()
    if random.random() < 0.2:
        place = random.randrange(len(raw))
        raw = raw[:place] + random.randbytes(3) + raw[place + random.randint(0, 5) :]
    with suppress(asyncio.IncompleteReadError, ConnectionError, ValueError):
        await tell(port, post(raw, path), seen, "stranger")


async def leaver(port: int, seen: Seen) -> None:
    """Asks for much, and goes."""
    body: Json = {"prompt": random.choice(PROMPTS), "n": 8, "max_tokens": 200, "stream": random.random() < 0.5}
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(post(json.dumps(body).encode()))
    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(reader.read(random.choice((1, 3000))), random.random() * 0.3)
    writer.transport.abort()
    seen.statuses["leaver"] += 1


async def waiter(port: int, seen: Seen) -> None:
    """Sends a part of a request, or nothing, and waits to be closed."""
    whole = post(json.dumps({"prompt": "a"}).encode())
    await tell(port, whole[: random.randrange(len(whole))], seen, "waiter")


async def slow(port: int, seen: Seen) -> None:
    """Sends byte by byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for byte in post(json.dumps({"prompt": "a"}).encode()):
        writer.write(bytes([byte]))
        if writer.transport.is_closing() or reader.at_eof():
            break
        await asyncio.sleep(0.05)
    writer.transport.abort()
    seen.statuses["slow"] += 1


async def tell(port: int, request: bytes, seen: Seen, who: str) -> None:
    """Send bytes, and note the status that comes, if one does."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        head = await asyncio.wait_for(reader.read(4096), 60)
        status = head.split()[1].decode() if head.startswith(b"HTTP/1.1 ") else "closed"
        seen.statuses[f"{who} {status}"] += 1
        if status.startswith("5"):
            seen.wrong.append(f"{status} to {request!r}: {head!r}")
    finally:
        writer.transport.abort()


def post(body: bytes, path: str = "/v1/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def again(who: Callable[[], Awaitable[None]], until: float) -> None:
    while time.monotonic() < until:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            await who()


async def everybody(process: Process, seconds: float, right: dict[str, list[dict[tuple[str, int], str]]]) -> Seen:
    seen, until, port = Seen(), time.monotonic() + seconds, process.port

    async def look() -> None:
        seen.resident_bytes.append(process.resident_bytes)
        await asyncio.sleep(min(1.0, seconds / 20))

    crowd = [lambda: person(port, seen, right)] * 6 + [lambda: stranger(port, seen)] * 2
    crowd += [lambda: leaver(port, seen)] * 2 + [lambda: waiter(port, seen)] * 4 + [lambda: slow(port, seen)] * 2
    await asyncio.gather(*(again(who, until) for who in (*crowd, look)))
    return seen


def soak(model: str, seconds: float) -> Json:
    """Run it all -> what was seen, and whether it was good."""
    steady = load(model)
    changed = copy.deepcopy(steady)
    with torch.no_grad():
        for weight in changed.parameters():
            weight.mul_(FACTOR)
    right = {"steady": [answers(steady)], "edited": [answers(steady), answers(changed)]}
    command = [sys.executable, str(Path(__file__).resolve()), "--model", model, "--serve"]
    child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert child.stderr is not None
    try:
        said = next((line for line in child.stderr if "http://" in line), "")
        found = re.search(r":(\d+)/", said)
        assert found is not None, said
        seen = asyncio.run(everybody(Process(int(found[1]), child.pid), seconds, right))
    finally:
        child.terminate()
        complaints = child.communicate(timeout=60)[1].strip()
    waits, memory = sorted(seen.waits), seen.resident_bytes
    settled = memory[len(memory) // 4]
    return {
        "seconds": seconds,
        "statuses": dict(sorted(seen.statuses.items())),
        "wrong": seen.wrong[:5],
        "wrong_count": len(seen.wrong),
        "complaints": complaints[-2000:],
        "wait_seconds": {"median": waits[len(waits) // 2], "99%": waits[int(len(waits) * 0.99)], "most": waits[-1]},
        "resident_megabytes": {"after_a_quarter": settled >> 20, "most": max(memory) >> 20, "last": memory[-1] >> 20},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--serve", action="store_true", help="be the server")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    if chosen.serve:
        return serve_both(chosen.model)
    random.seed(0)
    finish({"name": "serving_soak", "model": chosen.model} | soak(chosen.model, chosen.seconds), chosen.out)


if __name__ == "__main__":
    main()
