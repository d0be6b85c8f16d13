"""How many facts of CounterFact a pretrained model takes, at once and batch after batch, and what that costs it.

The values of all facts are found once, on the untouched model (a value does not depend on the other facts), and kept in
`--work`; every point then solves for the weights of the first so many facts, all at once or in batches of 100 or 10,
each on the weights that the ones before left, with a second round for what these do not say, and measures: the new
answer at rank 1 and on paraphrases p(new) > p(true) (of at most `ASKED` facts, evenly taken), their neighbours, simple
arithmetic, and the perplexity of held-out text. A file per point: an interrupted run goes on. Other settings take
another `--work`.

    python benchmarks/sequential_edits.py MODEL counterfact.json --spare wiki.valid.raw --text wiki.test.raw \\
        --work runs/sequential --out benchmarks/results/sequential_edits.json --figure docs
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from machine import finish
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from torch import Tensor

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.files import cache_folder, read_json, write_json
from nanogpt_edit.common.stats import paired_difference, share
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.fact_files import read_facts
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.text import read_text, token_blocks
from nanogpt_edit.data.world.world import sanity_arithmetic
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model, solve_again
from nanogpt_edit.editing.patch import EditedFact
from nanogpt_edit.editing.patch_files import load_patch, save_patch
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.evaluation.answers import is_correct
from nanogpt_edit.evaluation.facts import measure_facts
from nanogpt_edit.evaluation.perplexity import block_nats
from nanogpt_edit.evaluation.suite import solve_here
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.report.canvas import Picture, colour, draw
from nanogpt_edit.report.pictures import save_picture

CHUNK = 25  # facts whose values are found together, and kept
ASKED = 200  # facts of a point that are asked
TEXT_BLOCKS, BLOCK = 16, 256
CONFIG = EditConfig(
    layers=tuple(range(11)), covariance_weight=1000.0, rounds=2, context_weight=0.0, refine_steps=0, learning_rate=0.5,
    steps=25, clamp=2.0, weight_decay=0.5, stop_probability=0.95, n_prefixes=2, prefix_tokens=8, full_stop=True,
    covariance_tokens=65_536,
)  # fmt: skip
WAYS = {"at once": None, "batches of 100": 100, "batches of 10": 10}
LINES = {"at once": ("accent", "-"), "batches of 100": ("grpo", "--"), "batches of 10": ("bad", ":")}
Shares = dict[str, list[float]]
"""Of a model: what is measured -> a share per fact (or problem, or block of text)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("facts")
    parser.add_argument("--spare", required=True, help="text that the edit spares")
    parser.add_argument("--text", required=True, help="held-out text for the perplexity")
    parser.add_argument("--counts", default="1,10,100,300,1000")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--weight", type=float, default=CONFIG.covariance_weight, help="λ (another: another --work)")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path)
    chosen = parser.parse_args()
    config = replace(CONFIG, covariance_weight=chosen.weight)
    counts, ways = [int(count) for count in chosen.counts.split(",")], chosen.ways.split(",")
    model = checkpoint.load(chosen.model)
    facts = different(read_facts(chosen.facts))[: max(counts)]
    spare = blocks_of(chosen.spare, model)
    edited, values = values_of(model, facts, spare, chosen.work)
    held_out = blocks_of(chosen.text, model)[:TEXT_BLOCKS]
    for count in counts:
        for way in ways:
            point(model, edited[:count], values[:count], way, config, spare=spare, text=held_out, work=chosen.work)
    points = [read_json(file) for file in sorted(chosen.work.glob("point-*.json"))]
    if chosen.figure is not None:
        for picture in pictures(points):
            save_picture(picture, chosen.figure / f"{picture.name}.svg")
    record = {"name": "sequential_edits", "model": chosen.model, "settings": asdict(config), "points": points}
    finish(record, chosen.out)


def different(facts: Sequence[Fact]) -> list[Fact]:
    """The facts that ask different prompts: two answers to one cannot both be written."""
    return list({fact.prompt: fact for fact in reversed(facts)}.values())[::-1]


def blocks_of(source: str, model: GPT) -> Tensor:
    return token_blocks(read_text(source, split="test"), tokenizer_of(model), block_size=BLOCK)


def values_of(model: GPT, facts: Sequence[Fact], spare: Tensor, work: Path) -> tuple[list[EditedFact], Tensor]:
    """The value of every fact, found on the untouched model or before."""
    edited: list[EditedFact] = []
    values: list[Tensor] = []
    for first in range(0, len(facts), CHUNK):
        file = work / f"values-{first:05d}.safetensors"
        chunk = facts[first : first + CHUNK]
        if not file.exists():
            found = edit_model(
                model, chunk, replace(CONFIG, rounds=1), covariance_blocks=spare, cache_dir=cache_folder()
            )
            save_patch(found, file)
            say(f"values of {first + len(chunk)} of {len(facts)} facts, {found.seconds:.0f} s")
        patch = load_patch(file)
        edited += patch.edited
        values.append(patch.values)
    return edited, torch.cat(values)


