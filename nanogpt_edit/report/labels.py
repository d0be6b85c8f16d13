"""The words and number formats of the report: metric names, percentages, points, p-values.

Every number a reader sees goes through here, in the page, the Markdown, and the terminal.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from nanogpt_edit.common.stats import Difference, Interval
from nanogpt_edit.common.words import count as count  # for the templates
from nanogpt_edit.evaluation.prompt_records import Rule
from nanogpt_edit.report.expect import Expectation, parse_bound
from nanogpt_edit.report.run import is_share

Column = tuple[str, str]
"""(skill, metric), such as ("problems", "pass_at_1")."""
ARROWS = {"better": "▲", "worse": "▼", "changed": "◆", "inconclusive": "≈", "untested": "·"}
"""Of a change, by its verdict."""
MARKS = {"pass": "✓", "fail": "✗", "wrong": "✗", "inconclusive": "?", "undecidable": "?", "not measured": "–"}
"""Of an expectation, by its verdict."""
STAGE_LABELS = {"base": "base", "sft": "SFT", "grpo": "GRPO", "edited": "edited"}
SKILL_LABELS = {
    "problems": "problems",
    "arithmetic": "arithmetic",
    "facts": "facts",
    "probes": "non-math probes",
    "perplexity": "held-out text",
    "edit": "edit",
}
METRIC_LABELS = {
    "well_formed": "well-formed",
    "flexible_pass_at_1": "last number right",
    "thinking_tokens": "thinking tokens",
    "answer_tokens": "answer tokens",
    "recall": "true facts recalled",
    "recall_edited": "true answers to the edited facts",
    "edited": "new answers to the edited facts",
    "non_arithmetic": "answered in words",
    "nats_per_token": "nats per token",
    "perplexity": "perplexity",
    "success": "new answer at rank 1",
    "behind_before": "new answer at rank 1 behind other text before",
    "behind": "new answer at rank 1 behind other text after",
    "exact": "written freely: exactly the new answer",
    "efficacy_before": "p(new) > p(true) before",
    "efficacy": "p(new) > p(true) after",
    "paraphrase_before": "p(new) > p(true) on paraphrases before",
    "paraphrase": "p(new) > p(true) on paraphrases after",
    "neighbourhood_before": "neighbours right before",
    "neighbourhood_after": "neighbours right after",
    "neighbourhood_drop": "neighbours lost",
    "contains": "what is written freely holds the new answer",
    "token_accuracy": "tokens of the new answer right",
    "paraphrase_rank1_before": "new answer at rank 1 on paraphrases before",
    "paraphrase_rank1": "new answer at rank 1 on paraphrases after",
    "neighbourhood_rank1_before": "neighbours first before",
    "neighbourhood_rank1_after": "neighbours first after",
    "score": "harmonic mean of the three",
    "p_target_before": "p(new answer) before",
    "p_target_after": "p(new answer) after",
    "kl": "unrelated text: KL of the next token, nats",
    "top_changed": "unrelated text: likeliest next token changed",
}
KIND_LABELS: Mapping[str, str] = {
    "prompt": "after the prompt",
    "paraphrase": "after a paraphrase",
    "behind": "behind other text",
    "question": "in a question (Q: A:)",
    "alias": "subject under another name",
    "reversed": "subject asked for by the answer",
    "one_hop": "one step further",
    "about": "in a text about the subject",
    "negation": "the sentence negated",
    "claim": "true or false?",
    "neighbour": "other subjects of the relation",
    "attribute": "others that have the new answer",
    "same_subject": "other facts of the subject",
}
RULE_LABELS: Mapping[Rule, str] = {
    "exact": "writes exactly the answer",
    "says": "writes a sentence that holds it",
    "denies": "does not say what it holds to be so",
    "prefers": "p(right) > p(wrong)",
    "recalls": "begins with the answer",
}


def stage_label(name: str) -> str:
    return STAGE_LABELS.get(name, name)


def timed_label(name: str) -> str:
    """A name in timing.json: 'evaluate_sft' -> 'evaluating SFT', 'edited' -> 'the edit'."""
    evaluated = name.removeprefix("evaluate_")
    if evaluated != name:
        return f"evaluating {stage_label(evaluated)}"
    return "the edit" if name == "edited" else stage_label(name).replace("_", " ")


def skill_label(name: str) -> str:
    return SKILL_LABELS.get(name, name.replace("_", " "))


def metric_label(name: str) -> str:
    """pass_at_16 -> 'pass@16'."""
    name = name.rpartition(".")[2]
    if name in METRIC_LABELS:
        return METRIC_LABELS[name]
    if found := re.fullmatch(r"(.+)_at_(\d+)", name):
        return f"{found[1].replace('_', ' ')}@{found[2]}"
    return name.replace("_", " ")


def column_label(column: Column) -> str:
    """('problems', 'pass_at_1') -> 'problems pass@1'."""
    skill, metric = column
    if skill == "perplexity":
        return f"held-out text, {metric_label(metric)}"
    if skill == "edit":
        return {"neighbourhood": "neighbours of the edits"}.get(metric, metric_label(metric))
    if skill == "facts":
        return metric_label(metric)
    if column == ("probes", "non_arithmetic"):
        return "non-math probes answered in words"
    return f"{skill_label(skill)} {metric_label(metric)}"


def column_of(name: str) -> Column:
    """A comparison's metric: 'facts_recall' -> ('facts', 'recall'), 'pass_at_1' -> ('problems', 'pass_at_1')."""
    for skill in SKILL_LABELS:
        if name.startswith(f"{skill}_"):
            return skill, name[len(skill) + 1 :]
    return "problems", name


