"""JSON as it goes over the wire: an answer, or an event of a stream."""

from __future__ import annotations

import json

Json = dict[str, object]
DONE = b"data: [DONE]\n\n"


def event(value: Json) -> bytes:
    """A server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def to_json(value: Json) -> bytes:
    """In UTF-8, without spaces."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
