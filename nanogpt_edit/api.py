"""What `import nanogpt_edit as ne` offers beyond the rooms' own functions: the shortest way to each result."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError, did_you_mean
from nanogpt_edit.common.files import atomic_file, check_writable, write_text
from nanogpt_edit.common.stats import Interval, share
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.problems import Problem, read_problems
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.editing.patch import EditPatch
from nanogpt_edit.engine.generate import check_samples
from nanogpt_edit.evaluation import suite
from nanogpt_edit.evaluation.facts import FactState, measure_facts
from nanogpt_edit.evaluation.records import Evaluation
from nanogpt_edit.evaluation.suite import EvaluateConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.pipeline.inputs import recipe_for_edit, spared_text
from nanogpt_edit.pipeline.recipe import Recipe, load_recipe
from nanogpt_edit.tracing import tracing
from nanogpt_edit.tracing.tracing import Site, TraceConfig, Traced

if TYPE_CHECKING:
    from nanogpt_edit.report.canvas import Picture

Facts = str | Path | Fact | Sequence[Fact]  # a source of `read_facts`, one, or several
Problems = str | Path | Problem | Sequence[Problem]  # a source of `read_problems`, one, or several


def facts_of(facts: Facts) -> tuple[Fact, ...]:
    """The facts of an argument. Raises UserError when there are none."""
    found = (
        read_facts(facts) if isinstance(facts, str | Path) else (facts,) if isinstance(facts, Fact) else tuple(facts)
    )
    if not found:
        raise UserError("facts is empty; give at least one fact.")
    return found


def problems_of(problems: Problems) -> tuple[Problem, ...]:
    """The problems of an argument. Raises UserError when there are none."""
    if isinstance(problems, str | Path):
        return read_problems(problems)
    found = (problems,) if isinstance(problems, Problem) else tuple(problems)
    if not found:
        raise UserError("problems is empty; give at least one problem.")
    return found


@checked
def edit(
    model: GPT,
    facts: Facts,
    *,
    text: str | Path | Sequence[str] | None = None,
    config: EditConfig | None = None,
    recipe: str | Path | None = None,
    **fields: object,
) -> EditPatch:
    """The patch that makes `model` say every fact's `target_new`; the model itself is left as it is.

    A model loaded from the folder of a run takes the [edit] settings of that run's recipe, and spares the text that the
    run's own edit spares; `recipe` names another. Which, is said. `config` takes the place of these settings, `fields`
    are single ones on top (method="memit", layers=(0, 1), …). `text` takes the place of the recipe's plain text: a
    file, a folder, a hub data set, or a list of documents.
    Raises UserError for a field or a method that is none, for a model from elsewhere without text, and for whatever
    `edit_model` refuses.
    """
    taken = recipe_for_edit(model.source, recipe)
    settings, chosen = with_fields(config or taken.edit, fields), facts_of(facts)
    blocks = None if settings.method == "ft" else spared_text(model, chosen, taken, text=text)
    return edit_model(model, chosen, settings, covariance_blocks=blocks)


def with_fields(config: EditConfig, fields: Mapping[str, object]) -> EditConfig:
    """`config` with some fields changed. Raises UserError for a name that is none."""
    known = {field.name for field in dataclasses.fields(EditConfig)}
    for name in fields:
        if name not in known:
            raise UserError(f'an edit has no setting "{name}"{did_you_mean(name, known)}')
    return dataclasses.replace(config, **dict[str, Any](fields))


@dataclass(frozen=True)
class Scores:
    """What a model says to some facts: shares with 95% intervals over facts. Printed, it is a line for each."""

    facts: tuple[FactState, ...]
    success: Interval
    """The new answer's first token has rank 1."""
    exact: Interval
    """Written freely, the answer is exactly the new one."""
    efficacy: Interval
    """The new answer is more probable than the true one, as is about every second of a model that knows nothing."""
    paraphrase_rank1: Interval | None
    """The new answer's first token has rank 1 on paraphrases; None when no fact has any."""
    paraphrase: Interval | None
    """The new answer is more probable than the true one on paraphrases; None when no fact has any."""
    neighbourhood: Interval | None
    """On neighbours, the true answer is more probable than the new one; None when no fact has any."""

    def __str__(self) -> str:
        shares = {
            "success: the new answer at rank 1": self.success,
            "exact: written freely, exactly it": self.exact,
            "efficacy: p(new) > p(true)": self.efficacy,
            "paraphrases: at rank 1": self.paraphrase_rank1,
            "paraphrases: p(new) > p(true)": self.paraphrase,
            "neighbours: p(true) > p(new)": self.neighbourhood,
        }
        return "\n".join(
            f"{name:<36}{found.value:6.1%}  ({found.low:.1%} to {found.high:.1%}, n = {found.n})"
            for name, found in shares.items()
            if found is not None
        )