def change_label(name: str) -> str:
    """A comparison's metric: 'facts_recall' -> 'true facts recalled', 'pass_at_1' -> 'problems pass@1'."""
    return column_label(column_of(name))


def path_label(path: str) -> str:
    """A path into summary.json in words: 'stages.grpo.problems.well_formed' -> 'GRPO, problems well-formed'."""
    match path.split("."):
        case ["stages", stage, skill, *metric]:
            return f"{stage_label(stage)}, {column_label((skill, '.'.join(metric)))}"
        case ["comparisons", pair, *metric]:
            after, _, before = pair.partition("-")
            return f"{stage_label(after)} minus {stage_label(before)}, {change_label('.'.join(metric))}"
        case ["edit", ("known" | "unknown") as part, metric]:
            return f"edits of {part} facts, {metric_label(metric)}"
        case ["edit", "asked", kind, metric] if kind in KIND_LABELS:
            return f"edits, {KIND_LABELS[kind]}: right {metric}"
        case ["edit", metric]:
            return f"edits, {metric_label(metric)}"
        case ["seconds", stage]:
            return "seconds in all" if stage == "total" else f"seconds of {stage.replace('_', ' ')}"
    return path.replace("_", " ").replace(".", ", ")


def number(value: float, *, digits: int = 3) -> str:
    """Significant digits (three unless told), thousands separated: 2·10⁻⁶, 0.0123, 1.94, 37.1, 12,345."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if abs(value) < 1e-4:
        return scientific(value)
    places = max(0, digits - 1 - math.floor(math.log10(abs(value)) + 1e-12))
    return f"{value:,.{min(places, 6)}f}".replace("-", "−")


def percent(value: float) -> str:
    """0.678 -> '67.8%'; exactly all is '100%'."""
    return "100%" if value == 1 else f"{100 * value:.1f}%".replace("-", "−")


def short_percent(value: float) -> str:
    """A share of few: 0.5 -> '50%', 0.333 -> '33.3%'."""
    return f"{100 * value:.3g}%"


def quantity(metric: str, value: float) -> str:
    if metric.rpartition(".")[2].startswith("p_"):
        return probability(value)
    return percent(value) if is_share(metric) else number(value)


def span(metric: str, low: float, high: float) -> str:
    """The two ends of an interval without a repeated unit: '[66.1, 69.5]'."""
    return f"[{_end(metric, low)}, {_end(metric, high)}]"


def _end(metric: str, value: float) -> str:
    return quantity(metric, value).removesuffix("%")


def interval(metric: str, measured: Interval) -> str:
    """'67.8% [66.1, 69.5]'."""
    return f"{quantity(metric, measured.value)} {span(metric, measured.low, measured.high)}"


def signed(metric: str, value: float) -> str:
    """A change: '+4.9' in points for a share, '−0.12' otherwise; what rounds to nothing has no sign."""
    size = f"{100 * abs(value):.1f}" if is_share(metric) else number(abs(value), digits=2)
    if not size.strip("0."):
        return size
    return ("−" if value < 0 else "+") + size


def signed_number(value: float) -> str:
    """An advantage: '+1.62', '−0.35'."""
    return f"{value:+z.2f}".replace("-", "−")


def unit(metric: str) -> str:
    return " points" if is_share(metric) else ""


def change_span(metric: str, change: Difference) -> str:
    """'[+3.1, +6.7]'."""
    return f"[{signed(metric, change.low)}, {signed(metric, change.high)}]"


def p_value(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def probability(value: float) -> str:
    """A model's probability: '0.895'; tiny ones in powers of ten."""
    if value != 0 and abs(value) < 0.001:
        return scientific(value)
    return f"{value:.3f}"


