"""A `View` -> the text of report.html and report.md.

In HTML everything is escaped by the template engine; in Markdown every text that a model or a file supplied goes
through `cell` (in a table or a sentence) or `fenced` (a block): model text is hostile until escaped.
"""

from __future__ import annotations

import math
import re
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nanogpt_edit.common.errors import visible
from nanogpt_edit.common.reasoning import split_completion
from nanogpt_edit.evaluation.prompt_records import RULES
from nanogpt_edit.report import labels
from nanogpt_edit.report.pair import RunPair
from nanogpt_edit.report.plots_edits import token_label
from nanogpt_edit.report.view import View

LONGEST_TEXT = 900
"""Characters of one completion on the page; the raw records hold the rest."""
SHORT_TEXT = 220
"""The same on the first screen."""
FIRST_CURVES = 6
"""Curves that are seen at once; the others are folded."""
FIRST_MOVED = 8
"""Facts that moved most and are seen at once."""
OPEN_FACTS = 12
"""Edited facts that ended alike and are seen at once; more of them are folded."""
MAIN_EDIT_SCORES = (
    "success",
    "behind",
    "exact",
    "paraphrase_rank1",
    "paraphrase",
    "neighbourhood_drop",
    "score",
    "p_target_after",
)
EDIT_SCORES = (
    "success",
    "behind_before",
    "behind",
    "exact",
    "paraphrase_rank1_before",
    "paraphrase_rank1",
    "paraphrase_before",
    "paraphrase",
    "efficacy_before",
    "efficacy",
    "neighbourhood_before",
    "neighbourhood_after",
    "neighbourhood_drop",
    "score",
    "neighbourhood_rank1_before",
    "neighbourhood_rank1_after",
    "contains",
    "token_accuracy",
    "p_target_before",
    "p_target_after",
    "kl",
    "top_changed",
)


def render_html(view: View) -> str:
    """report.html: one file, pictures inline, nothing fetched."""
    css = files("nanogpt_edit.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    template = _environment(autoescape=True).get_template("report.html.j2")
    return visible(template.render(view=view, css=Markup(css))) + "\n"


def render_pair(pair: RunPair) -> str:
    """The page of two runs compared: one file, nothing fetched."""
    css = files("nanogpt_edit.report").joinpath("templates", "report.css").read_text(encoding="utf-8")
    template = _environment(autoescape=True).get_template("pair.html.j2")
    return visible(template.render(pair=pair, css=Markup(css))) + "\n"


def render_markdown(view: View) -> str:
    """report.md: the same in tables; its pictures lie beside it under report_files/."""
    text = visible(_environment(autoescape=False).get_template("report.md.j2").render(view=view))
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def cell(value: object) -> str:
    """Text for one Markdown line or table cell: no markup, no line break, no column break survives."""
    text = " ".join(str(value).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~$#])", r"\\\1", text)


def fenced(text: str) -> str:
    """A fenced block whose fence is longer than any run of backticks inside."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def surprise(logprob: float) -> int:
    """How unlikely a sampled token was, for its shade: 0 (p is 1) to 100 (p is 5% or less)."""
    return round(100 * min(1.0, -logprob / 3))


def unsure(entropy: float) -> int:
    """How unsure the model was of a token's place, for its shade: 0 to 100 (2 nats or more)."""
    return round(100 * min(1.0, entropy / 2))


def strength(advantage: float) -> int:
    """How much a completion was worth beside its group, either way, for its shade: 0 to 100 (2 or more)."""
    return round(100 * min(1.0, abs(advantage) / 2))


def token_title(logprob: float, entropy: float, clipped: int, advantage: float | None) -> str:
    """What pointing at a token says."""
    told = f"p {labels.probability(math.exp(logprob))} (log {labels.signed_number(logprob)})"
    told += f", entropy {labels.number(entropy)} nats"
    told += "" if advantage is None else f", advantage {labels.signed_number(advantage)}"
    return told + {-1: ", held at the lower bound", 1: ", held at the upper bound"}.get(clipped, "")


def clipped(text: str, longest: int = LONGEST_TEXT) -> str:
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


@cache
def _environment(*, autoescape: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("nanogpt_edit.report", "templates"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(
        labels=labels,
        split_completion=split_completion,
        clipped=clipped,
        LONGEST_TEXT=LONGEST_TEXT,
        SHORT_TEXT=SHORT_TEXT,
        token_label=token_label,
        surprise=surprise,
        unsure=unsure,
        strength=strength,
        token_title=token_title,
        FIRST_CURVES=FIRST_CURVES,
        FIRST_MOVED=FIRST_MOVED,
        OPEN_FACTS=OPEN_FACTS,
        MAIN_EDIT_SCORES=MAIN_EDIT_SCORES,
        EDIT_SCORES=EDIT_SCORES,
        RULES=RULES,
    )
    environment.filters.update(inline=lambda picture: Markup(picture.inline), cell=cell, fenced=fenced)
    return environment
