"""A model card: what somebody else wrote stays to the letter, what is ours is found and written anew."""

from __future__ import annotations

import pytest
import yaml

from nanogpt_edit.common.card import Card, card_text, entry, read_card

THEIRS = '---\n# by hand\nlicense: mit\nlanguage:\n- en   # kept\n"tags": [a, b]\n---\n\n# Title\n\ntext --- here\n'


@pytest.mark.parametrize("text", ["", "# Only text\n", THEIRS, "---\nlicense: mit\n---\n"])
def test_what_somebody_wrote_comes_back(text: str) -> None:
    card = read_card(text)
    assert not card.is_ours
    assert card_text(card).strip() == text.strip()
    ours = Card(card.theirs, card.their_metadata, "made", "results", {"tags": entry("tags", ["x"])})
    again = read_card(card_text(ours))
    assert (again.theirs, again.their_metadata) == (card.theirs, card.their_metadata)
    assert (again.made, again.results, again.is_ours) == ("made", "results", True)
    assert card_text(again) == card_text(ours)


def test_an_entry_that_both_have_is_theirs() -> None:
    card = read_card(THEIRS)
    ours = Card(card.theirs, card.their_metadata, "made", metadata={n: entry(n, "x") for n in ("tags", "base_model")})
    metadata = yaml.safe_load(card_text(ours).split("---\n")[1])
    assert metadata == {"license": "mit", "language": ["en"], "tags": ["a", "b"], "base_model": "x"}
    assert "# by hand\n" in card_text(ours)


def test_a_card_of_an_earlier_version_is_ours() -> None:
    old = "<!-- nanogpt_edit: what follows is written anew whenever the model is saved -->\n## What was done\n"
    assert read_card(old) == Card(made="## What was done")
