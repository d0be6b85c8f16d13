"""How far editing goes: success, neighbours and perplexity against the number of facts edited.

A widened `tiny` (width 256) learns 1,200 made-up facts about made-up towns; 1,000 of them are then changed: all in one
batch, or ten batches of a hundred one after the other, or (rome) one by one. The 200 facts that stay are the
neighbours, and the perplexity is that of their sentences. Curves are kept as JSON and drawn; models are kept under
`--work`, so an interrupted run goes on. The last line is one JSON object.

    python benchmarks/edit_scale.py --work runs/edit_scale --out benchmarks/results/edit_scale.json --figure docs
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from machine import finish
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from nanogpt_edit.checkpoint import checkpoint
from nanogpt_edit.common.files import append_jsonl, read_jsonl
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.data.text import token_blocks, token_stream
from nanogpt_edit.editing.config import EditConfig
from nanogpt_edit.editing.editor import edit_model
from nanogpt_edit.evaluation.facts import measure_facts
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.tokenizer import Tokenizer, tokenizer_of
from nanogpt_edit.report.canvas import Picture, colour, draw
from nanogpt_edit.report.pictures import save_picture
from nanogpt_edit.training.pretrain import pretrain
from nanogpt_edit.training.pretrain_config import PretrainConfig

FACTS, EDITED = 1200, 1000
PHRASINGS = ("{} is famous for its", "People visit {} for the", "The pride of {} is the")
GOODS = (
    *("bread", "cheese", "honey", "glass", "paper", "steel", "silver", "copper", "marble", "timber", "cotton", "linen"),
    *("velvet", "leather", "amber", "pearls", "wine", "cider", "olives", "apples", "cherries", "plums", "roses"),
    *("tulips", "horses", "sheep", "salmon", "carpets", "clocks", "violins", "bells", "lamps", "knives", "kites"),
)
SYLLABLES = tuple(consonant + vowel for consonant in "bdfgklmnprstv" for vowel in "aeou")
SIZES = (10, 100, 300, 1000)
BATCH = 100
CONTEXT = 64
SIZES_OF_MODEL = GPTConfig(vocab_size=0, block_size=CONTEXT, n_layer=3, n_head=4, n_embd=256, activation="relu")
TRAINING = PretrainConfig(
    optimizer="muon", muon_learning_rate=0.04, learning_rate=4e-3, warmup_steps=20, schedule="linear", decay_share=0.7,
    final_learning_rate=0.05, batch_size=32, context_tokens=CONTEXT,
)  # fmt: skip
CONFIG = EditConfig(
    layers=(0, 1), covariance_weight=300.0, context_weight=0.1, learning_rate=0.6, steps=40, n_prefixes=0, clamp=3.0,
    weight_decay=0.0, kl_coef=0.0, covariance_tokens=60_000, refine_steps=30, refine_weight=0.0, refine_kl=300.0,
)  # fmt: skip
PUBLISHED = replace(CONFIG, context_weight=0.0, refine_steps=0)
ALPHAEDIT = replace(CONFIG, method="alphaedit", null_share=0.05)
WAYS = {
    "memit as published": PUBLISHED,
    "memit, one batch": CONFIG,
    "memit, batches of 100": replace(CONFIG, batch_size=BATCH),
    "alphaedit, one batch": ALPHAEDIT,
    "rome, one by one": replace(PUBLISHED, method="rome", layers=(0,)),
    "alphaedit, batches of 100": replace(ALPHAEDIT, batch_size=BATCH),
}
LINES = {  # colour and style of each way's curve
    "memit, one batch": ("accent", "-"),
    "memit, batches of 100": ("accent", "--"),
    "alphaedit, one batch": ("second", "-"),
    "alphaedit, batches of 100": ("second", "--"),
    "rome, one by one": ("bad", "-"),
    "memit as published": ("muted", "-"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("runs/edit_scale"), help="where model and curves are kept")
    parser.add_argument("--steps", type=int, default=400, help="training steps of the model")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="numbers of facts edited")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--figure", type=Path, help="folder for the pictures")
    chosen = parser.parse_args()
    facts = made_up_facts()
    model = trained(facts, chosen.work / "model", chosen.steps)
    log = chosen.work / "curves.jsonl"
    done = {(str(r["way"]), int(str(r["edits"]))) for r in read_jsonl(log)} if log.exists() else set()
    for edits in chosen.sizes:
        for way, config in WAYS.items():
            if (way, edits) not in done and edits > (config.batch_size or 0):  # else it is the one batch
                append_jsonl(log, {"way": way, "edits": edits, **measure(model, facts, edits, config)})
                print(json.dumps(read_jsonl(log)[-1]), flush=True)
    points = read_jsonl(log)
    record = {
        "name": "edit_scale",
        "unit": "shares; perplexity of the neighbours' sentences, after / before",
        "model": "GPT-2, 3 layers of width 256",
        "curves": points,
    }
    if chosen.figure is not None:
        for picture in pictures(points):
            for ending in (".svg", ".png"):
                save_picture(picture, chosen.figure / f"{picture.name}{ending}")
    finish(record, chosen.out)


def made_up_facts() -> list[Fact]:
    """Towns of three or four syllables, each known for something, and for something else after the edit."""
    dice = random.Random(0)
    names: dict[str, None] = {}
    while len(names) < FACTS:
        names["".join(dice.choices(SYLLABLES, k=dice.choice((3, 4)))).capitalize()] = None
    facts = []
    for name in names:
        true, new = dice.sample(GOODS, 2)
        prompts = [phrasing.format(name) for phrasing in PHRASINGS]
        facts.append(Fact(prompts[0], name, target_new=new, target_true=true, paraphrases=tuple(prompts[1:]), id=name))
    return facts


def sentences(facts: Sequence[Fact]) -> list[str]:
    return [f"{prompt} {fact.target_true}." for fact in facts for prompt in (fact.prompt, *fact.paraphrases)]


def trained(facts: Sequence[Fact], folder: Path, steps: int) -> GPT:
    """A model that knows the facts by heart; from `folder` if it is there."""
    if (folder / "config.json").exists():
        return checkpoint.load(folder)
    texts = sentences(facts)
    tokenizer = Tokenizer.train([*(f" {good}" for good in GOODS for _ in range(200)), *texts], vocab_size=420)
    model = GPT(replace(SIZES_OF_MODEL, vocab_size=tokenizer.vocab_size), seed=0)
    model.tokenizer = tokenizer
    trainer = pretrain(
        model,
        token_stream(shuffled(texts), tokenizer, context_tokens=CONTEXT),
        token_blocks(texts[:100], tokenizer, block_size=CONTEXT),
        replace(TRAINING, steps=steps),
        seed=0,
        state=folder.parent / "state",
        log=folder.parent / "pretrain.jsonl",
    )
    checkpoint.save(model.eval(), folder, lineage_note=f"learned {len(facts)} made-up facts")
    trainer.clear()
    return checkpoint.load(folder)


def shuffled(texts: Sequence[str]) -> list[str]:
    """Several times, so that other sentences meet in a row of tokens."""
    many = list(texts) * 4
    random.Random(0).shuffle(many)
    return many


def measure(model: GPT, facts: Sequence[Fact], edits: int, config: EditConfig) -> dict[str, float]:
    """Edit the first so many facts; the last 200 are what must stay."""
    changed, staying = facts[:edits], facts[EDITED:]
    blocks = token_blocks(shuffled(sentences(facts[edits:])), tokenizer_of(model), block_size=CONTEXT - 1)
    started = time.perf_counter()
    patch = edit_model(model, changed, config, covariance_blocks=blocks)
    seconds = time.perf_counter() - started
    before, known = nats(model, staying), recalled(model, staying)
    with patch.applied(model):
        states = measure_facts(model, changed)
        after, still = nats(model, staying), recalled(model, staying)
    pairs = [pair for state in states for pair in state.paraphrases]
    return {
        "success": share(state.new.rank == 1 for state in states),
        "paraphrase": share(new.p_token > true.p_token for new, true in pairs),
        "neighbours_before": known,
        "neighbours_after": still,
        "perplexity_factor": float(torch.tensor(after - before).exp()),
        "seconds": seconds,
    }


def recalled(model: GPT, facts: Sequence[Fact]) -> float:
    return share(state.true.rank == 1 for state in measure_facts(model, facts))


def share(flags: Iterable[bool]) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


@torch.no_grad()
def nats(model: GPT, facts: Sequence[Fact]) -> float:
    """Nats per token of the facts' true sentences."""
    tokenizer = tokenizer_of(model)
    total, count = 0.0, 0
    for text in sentences(facts):
        token_ids = torch.tensor([tokenizer.encode(text)])
        total += float(F.cross_entropy(model(token_ids[:, :-1])[0], token_ids[0, 1:], reduction="sum"))
        count += token_ids.shape[1] - 1
    return total / count