@checked
def score(model: GPT, facts: Facts) -> Scores:
    """How far `model`, as it is now, says the new answers of `facts`, and still the old ones to their neighbours."""
    states = measure_facts(model, facts_of(facts))

    def over_facts(wins: Iterable[Sequence[bool]]) -> Interval | None:
        means = [sum(own) / len(own) for own in wins if own]
        return share(means) if means else None

    return Scores(
        facts=states,
        success=share([float(state.new.rank == 1) for state in states]),
        exact=share([float(state.exact) for state in states]),
        efficacy=share([float(state.new.p_token > state.true.p_token) for state in states]),
        paraphrase_rank1=over_facts([[new.rank == 1 for new, _ in state.paraphrases] for state in states]),
        paraphrase=over_facts([[new.p_token > true.p_token for new, true in state.paraphrases] for state in states]),
        neighbourhood=over_facts(
            [[true.p_token > new.p_token for true, new in state.neighbourhood] for state in states]
        ),
    )


@dataclass(frozen=True)
class Trace:
    """Where in the network one prompt's answer is recalled. Printed, it is a table per site; `save` draws one."""

    traced: Traced

    def __str__(self) -> str:
        found = self.traced
        head = f"p({found.target!r}) is {found.clean_p:.1%}, {found.corrupted_p:.1%} with the subject corrupted."
        return "\n\n".join([head, *(self._table(site) for site in found.effect)])

    def _table(self, site: Site) -> str:
        """Points of probability that restoring one token's state at one layer brings back."""
        found = self.traced
        grid = found.effect[site].tolist()
        corner = f"{site}, layer"
        wide = max(len(corner), *(len(repr(token)) + 1 for token in found.tokens))
        lines = [f"{corner:<{wide}}" + "".join(f"{layer:>7}" for layer in range(len(grid[0])))]
        for place, (token, row) in enumerate(zip(found.tokens, grid, strict=True)):
            mark = "*" if found.subject_first <= place <= found.subject_last else " "
            lines.append(f"{mark}{token!r:<{wide - 1}}" + "".join(f"{100 * cell:>7.1f}" for cell in row))
        return "\n".join(lines)

    @checked
    def save(self, path: str | Path, *, site: Site = "resid_post") -> None:
        """Draw the heat map of one site (resid_post, mlp_out, attn_out), as an SVG or (by the file's ending) a PNG."""
        from nanogpt_edit.report.plots_edits import heat_map, visible  # here, for it loads matplotlib

        found = self.traced
        if site not in found.effect:
            raise UserError(f"{site} was not traced; it was {', '.join(found.effect)}.")
        grid = tuple(tuple(row) for row in found.effect[site].tolist())
        picture = heat_map(
            Path(path).stem,
            grid,
            rows=[visible(token) for token in found.tokens],
            columns=range(len(grid[0])),
            top=max(float(each.max()) for each in found.effect.values()),
            title=site,
            marked=[found.subject_first <= place <= found.subject_last for place in range(len(found.tokens))],
        )
        save_picture(picture, Path(path))


def save_picture(picture: Picture, path: Path) -> None:
    """Write a picture as .svg or .png. Raises UserError for any other ending."""
    check_picture(path)
    if path.suffix == ".png":
        with atomic_file(path) as temporary:
            temporary.write_bytes(picture.png())
    else:
        write_text(path, picture.standalone)


def check_picture(path: Path) -> None:
    """Raise UserError where no picture can be written at `path`: another ending, a folder there, none to be made."""
    if path.suffix not in (".svg", ".png"):
        raise UserError(f"{path}: pictures are written as .svg or .png; give the file one of these endings.")
    check_writable(path)


@checked
def trace(
    model: GPT, prompt: str, subject: str, *, target: str | None = None, config: TraceConfig | None = None
) -> Trace:
    """Causal tracing of one prompt: which states, restored, bring the answer back when the subject is corrupted.

    `target` is the answer that is followed (None: what the model itself says next).
    Raises UserError when the subject is not in the prompt.
    """
    return Trace(tracing.trace(model, prompt, subject, target, config))


@checked
def evaluate(model: GPT, problems: Problems, *, n: int = 16, config: EvaluateConfig | None = None) -> Evaluation:
    """`n` graded completions of each problem: `.metrics["problems"]["pass_at_1"]` with its interval, raw `.records`."""
    check_samples(n)
    chosen = problems_of(problems)
    settings = dataclasses.replace(config or EvaluateConfig(), problems=len(chosen), samples=n)
    return suite.evaluate(model, suite.Skills(problems=chosen), settings, stage="model")


@checked
def run(recipe: str | Path | Recipe, *, out: str | Path) -> int:
    """Run a recipe (a packaged name, a path, or a `Recipe`) in the folder `out`; called again, it goes on.

    Returns 0, or 3 when an expectation of the recipe failed.
    """
    from nanogpt_edit.pipeline import pipeline  # here, for it brings every room with it

    return pipeline.run(recipe if isinstance(recipe, Recipe) else load_recipe(recipe), Path(out))
