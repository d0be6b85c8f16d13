"""Word problems in files, for the tests of what reads them."""

from __future__ import annotations

import json
from pathlib import Path


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def numbered(count: int, *, first: int = 0) -> list[dict[str, str]]:
    return [{"question": f"What is {i} plus 1?", "answer": f"#### {i + 1}"} for i in range(first, first + count)]
