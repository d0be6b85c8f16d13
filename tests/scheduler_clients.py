"""Clients of a scheduler, without HTTP, and the texts that they are to get."""

from __future__ import annotations

import threading
import time
from itertools import count

import torch

from nanogpt_edit.engine.completion import Fresh, Request
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.serving.lane import Job
from nanogpt_edit.serving.scheduler import Scheduler

PROMPT = (5, 6, 7)
NUMBERS = count()


def request(number: int, row: int = 0, *, tokens: int = 12) -> Request:
    return Request(number, row, 0, PROMPT, Sampling(1.0, None, 1.0, tokens, seed=row), frozenset())


class Client:
    """Asks for `rows` texts, and keeps what comes."""

    def __init__(self, scheduler: Scheduler, rows: int, *, tokens: int = 12, model: str = "m", **job: bool) -> None:
        self.tokens: dict[Request, list[int]] = {}
        self.first: dict[Request, float] = {}
        self.errors: list[Exception] = []
        self.done = threading.Event()
        self.left = rows
        number = next(NUMBERS)
        self.requests = [request(number, row, tokens=tokens) for row in range(rows)]
        scheduler.submit(Job(model, self.requests, self.take, self.fail, **job))

    def take(self, written: list[Fresh]) -> None:
        for each in written:
            self.first.setdefault(each.request, time.monotonic())
            self.tokens.setdefault(each.request, []).append(each.token_id)
            self.left -= each.finish_reason is not None
        if not self.left:
            self.done.set()

    def fail(self, error: Exception) -> None:
        self.errors.append(error)
        self.done.set()

    def texts(self) -> list[list[int]]:
        assert self.done.wait(20) and not self.errors
        return [self.tokens[request] for request in self.requests]


def alone(model: GPT, rows: int, tokens: int) -> list[list[int]]:
    texts = [
        Engine(model).generate([PROMPT], sampling=Sampling(1.0, None, 1.0, tokens, seed=row), n=row + 1)[row].token_ids
        for row in range(rows)
    ]
    return [list(text) for text in texts]


def threads_of(model: GPT) -> int:
    """A question: with how many threads is computed where it is asked?"""
    return torch.get_num_threads()
