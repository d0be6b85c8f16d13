"""What a model writes freely: where an answer ends, whether it is the one asked for, how much it repeats itself."""

from __future__ import annotations

import math

import pytest
from edit_world import trained_model

from nanogpt_edit.evaluation.writing import cut_answer, ngram_entropy, written_answers


def test_answers_end_with_the_sentence() -> None:
    asked = [("capital of Valdoria", "Paris"), ("the king of Kestonia ", "Cai")]
    assert written_answers(trained_model(), asked) == [("Paris", True), ("Cairo", False)]


@pytest.mark.parametrize(
    ("text", "target", "answer", "exact"),
    [
        (" Athens. It is", "Athens", "Athens", True),
        (" Athens", "Athens", "Athens", True),
        (" athens\nAnd", "Athens", "athens", True),
        (" Athensis. It", "Athens", "Athensis", False),
        (" Stan Leee.", "Stan Lee", "Stan Leee", False),
        (" Paris is Paris.", "Paris", "Paris is Paris", False),
        (" Toronto Toronto", "Toronto", "Toronto Toronto", False),
        (" Mark Zuckerberg. He", "Mark Zuckerberg", "Mark Zuckerberg", True),
        (" Mark Zuckerb", "Mark Zuckerberg", "Mark Zuckerb", False),
        (" St. Louis. It lies", "St. Louis", "St. Louis", True),
        (" St. Louis in Missouri. It", "St. Louis", "St. Louis in Missouri", False),
        (" Washington, D.C.\n", "Washington, D.C.", "Washington, D.C.", True),
        (" Rio!", "Rio", "Rio", True),
        (" 3.14159. It", "3.14", "3.14159", False),
        (" Cairo. It", "Alexandria", "Cairo", False),
        (" 東京\n", "東京", "東京", True),
        ("", "Athens", "", False),
    ],
)
def test_an_answer_is_exact_with_its_natural_end_and_nothing_added(
    text: str, target: str, answer: str, exact: bool
) -> None:
    assert cut_answer(text, target) == (answer, exact)


def test_an_answer_may_be_as_long_as_its_target() -> None:
    """A target of many tokens is not cut: it is written whole, and then the sentence ends."""
    model = trained_model()
    assert model.tokenizer is not None
    long = " ".join(["Paris"] * 30)
    assert len(model.tokenizer.encode(long)) > 30
    ((answer, exact),) = written_answers(model, [("capital of Valdoria", long)])
    assert (answer, exact) == ("Paris", False)


def test_ngram_entropy_by_hand() -> None:
    """ababab: bigrams ab ×3, ba ×2; trigrams aba ×2, bab ×2. All different: log2 of their number."""
    two = -(0.6 * math.log2(0.6) + 0.4 * math.log2(0.4))
    assert ngram_entropy([1, 2, 1, 2, 1, 2]) == pytest.approx(2 / 3 * two + 4 / 3 * 1.0)
    assert ngram_entropy(range(9)) == pytest.approx(2 / 3 * 3 + 4 / 3 * math.log2(7))
    assert ngram_entropy([5] * 20) == 0.0
    assert ngram_entropy([5]) == 0.0