def point(
    model: GPT,
    edited: Sequence[EditedFact],
    values: Tensor,
    way: str,
    config: EditConfig,
    *,
    spare: Tensor,
    text: Tensor,
    work: Path,
) -> None:
    """Edit so many facts, measure the model before and with the patch, and keep what was found."""
    count, size = len(edited), WAYS[way]
    file = work / f"point-{count:05d}-{way.replace(' ', '-')}.json"
    if file.exists() or (size is not None and count <= size):  # one batch is all at once
        return
    started = time.perf_counter()
    config = replace(config, batch_size=size)
    patch = solve_again(model, edited, values, config, covariance_blocks=spare, cache_dir=cache_folder())
    seconds = time.perf_counter() - started
    asked = [each.fact for each in edited[:: -(-count // ASKED)]]
    before = measured(model, asked, text)
    with patch.applied(model):
        after = measured(model, asked, text)
    found = {
        name: {"before": asdict(share(before[name])), "after": asdict(share(own))}
        | ({"change": asdict(paired_difference(before[name], own))} if len(own) > 1 else {})
        for name, own in after.items()
        if name != "nats" and own
    }
    nats = [sum(own["nats"]) / len(own["nats"]) for own in (before, after)]
    factor = float(torch.tensor(nats[1] - nats[0]).exp())
    norms = {layer: update.norm() for layer, update in patch.layers.items()}
    told = {"edits": count, "way": way, "asked": len(asked), "perplexity_factor": factor, "seconds": seconds}
    write_json(file, told | {"update_norms": norms} | found)
    say(f"{count} facts {way}: " + ", ".join(f"{name} {s['after']['value']:.0%}" for name, s in found.items()))


def measured(model: GPT, facts: Sequence[Fact], text: Tensor) -> Shares:
    """What a point tells of a model: a share per fact, per problem, and nats per block of text."""
    states = measure_facts(model, facts)
    problems = sanity_arithmetic()
    sampling = Sampling(temperature=0.0, max_new_tokens=12)
    form = "Question: {}\nAnswer:"
    records = solve_here(
        Engine(model), problems, n=1, sampling=sampling, skill="arithmetic", form=form, label="arithmetic"
    )
    return {
        "success": [float(state.new.rank == 1) for state in states],
        "behind": [float(state.behind is not None and state.behind.rank == 1) for state in states],
        "exact": [float(state.exact) for state in states],
        "paraphrase": [
            sum(new.p_token > true.p_token for new, true in state.paraphrases) / len(state.paraphrases)
            for state in states
            if state.paraphrases
        ],
        "neighbourhood": [
            sum(true.p_token > new.p_token for true, new in state.neighbourhood) / len(state.neighbourhood)
            for state in states
            if state.neighbourhood
        ],
        "arithmetic": [float(is_correct(record.flexible, record.gold)) for record in records],
        "nats": block_nats(model, text),
    }


def pictures(points: Sequence[dict[str, object]]) -> list[Picture]:
    """What the edits reach, and what they cost, against their number; a line per way."""
    shown = {
        "reached": ("New answers at rank 1, and on paraphrases (thin)", ("success", "paraphrase")),
        "kept": ("Neighbours right, and simple arithmetic (thin)", ("neighbourhood", "arithmetic")),
        "perplexity": ("Perplexity of held-out text, after / before", ("perplexity_factor",)),
    }
    return [
        draw(f"sequential-edits-{name}", painter(points, scores), title=title, width=420, height=250,
             margins=(46, 26, 12, 40))
        for name, (title, scores) in shown.items()
    ]  # fmt: skip


def painter(points: Sequence[dict[str, object]], scores: Sequence[str]) -> Callable[[Axes], None]:
    def paint(axes: Axes) -> None:
        for way, (role, style) in LINES.items():
            for score, width in zip(scores, (1.6, 0.8), strict=False):
                line = curve(points, way, score)
                if line and any(point["way"] == way for point in points):
                    label = way if width > 1 else None
                    axes.plot(*zip(*line, strict=True), style, color=colour(role), lw=width, marker="o", markersize=3,
                              label=label)  # fmt: skip
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_locator(FixedLocator(sorted({int(str(point["edits"])) for point in points})))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.legend(frameon=False, fontsize=8, labelcolor=colour("muted"))
        if "perplexity_factor" not in scores:
            axes.set_ylim(-0.03, 1.03)
        axes.text(0.5, -0.14, "facts edited", transform=axes.transAxes, ha="center", va="top", color=colour("muted"))

    return paint


def curve(points: Sequence[dict[str, object]], way: str, score: str) -> list[tuple[int, float]]:
    """(facts edited, score) in order. As many facts as one batch holds are all at once."""
    size = WAYS[way]
    own = [
        each
        for each in points
        if each["way"] == way or (each["way"] == "at once" and size is not None and int(str(each["edits"])) <= size)
    ]
    return sorted((int(str(each["edits"])), value(each, score)) for each in own if score in each)


def value(point: dict[str, object], score: str) -> float:
    """The score of a point; of a share its value after the edit."""
    found = point[score]
    while isinstance(found, dict):
        found = found.get("after", found.get("value"))
    return float(str(found))


if __name__ == "__main__":
    main()
