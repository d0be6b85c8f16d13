"""How much a server takes on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """How much is taken on at once."""

    rows: int = 32
    """Texts of one model that are written at the same time."""
    waiting: int = 256
    """Texts that may wait for a row; further requests are told to come back later."""
    new_tokens: int = 1024
    """Of a text at most."""
    prompt_tokens: int = 4096
    """Of a prompt at most."""
    seconds: float = 300.0
    """For a request from its coming to its end; what is written by then is given out."""
    cache_bytes: int | None = None
    """For the keys and values of a model's texts, and its weights once more in an order that a CPU reads faster (None:
    as the engine has it)."""
