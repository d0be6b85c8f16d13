"""What one of the doctor's checks found, and the verdict over all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nanogpt_edit.common.errors import UserError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found: `Finding("stop token", "fail", "no loss mask covers </answer>", "…")`."""

    check: str
    level: Level
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.check}: {self.found}" + (f"; {self.remedy}" if self.remedy else "")


def verdict(findings: Sequence[Finding], *, stage: str) -> str:
    """All findings in one line: how many checks, and what is not fine. Raises UserError when one of them failed."""
    if failed := [str(finding) for finding in findings if finding.level == "fail"]:
        raise UserError(f"the doctor stops {stage} before it begins. {'. '.join(failed)}.")
    warned = [str(finding) for finding in findings if finding.level == "warn"]
    if not warned:
        return f"Doctor before {stage}: {len(findings)} checks, all fine."
    return f"Doctor before {stage}: {len(findings)} checks, {len(warned)} to look at. {'. '.join(warned)}."
