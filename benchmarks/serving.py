"""The server under load: its tokens per second beside the engine's own, and whether company changes a text.

`--clients` at once ask `--requests` times each: twenty prompts with four seeds, over and over. A lone client asks for
these eighty first, one after the other; then 8 and 32 clients ask in turns with the engine, which writes the same texts
in one process with nothing around it. An answer that is not the lone client's, and a status that is neither 200 nor
429, are counted. The clients are a process of their own on the same machine.

    python benchmarks/serving.py --model runs/tiny/grpo
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
from machine import finish
from serving_client import Connection, Json, completion, server

from nanogpt_edit.checkpoint.checkpoint import load
from nanogpt_edit.data.problems import read_problems
from nanogpt_edit.engine.completion import Request
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of

DIFFERENT = 80  # requests
GOAL = 0.85  # of the engine's own tokens per second, at the most clients


@dataclass
class Load:
    """What came of all clients' requests."""

    seconds: float = 0.0
    texts: dict[int, str] = field(default_factory=dict)
    tokens: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    waits: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return self.tokens / self.seconds


def asked(prompts: Sequence[str], count: int, tokens: int, temperature: float) -> list[Json]:
    """The requests; after `DIFFERENT` they begin again."""
    settings: Json = {"temperature": temperature, "top_k": 50, "max_tokens": tokens}
    different = [{"prompt": prompts[i % len(prompts)], "seed": i // len(prompts)} | settings for i in range(DIFFERENT)]
    return [different[i % DIFFERENT] for i in range(count)]


async def ask(port: int, requests: Sequence[Json], clients: int) -> Load:
    """All requests, by so many clients; one that is told to come back later does."""
    waiting, load, begun = deque(enumerate(requests)), Load(), time.perf_counter()

    async def client() -> None:
        connection = Connection(port)
        while waiting:
            number, request = waiting.popleft()
            asked_at = time.perf_counter()
            status, reply = await connection.post("/v1/completions", request)
            load.statuses[status] += 1
            if status == 429:
                waiting.append((number, request))
                await asyncio.sleep(0.1)
            elif status == 200:
                load.texts[number], tokens = completion(reply)
                load.tokens += tokens
                load.waits.append(time.perf_counter() - asked_at)
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    load.seconds = time.perf_counter() - begun
    return load


@torch.inference_mode()
def write(model: GPT, requests: Sequence[Json], rows: int) -> Load:
    """The same texts from the engine alone."""
    tokenizer, load = tokenizer_of(model), Load()
    prompts = [tokenizer.encode(str(each["prompt"])) for each in requests]
    samplings = [
        Sampling(
            temperature=float(str(each["temperature"])),
            top_k=50,
            max_new_tokens=int(str(each["max_tokens"])),
            seed=int(str(each["seed"])),
        )
        for each in requests
    ]
    rows_wanted = deque(Request(i, 0, 0, prompt, samplings[i], tokenizer.stop_ids) for i, prompt in enumerate(prompts))
    most = max(sampling.max_new_tokens for sampling in samplings)
    begun = time.perf_counter()
    batch = Engine(model).open(rows, new_tokens=most, longest_prompt=max(map(len, prompts)))
    while rows_wanted or batch.rows:
        if rows_wanted and batch.free:
            batch.admit([rows_wanted.popleft() for _ in range(min(batch.free, len(rows_wanted)))])
        for found in batch.step(refill=bool(rows_wanted)):
            shown = [token_id for token_id in found.token_ids if token_id not in tokenizer.end_ids]
            load.texts[found.prompt_index] = tokenizer.decode(shown)
            load.tokens += len(found.token_ids)
    load.seconds = time.perf_counter() - begun
    return load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--clients", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--requests", type=int, default=20, help="of each client")
    parser.add_argument("--tokens", type=int, default=128, help="of a text at most")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--pairs", type=int, default=3, help="times that server and engine take turns")
    parser.add_argument("--threads", type=int, default=1, help="of the engine; the server's are OMP_NUM_THREADS")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    model = load(chosen.model)
    prompts = [problem.question for problem in read_problems("example")]
    most = max(chosen.clients)
    requests = asked(prompts, most * chosen.requests, chosen.tokens, chosen.temperature)
    rates: Json = {}
    with server([chosen.model]) as process:
        asyncio.run(ask(process.port, requests[:40], 4))  # a warm-up
        lone = asyncio.run(ask(process.port, requests[:DIFFERENT], 1))
        alone = write(model, requests[:DIFFERENT], 1)
        rates["1"] = {"server": lone.rate, "engine": alone.rate, "ratio": lone.rate / alone.rate}
        print(f"1 client: {rates['1']}, {Counter(lone.statuses)}, wait {median(lone.waits):.3f} s")
        for clients in chosen.clients:
            mine = requests[: clients * chosen.requests]
            pairs = [
                (asyncio.run(ask(process.port, mine, clients)), write(model, mine, clients))
                for _ in range(chosen.pairs)
            ]
            wrong = sum(
                each.texts[i] != lone.texts[i % DIFFERENT] for pair in pairs for each in pair for i in range(len(mine))
            )
            statuses = sum((each.statuses for each, _ in pairs), Counter[int]())
            waits = sorted(wait for each, _ in pairs for wait in each.waits)
            rates[str(clients)] = {
                "server": median(each.rate for each, _ in pairs),
                "engine": median(each.rate for _, each in pairs),
                "ratio": median(ours.rate / own.rate for ours, own in pairs),
                "other_than_alone": wrong,
                "statuses": dict(statuses),
                "wait_median_seconds": waits[len(waits) // 2],
                "wait_99_percent_seconds": waits[int(len(waits) * 0.99)],
            }
            print(f"{clients} clients: {rates[str(clients)]}")
        memory = process.resident_bytes
    finish(
        {
            "name": "serving",
            "model": chosen.model,
            "requests": len(requests),
            "mean_tokens": lone.tokens / DIFFERENT,
            "tokens_per_second": rates,
            "unit": "completion tokens per second; the ratio is the server's over the engine's, median over pairs",
            "goal": GOAL,
            "server_resident_bytes": memory,
        },
        chosen.out,
    )


if __name__ == "__main__":
    main()
