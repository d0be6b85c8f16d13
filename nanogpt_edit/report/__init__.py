"""What people read: the files of a run -> tables, plots, one page. Imports no torch, and of the other rooms
only the records that they write.

`build(run_dir)` writes report.html, report.md and summary.json and returns the `Summary`, `numbers(run_dir)` only
returns it; `terminal_summary(summary)` is what a run prints at its end.
"""

from nanogpt_edit.report.build import build, numbers
from nanogpt_edit.report.summary import Summary
from nanogpt_edit.report.terminal import terminal_summary

__all__ = ["Summary", "build", "numbers", "terminal_summary"]
