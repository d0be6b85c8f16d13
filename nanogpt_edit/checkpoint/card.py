"""The part of a model's card that is known when it is saved: what it is, how it was made, how it is asked, from what.

What was measured comes to it with the report of a run (`report/card.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nanogpt_edit.common.card import CARD, Card, card_text, entry, read_card
from nanogpt_edit.common.files import write_text
from nanogpt_edit.common.reasoning import REASONING_TEMPLATE
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import Kind, LineageEntry
from nanogpt_edit.model.tokenizer import Tokenizer

TAGS: Mapping[Kind, str] = {"pretrained": "pretraining", "sft": "sft", "grpo": "grpo", "edited": "knowledge-editing"}
SAME_WEIGHTS: tuple[Kind, ...] = ("taken", "vocabulary", "template", "note")
PATCHES = "patches/"
LICENCES = ("LICENSE", "LICENCE", "COPYING")


def their_card(text: str) -> Card:
    """What somebody else wrote of a card."""
    card = read_card(text)
    return Card(theirs=card.theirs, their_metadata=card.their_metadata)


def write_card(directory: Path, title: str, model: GPT, tokenizer: Tokenizer | None, patches: Sequence[str]) -> None:
    """Write the card of a model that has just been saved in `directory`, below what is there of somebody else's.

    `patches` are the files of the edits in it. Results that another model's card named are left out.
    """
    file = directory / CARD
    theirs = their_card(file.read_text(encoding="utf-8", errors="replace") if file.is_file() else "")
    metadata = _metadata(model)
    gone = {"base_model"} & metadata.keys()
    if any(each.kind not in SAME_WEIGHTS for each in model.lineage):
        gone.add("model-index")
    kept = {name: block for name, block in theirs.their_metadata.items() if name not in gone}
    parts = (
        *(() if theirs.theirs else (f"# {title}",)),
        f"## What it is\n\n{_sizes(model)}",
        f"## What was done to these weights\n\n{_steps(model.lineage)}",
        f"## How a question is put\n\n{_format(tokenizer, model.lineage)}",
        *((f"## The edits in it\n\n{_edits(patches)}",) if patches else ()),
        f"## Limits\n\n{_limits(model.lineage)}",
        f"## Licence and source\n\n{_source(model.lineage, theirs, directory)}",
    )
    write_text(file, card_text(Card(theirs.theirs, kept, "\n\n".join(parts), metadata=metadata)))


def _metadata(model: GPT) -> dict[str, str]:
    done = [TAGS[each.kind] for each in model.lineage if each.kind in TAGS]
    base = [each.hub for each in model.lineage if each.hub is not None]
    found: dict[str, object] = {"base_model": base[-1]} if base else {}
    found |= {"library_name": "transformers", "pipeline_tag": "text-generation"}
    found["tags"] = list(dict.fromkeys(["nanogpt_edit", model.config.model_type, *done]))
    return {name: entry(name, value) for name, value in found.items()}


def _sizes(model: GPT) -> str:
    config, parameters = model.config, sum(parameter.numel() for parameter in model.parameters())
    return (
        f"A language model of the family {config.model_type} with {parameters:,} parameters in "
        f"{str(model.dtype).removeprefix('torch.')}: {config.n_layer} blocks of width {config.n_embd} with "
        f"{config.n_head} heads each, a vocabulary of {config.vocab_size:,} rows, texts of up to {config.block_size:,} "
        "tokens. `transformers` loads it as it is (`AutoModelForCausalLM.from_pretrained`)."
    )


def _steps(lineage: Sequence[LineageEntry]) -> str:
    lines = [f"{number}. {_step(each)}" for number, each in enumerate(lineage, start=1)]
    return "\n".join(lines).replace("<", "\\<") or "Nothing is recorded."  # else Markdown takes <think> for HTML


def _step(each: LineageEntry) -> str:
    learned = [f"{what} of {whose}" for what, whose in (("text", each.text), ("problems", each.problems)) if whose]
    return f"{each.sentence} ({', '.join(learned)})" if learned else each.sentence


def _format(tokenizer: Tokenizer | None, lineage: Sequence[LineageEntry]) -> str:
    if tokenizer is None:
        return "No vocabulary came with the weights."
    if tokenizer.chat_template == REASONING_TEMPLATE:
        return (
            "As the bare question. The model then writes `<think>` steps `</think><answer>` answer `</answer>` and "
            "stops. The chat template says this format, which is the one it was trained on: the last question, then "
            "`<think>`; it leaves out a system's words and earlier turns."
        )
    if tokenizer.chat_template is None:
        return "As plain text; there is no chat template, and none was trained."
    if any(each.kind == "template" for each in lineage):
        return "By the chat template in `chat_template.jinja`, in which the conversations stood that it was trained on."
    return "By the chat template that came with the model; training here did not teach it another format."


def _edits(patches: Sequence[str]) -> str:
    listed = "\n".join(f"{number}. `{name}`" for number, name in enumerate(patches, start=1))
    return (
        "Facts were written into the weights after training. Each patch holds the facts, how they were written, and "
        f"what it takes to take them out; in the order in which they were applied:\n\n{listed}\n\n"
        "`nanogpt-edit patch show FILE` lists the facts of one. `nanogpt-edit patch revert MODEL --out ORIGINAL` takes "
        "the last one out: the weights are then, bit for bit, those from before it."
    )


def _limits(lineage: Sequence[LineageEntry]) -> str:
    told = ["What this card gives no number for was not measured."]
    kinds = {each.kind for each in lineage}
    if {"sft", "grpo"} & kinds:
        told.append(
            "It was trained on the problems named above; on others, and on longer ones, it may do worse. What it "
            "writes between `<think>` and `</think>` need not be why it gives its answer."
        )
    if "edited" in kinds:
        told.append(
            "An edited fact is what the model says after its prompt; asked in other ways, or for what follows from it, "
            "the model may say what it said before, and other facts may have moved."
        )
    return " ".join([*told, "Nothing was done here to make its answers true or safe."])


def _source(lineage: Sequence[LineageEntry], theirs: Card, directory: Path) -> str:
    hub = [each.hub for each in lineage if each.hub is not None]
    taken = [each.sentence for each in lineage if each.kind == "taken"]
    if hub:
        told = [f"Made from [{hub[-1]}](https://huggingface.co/{hub[-1]})."]
    elif taken:
        told = [f"The weights came from elsewhere: {'; '.join(taken)}."]
    else:
        told = ["Made from nothing: no other model's weights are in it."]
    texts = sorted(path.name for path in directory.iterdir() if path.name.upper().startswith(LICENCES))
    named = theirs.their_metadata.get("license")
    if named is not None:
        told.append(f"Its licence, as it came with it: {named.partition(':')[2].strip()}.")
    if texts:
        told.append(f"The licence's text: {', '.join(texts)}.")
    if named is None and not texts:
        told.append("No licence came with it." if taken else "Nobody has named a licence for it.")
    if theirs.theirs:
        told.append("What is said above this part is the card of the model that it was made from.")
    return " ".join(told)