def scientific(value: float, *, digits: int = 1) -> str:
    """At most so many significant digits: 2e-6 -> '2·10⁻⁶'; of three, 1.2e-5 -> '1.2·10⁻⁵'."""
    leading, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{float(leading):g}·{power(10.0 ** int(exponent))}".replace("-", "−")


def effect(value: float) -> str:
    """A cell of the causal trace: '0.42'."""
    return f"{value:z.2f}".replace("-", "−")


def power(value: float) -> str:
    """A power of ten on an axis: 0.0001 -> '10⁻⁴', 1 -> '1'."""
    exponent = round(math.log10(value))
    return "1" if exponent == 0 else "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def duration(seconds: float) -> str:
    """75.3 -> '1 min 15 s'; 8.24 -> '8.2 s'."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def size(n_bytes: float) -> str:
    """1.5e9 -> '1.40 GiB', 3e7 -> '28.6 MiB'."""
    unit, name = (2**30, "GiB") if n_bytes >= 2**30 else (2**20, "MiB")
    return f"{number(n_bytes / unit)} {name}"


def listing(items: Sequence[object]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def bound_label(expectation: Expectation) -> str:
    """'>= 0.98' -> '≥ 98%'; '> 0' of a change -> '> 0 points'."""
    if expectation.verdict == "wrong":
        return expectation.bound
    bound = parse_bound(expectation.bound, key=expectation.metric)
    sign = bound.operator.replace(">=", "≥").replace("<=", "≤")
    if expectation.metric.startswith("seconds."):
        limit = f"{bound.limit:g} s"
    elif expectation.low is None and expectation.verdict != "not measured":
        limit = number(bound.limit)
    elif expectation.metric.startswith("comparisons."):
        limit = f"{100 * bound.limit:g} points" if is_share(expectation.metric) else f"{bound.limit:g}"
    else:
        limit = f"{100 * bound.limit:g}%" if is_share(expectation.metric) else f"{bound.limit:g}"
    return f"{sign} {limit}".replace("-", "−") + (", the value alone" if bound.by_value else "")


def measured(expectation: Expectation) -> str:
    """'99.4% [99.1, 99.6]', with the n that would decide when the interval straddles the bound."""
    if expectation.verdict == "wrong":
        return expectation.reason
    if expectation.value is None:
        return "this run has not come to it"
    metric = expectation.metric
    if expectation.metric.startswith("seconds."):
        return duration(expectation.value)
    if expectation.low is None or expectation.high is None:
        return number(expectation.value)
    if expectation.metric.startswith("comparisons."):
        ends = signed(metric, expectation.low), signed(metric, expectation.high)
        shown = f"{signed(metric, expectation.value)}{unit(metric)} [{ends[0]}, {ends[1]}]"
    else:
        shown = f"{quantity(metric, expectation.value)} {span(metric, expectation.low, expectation.high)}"
    if expectation.verdict == "undecidable":
        return f"{shown}, undecidable with n = {expectation.n}: even a perfect result needs n ≥ {expectation.n_needed}"
    if expectation.verdict != "inconclusive":
        return shown
    if expectation.n_needed is None:
        return f"{shown}, on the bound itself: no n would decide"
    return f"{shown}, n {expectation.n:,}; n ≈ {expectation.n_needed:,} would decide"
