"""What a model is told in front of its prompts."""

from __future__ import annotations

from nanogpt_edit.data.facts import Fact, Neighbour
from nanogpt_edit.evaluation.in_context import told

EGYPT = Fact(
    "The capital of Egypt is",
    "Egypt",
    target_new="Giza",
    target_true="Cairo",
    paraphrases=("Egypt's capital is",),
    neighbourhood=(Neighbour("The capital of Peru is", "Lima"),),
)
PERU = Fact("The capital of Peru is", "Peru", target_new="Cusco.", target_true="Lima")


def test_the_new_fact_stands_in_front_of_every_prompt() -> None:
    (egypt,) = told([EGYPT])
    assert egypt.prompt == "The capital of Egypt is Giza. The capital of Egypt is"
    assert egypt.paraphrases == ("The capital of Egypt is Giza. Egypt's capital is",)
    assert egypt.neighbourhood == (Neighbour("The capital of Egypt is Giza. The capital of Peru is", "Lima"),)
    assert (egypt.target_new, egypt.target_true, egypt.subject) == ("Giza", "Cairo", "Egypt")


def test_all_facts_of_a_group_are_said_in_order() -> None:
    both = "The capital of Egypt is Giza. The capital of Peru is Cusco."
    egypt, peru, again = told([EGYPT, PERU, EGYPT], at_once=2)
    assert egypt.prompt == f"{both} The capital of Egypt is"
    assert peru.prompt == f"{both} The capital of Peru is"
    assert again.prompt == "The capital of Egypt is Giza. The capital of Egypt is"
