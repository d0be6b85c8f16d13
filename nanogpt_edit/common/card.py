"""A model card: README.md in a model's directory, with the metadata that a hub's page shows.

Above `MADE` stands what somebody else wrote, in the metadata above `OURS`; that is kept to the letter. What is behind
them is written anew: how the model was made whenever it is saved, its results whenever a report is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import yaml

CARD = "README.md"
MADE = "<!-- nanogpt_edit: what follows is written anew whenever the model is saved -->"
RESULTS = "<!-- nanogpt_edit: what follows is written anew whenever the run's report is made -->"
OURS = "# nanogpt_edit: what follows is written anew whenever the model is saved or its run's report is made\n"
METADATA = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$\n?", re.DOTALL | re.MULTILINE)
TOP_LEVEL = re.compile(r"^(?=[^\s#-])", re.MULTILINE)


@dataclass(frozen=True)
class Card:
    """The parts of a card. Metadata are blocks of YAML by their top-level names, each with its name and line ends."""

    theirs: str = ""
    their_metadata: Mapping[str, str] = field(default_factory=dict)
    made: str = ""
    results: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_ours(self) -> bool:
        """Whether there is a part of ours in it, which may be written anew."""
        return bool(self.made)


def entry(name: str, value: object) -> str:
    """A block of metadata: `entry("tags", ["gpt2"])`."""
    return yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True, width=1000)


def read_card(text: str) -> Card:
    """The parts of a card's text; one that nobody of us wrote is all `theirs`."""
    found = METADATA.match(text)
    theirs, _, ours = found[1].partition(OURS) if found else ("", "", "")
    body, _, own = (text[found.end() :] if found else text).partition(MADE)
    made, _, results = own.partition(RESULTS)
    return Card(body.strip("\n"), _blocks(theirs), made.strip("\n"), results.strip("\n"), _blocks(ours))


def card_text(card: Card) -> str:
    """What `read_card` reads: an entry that both have is theirs."""
    ours = "".join(block for name, block in card.metadata.items() if name not in card.their_metadata)
    metadata = "".join(card.their_metadata.values()) + (OURS + ours if ours else "")
    parts = [f"---\n{metadata}---"] if metadata else []
    parts += [part for part in (card.theirs, f"{MADE}\n{card.made}" if card.made else "") if part]
    parts += [f"{RESULTS}\n{card.results}"] if card.results else []
    return "\n\n".join(parts) + "\n"


def _blocks(metadata: str) -> dict[str, str]:
    """Top-level entries as they stand, comments before the first under ""."""
    parts = [part for part in TOP_LEVEL.split(metadata) if part]
    lines = [part if part.endswith("\n") else f"{part}\n" for part in parts]
    return {part.partition(":")[0].strip("\"' ") if part[0] not in " #-\n" else "": part for part in lines}
