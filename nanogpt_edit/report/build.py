"""A run folder -> report.html, report.md, summary.json in it. The same folder gives the same bytes."""

from __future__ import annotations

from pathlib import Path

from nanogpt_edit.common.files import atomic_directory, write_json, write_text
from nanogpt_edit.common.terminal import progress
from nanogpt_edit.report.pictures import save_pictures
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.summary import Summary, summarise


def numbers(run_dir: Path | str) -> Summary:
    """The numbers of a run, whole or half-way, read from its files; nothing is written. Raises as `build` does."""
    return summarise(read_run(Path(run_dir)))


@progress("writing the report")
def build(run_dir: Path | str, *, figures: Path | None = None) -> Summary:
    """Write the report of a run, whole or half-way, into its folder and return its numbers.

    Writes report.html (one file), report.md with its pictures under report_files/, summary.json, and the results into
    the cards of the models (`card.py`); every picture as SVG and PNG into `figures`, if given.
    Raises UserError naming the file when something in the folder is damaged; nothing is
    written then.
    """
    from nanogpt_edit.report.card import renew_cards
    from nanogpt_edit.report.page import render_html, render_markdown  # here, for they load jinja2 and matplotlib
    from nanogpt_edit.report.view import make_view

    folder = Path(run_dir)
    run = read_run(folder)
    summary = summarise(run)
    view = make_view(run, summary)
    html, markdown = render_html(view), render_markdown(view)
    with atomic_directory(folder / "report_files") as pictures:
        for picture in view.pictures:
            (pictures / f"{picture.name}.svg").write_text(picture.standalone, encoding="utf-8")
    write_text(folder / "report.md", markdown)
    write_json(folder / "summary.json", summary.as_json())
    write_text(folder / "report.html", html)
    renew_cards(run, summary)
    if figures is not None:
        save_pictures(view.pictures, figures)
    return summary