def pictures(points: Sequence[dict[str, object]]) -> list[Picture]:
    """One picture per score, a line per way; in batches of a hundred dashed."""
    found = []
    for score, title in (
        ("success", "Edits at rank 1"),
        ("neighbours_after", "Neighbours still recalled"),
        ("perplexity_factor", "Perplexity of the neighbours, after / before"),
    ):

        def paint(axes: Axes, score: str = score, title: str = title) -> None:
            for way, (role, style) in LINES.items():
                line = curve(points, way, score)
                if line:
                    xs, ys = zip(*line, strict=True)
                    marker = "o" if style == "-" else "s"
                    axes.plot(xs, ys, style, color=colour(role), marker=marker, markersize=3, label=way, clip_on=False)
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_locator(FixedLocator(sorted({int(str(point["edits"])) for point in points})))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
            if score == "success":
                axes.legend(frameon=False, fontsize=8, handlelength=3, labelcolor=colour("muted"))
            if score != "perplexity_factor":
                axes.set_ylim(-0.03, 1.03)
            foot = f"facts edited, {title[0].lower()}{title[1:]}"
            axes.text(0.5, -0.14, foot, transform=axes.transAxes, ha="center", va="top", color=colour("muted"))

        found.append(
            draw(
                f"edit-scale-{score.replace('_', '-')}",
                paint,
                title=title,
                width=420,
                height=250,
                margins=(46, 26, 12, 40),
            )
        )
    return found


def curve(points: Sequence[dict[str, object]], way: str, score: str) -> list[tuple[int, float]]:
    """(facts edited, score) in order. Up to a hundred facts a sequence of batches is the one batch."""
    whole = way.replace("batches of 100", "one batch")
    mine = [p for p in points if p["way"] == way or (p["way"] == whole and int(str(p["edits"])) <= BATCH)]
    return sorted((int(str(p["edits"])), float(str(p[score]))) for p in mine)


if __name__ == "__main__":
    main()
