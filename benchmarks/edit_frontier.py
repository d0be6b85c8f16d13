"""What an edit says against what it costs: the trials of edit_methods.py as one picture.

Every trial on the facts that choose is a mark; those of memit are a line along its λ. Further left costs less, further
up says more.

    python benchmarks/edit_frontier.py benchmarks/results/edit_methods_smollm2.jsonl --figure docs
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edit_methods import CHOOSING, Trial, results
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from nanogpt_edit.report.canvas import Picture, colour, draw
from nanogpt_edit.report.pictures import save_picture

STYLES = {
    "memit": ("edited", "o"),
    "memit, values of one norm": ("edited", "D"),
    "emmet": ("accent", "^"),
    "alphaedit": ("good", "v"),
    "rome": ("ink", "x"),
    "ultraedit": ("second", "P"),
    "ft": ("bad", "s"),
    "locft": ("bad", "X"),
    "lora": ("base", "*"),
}
"""Role of the colour, and mark."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("--facts", type=int, default=CHOOSING, help="edited at once in the trials to show")
    parser.add_argument("--figure", type=Path, required=True, help="folder for the picture")
    chosen = parser.parse_args()
    trials = [each for each in results(chosen.results) if each.part == "choose" and each.facts == chosen.facts]
    drawn = picture(sorted(trials, key=lambda trial: strength(trial)))
    save_picture(drawn, chosen.figure / f"{drawn.name}.svg")


def picture(trials: Sequence[Trial]) -> Picture:
    """Share at rank 1 against the KL of ordinary text."""

    def paint(axes: Axes) -> None:
        for way, (role, marker) in STYLES.items():
            shown = [each for each in trials if each.way == way]
            if not shown:
                continue
            xs, ys = ([each.scores[name]["value"] for each in shown] for name in ("kl", "success"))
            line = "-" if way == "memit" else "none"
            axes.plot(xs, ys, linestyle=line, color=colour(role), marker=marker, markersize=5, label=way, clip_on=False)
            for x, y, trial in zip(xs, ys, shown, strict=True):
                if way == "memit" and strength(trial) >= 1000:  # the weaker ones lie too near to each other
                    told = f"λ {strength(trial):,.0f}"
                    axes.annotate(told, (x, y), (5, -10), textcoords="offset points", color=colour("muted"), fontsize=8)
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.0%}"))
        axes.legend(frameon=False, loc="lower right", fontsize=8, labelcolor=colour("muted"))
        foot = "KL of ordinary text, nats per token"
        axes.text(0.5, -0.14, foot, transform=axes.transAxes, ha="center", va="top", color=colour("muted"))

    title = "Share at rank 1 against the KL of ordinary text"
    return draw("edit-frontier", paint, title=title, width=420, height=280, margins=(46, 26, 12, 40))


def strength(trial: Trial) -> float:
    """memit's λ; 0 of other ways."""
    return float(str(trial.settings.get("covariance_weight", 0)))


if __name__ == "__main__":
    main()
