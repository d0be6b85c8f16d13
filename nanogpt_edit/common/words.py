"""Numbers as they stand in a sentence."""

from __future__ import annotations


def count(n: int, noun: str) -> str:
    """1 'problem', 2 'problems'."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")
