"""Whatever the OpenAPI description allows, and what it does not: no request is answered with a status of 500."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving_run import Served, served, small_model

from nanogpt_edit.serving.models import Shelf


@pytest.fixture(scope="module")
def here() -> Iterator[Served]:
    shelf = Shelf()
    shelf.add("m", small_model())
    with served(shelf) as found:
        yield found


def test_the_description_says_what_is_taken(here: Served) -> None:
    description = here.ask("GET", "/openapi.json")[2].decode()
    assert all(f'"{path}"' in description for path in ("/v1/completions", "/v1/chat/completions", "/v1/models"))


@pytest.mark.slow
def test_schemathesis_finds_no_status_of_500(here: Served, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="schemathesis is not installed; pip install schemathesis brings it")
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
    command += [f"http://127.0.0.1:{here.port}/openapi.json", "--checks", "not_a_server_error", "--seed", "1"]
    command += [
        "--include-path-regex",
        "^/(v1|healthz|metrics)",
        "--max-examples",
        "60",
        "--phases",
        "examples,coverage,fuzzing",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
