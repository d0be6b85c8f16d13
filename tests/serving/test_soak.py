"""benchmarks/serving_soak.py for some seconds: everybody at once, and weights that are switched there and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from serving_run import small_model

from nanogpt_edit.checkpoint.checkpoint import save

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
def test_nobody_is_answered_wrongly_beside_leavers_rubbish_and_edits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from serving_soak import soak  # here, for the benchmarks are no package

    save(small_model(block_size=256), tmp_path / "m")
    found = soak(str(tmp_path / "m"), 5.0)
    assert (found["wrong"], found["complaints"]) == ([], "")
    statuses = found["statuses"]
    assert isinstance(statuses, dict) and statuses["person 200"] > 10 and statuses["stranger 400"] > 3
    assert not any(" 5" in name for name in statuses)
