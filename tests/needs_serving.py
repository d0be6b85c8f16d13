"""What the server and its tests need and is not in every environment: whoever imports this is skipped without it."""

from __future__ import annotations

import pytest

REASON = "the extra [test] brings the server's packages and OpenAI's client, and is not installed here"
uvicorn = pytest.importorskip("uvicorn", reason=REASON)
openai = pytest.importorskip("openai", reason=REASON)
pytest.importorskip("fastapi", reason=REASON)
