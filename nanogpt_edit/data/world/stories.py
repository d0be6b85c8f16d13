"""The word problems of the embedded world: story types in GSM8K's form, told in several wordings.

A story is a little program that draws its numbers, the wordings of its question, and one rationale line per step. The
program is a row of statements, read from left to right:

    a:addend         a random number from 2 to `largest_addend`
    a:factor         a random number from 2 to `largest_factor`
    d:part(c)        a random number that leaves at least 2 of c
    d:rest(c,k)      a random part of c that leaves a multiple of k
    c=a+b            + - * / of two earlier numbers, or of one and a digit

Division is made exact by drawing the quotient first (`k:factor q:factor n=k*q`, then the story divides n by k). Every
number of a story is at least 2, so that plurals are always right, and none is larger than `LARGEST_VALUE`.

In the texts, `{name}` and `{friend}` are two children, `{He}` and `{he}` the pronoun of the first; `{thing}` and
`{things}` are something to have, and `{crowd}` stands in `{place}`.
"""

from __future__ import annotations

from dataclasses import dataclass

LARGEST_VALUE = 200

NAMES = ("Tom", "Ben", "Sam", "Max", "Leo", "Dan", "Ann", "Mia", "Eva", "Zoe", "Amy", "Lily")
HE = frozenset({"Tom", "Ben", "Sam", "Max", "Leo", "Dan"})
THINGS = (
    ("a book", "books"),
    ("a pen", "pens"),
    ("a card", "cards"),
    ("a ball", "balls"),
    ("a stamp", "stamps"),
    ("an egg", "eggs"),
    ("a toy", "toys"),
    ("an apple", "apples"),
)
CROWDS = (
    ("cars", "in the parking lot"),
    ("birds", "in the tree"),
    ("boats", "in the harbor"),
    ("people", "in the park"),
    ("ducks", "on the lake"),
)


@dataclass(frozen=True)
class Story:
    """One story type. The number of rationale lines is its number of steps."""

    kind: str
    numbers: str  # the program that draws the numbers
    questions: tuple[str, ...]  # wordings, all with the same meaning
    rationale: tuple[str, ...]  # one line per step, each with its equation
    answer: str  # name of the number asked for


STORIES: tuple[Story, ...] = (
    # --- one step ---
    Story("plain", "a:addend b:addend c=a+b", ("What is {a} + {b}?",), ("{a} + {b} = {c}",), "c"),
    Story("plain", "c:addend b:part(c) a=c-b", ("What is {c} - {b}?",), ("{c} - {b} = {a}",), "a"),
    Story("plain", "a:factor b:factor c=a*b", ("What is {a} * {b}?",), ("{a} * {b} = {c}",), "c"),
    Story("plain", "a:factor b:factor c=a*b", ("What is {c} / {b}?",), ("{c} / {b} = {a}",), "a"),
    Story(
        "collecting",
        "a:addend b:addend c=a+b",
        (
            "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
            "{name} had {a} {things}. Then {he} found {b} more. How many {things} does {he} have?",
            "{friend} gives {name} {a} {things}, and {name} finds {b} more. How many {things} does {name} have?",
        ),
        ("{name} has {a} + {b} = {c} {things}.",),
        "c",
    ),
    Story(
        "sharing",
        "a:addend b:part(a) c=a-b",
        (
            "{name} has {a} {things} and gives {b} to {friend}. How many {things} does {name} have left?",
            "{name} had {a} {things}. Then {he} gave {b} of them to {friend}. How many are left?",
        ),
        ("{name} has {a} - {b} = {c} {things} left.",),
        "c",
    ),
    Story(
        "sharing",
        "k:factor q:factor n=k*q",
        (
            "{name} shares {n} {things} equally among {k} friends. How many {things} does each friend get?",
            "{k} friends share {n} {things} equally. How many {things} does each friend get?",
        ),
        ("Each friend gets {n} / {k} = {q} {things}.",),
        "q",
    ),
    Story(
        "buying",
        "a:factor b:factor c=a*b",
        (
            "{name} buys {a} {things} for ${b} each. How many dollars does {he} pay?",
            "{A_thing} costs ${b}. How many dollars do {a} {things} cost?",
        ),
        ("The {things} cost {a} * {b} = {c} dollars.",),
        "c",
    ),
    Story(
        "arriving",
        "a:addend b:addend c=a+b",
        (
            "If there are {a} {crowd} {place} and {b} more {crowd} arrive, how many {crowd} are {place}?",
            "There are {a} {crowd} {place}. Then {b} more arrive. How many {crowd} are {place} now?",
        ),
        ("There are {a} + {b} = {c} {crowd}.",),
        "c",
    ),
    Story(
        "travelling",
        "a:factor b:factor c=a*b",
        (
            "A bike goes {a} miles every hour. How many miles does it go in {b} hours?",
            "{name} walks {a} miles a day. How many miles does {he} walk in {b} days?",
        ),
        ("That is {a} * {b} = {c} miles.",),
        "c",
    ),
    Story(
        "reading",
        "a:addend b:part(a) c=a-b",
        (
            "A book has {a} pages. {name} has read {b} pages. How many pages are left?",
            "{name} reads a book of {a} pages. {He} has read {b} pages. How many pages are left?",
        ),
        ("There are {a} - {b} = {c} pages left.",),
        "c",
    ),
    Story(
        "comparing",
        "a:addend c=2*a",
        (
            "{name} has {a} {things}. {friend} has twice as many. How many {things} does {friend} have?",
            "{name} has {a} {things}, and {friend} has twice as many. How many {things} does {friend} have?",
        ),
        ("{friend} has 2 * {a} = {c} {things}.",),
        "c",
    ),
    # --- two steps ---
    Story(
        "plain",
        "a:addend b:addend c=a+b d:part(c) e=c-d",
        ("What is {a} + {b} - {d}?",),
        ("{a} + {b} = {c}", "{c} - {d} = {e}"),
        "e",
    ),
    Story(
        "plain",
        "a:factor b:factor c=a*b d:addend e=c+d",
        ("What is {a} * {b} + {d}?",),
        ("{a} * {b} = {c}", "{c} + {d} = {e}"),
        "e",
    ),
    Story(
        "collecting",
        "a:addend b:addend c=a+b d:part(c) e=c-d",
        (
            "{name} has {a} {things} and finds {b} more. Then {he} gives {d} to {friend}. "
            "How many {things} does {name} have left?",
            "{name} had {a} {things}. {He} found {b} more and lost {d}. How many {things} does {he} have now?",
        ),
        ("{name} has {a} + {b} = {c} {things}.", "{name} has {c} - {d} = {e} {things} left."),
        "e",
    ),
    Story(
        "sharing",
        "k:factor q:factor c=k*q a:part(c) b=c-a",
        (
            "{name} has {a} {things} and {friend} has {b} {things}. They share them equally among {k} friends. "
            "How many {things} does each friend get?",
            "{name} has {a} {things} and buys {b} more. {He} shares them equally among {k} friends. "
            "How many {things} does each friend get?",
        ),
        ("There are {a} + {b} = {c} {things}.", "Each friend gets {c} / {k} = {q} {things}."),
        "q",
    ),
    Story(
        "buying",
        "a:factor b:factor c=a*b e:addend d=c+e",
        (
            "{name} has ${d}. {He} buys {a} {things} for ${b} each. How many dollars does {he} have left?",
            "{name} buys {a} {things} for ${b} each and pays with ${d}. How many dollars does {he} get back?",
        ),
        ("The {things} cost {a} * {b} = {c} dollars.", "{name} has {d} - {c} = {e} dollars left."),
        "e",
    ),
    Story(
        "travelling",
        "a:factor b:factor c=a*b d:addend e=c+d",
        (
            "A bike goes {a} miles an hour for {b} hours and then {d} miles more. How many miles does it go?",
            "{name} walks {a} miles a day for {b} days and then {d} miles more. How many miles does {he} walk?",
        ),
        ("That is {a} * {b} = {c} miles.", "In all that is {c} + {d} = {e} miles."),
        "e",
    ),
    Story(
        "reading",
        "a:factor b:factor c=a*b e:addend n=c+e",
        (
            "A book has {n} pages. {name} reads {a} pages a day for {b} days. How many pages are left?",
            "{name} reads {a} pages a day of a book of {n} pages. How many pages are left after {b} days?",
        ),
        ("{name} reads {a} * {b} = {c} pages.", "There are {n} - {c} = {e} pages left."),
        "e",
    ),
    Story(
        "baking",
        "a:factor b:factor c=a*b d:part(c) e=c-d",
        (
            "{name} bakes {a} trays of {b} cakes and sells {d} cakes. How many cakes are left?",
            "{name} bakes {a} trays of {b} cakes. {friend} eats {d} cakes. How many cakes are left?",
        ),
        ("{name} bakes {a} * {b} = {c} cakes.", "There are {c} - {d} = {e} cakes left."),
        "e",
    ),
    Story(
        "saving",
        "a:factor b:factor c=a*b d:addend e=c+d",
        (
            "{name} has ${d} and saves ${a} a week. How many dollars does {he} have after {b} weeks?",
            "{name} saves ${a} a week for {b} weeks and gets ${d} more. How many dollars does {he} have?",
        ),
        ("{name} saves {a} * {b} = {c} dollars.", "{name} has {c} + {d} = {e} dollars."),
        "e",
    ),
    Story(
        "comparing",
        "a:addend b:addend c=a+b d=a+c",
        (
            "{name} has {a} {things}. {friend} has {b} more than {name}. How many {things} do they have together?",
            "{name} has {a} {things}, and {friend} has {b} more than that. How many {things} do they have in all?",
        ),
        ("{friend} has {a} + {b} = {c} {things}.", "Together they have {a} + {c} = {d} {things}."),
        "d",
    ),
    Story(
        "selling",
        "b:addend a=2*b c=a+b",
        (
            "{name} sold {a} {things} in April and half as many in May. How many {things} did {he} sell in all?",
            "{name} sells {a} {things} on Monday and half as many on Sunday. How many {things} does {he} sell in all?",
        ),
        ("Half as many is {a} / 2 = {b} {things}.", "In all that is {a} + {b} = {c} {things}."),
        "c",
    ),
    Story(
        "classroom",
        "a:addend b:addend c=a+b d:part(c) e=c-d",
        (
            "A class has {a} boys and {b} girls. {d} of them are sick today. How many children are in class?",
            "There are {a} boys and {b} girls in a class. {d} of them go home. How many children are left?",
        ),
        ("There are {a} + {b} = {c} children.", "There are {c} - {d} = {e} children left."),
        "e",
    ),
    # --- three steps ---
    Story(
        "plain",
        "a:addend b:addend c=a+b d:part(c) e=c-d f:addend g=e+f",
        ("What is {a} + {b} - {d} + {f}?",),
        ("{a} + {b} = {c}", "{c} - {d} = {e}", "{e} + {f} = {g}"),
        "g",
    ),
    Story(
        "buying",
        "a:factor b:factor c=a*b d:factor e:factor f=d*e g=c+f",
        (
            "{name} buys {a} {things} for ${b} each and {d} bags for ${e} each. How many dollars does {he} pay?",
            "{name} buys {a} {things} at ${b} each. {He} also buys {d} bags at ${e} each. "
            "How many dollars does {he} pay in all?",
        ),
        (
            "The {things} cost {a} * {b} = {c} dollars.",
            "The bags cost {d} * {e} = {f} dollars.",
            "In all that is {c} + {f} = {g} dollars.",
        ),
        "g",
    ),
    Story(
        "saving",
        "a:factor b:factor c=a*b d:addend e=c+d f:part(e) g=e-f",
        (
            "{name} has ${d} and saves ${a} a week for {b} weeks. Then {he} spends ${f}. "
            "How many dollars does {he} have left?",
            "{name} saves ${a} a week for {b} weeks, gets ${d} more and spends ${f}. "
            "How many dollars does {he} have left?",
        ),
        (
            "{name} saves {a} * {b} = {c} dollars.",
            "{name} has {c} + {d} = {e} dollars.",
            "{name} has {e} - {f} = {g} dollars left.",
        ),
        "g",
    ),
    Story(
        "baking",
        "a:factor b:factor k:factor c=a*b d:rest(c,k) e=c-d q=e/k",
        (
            "{name} bakes {a} trays of {b} cakes and eats {d}. {He} shares the rest equally among {k} friends. "
            "How many cakes does each friend get?",
            "{name} bakes {a} trays of {b} cakes and sells {d} cakes. {k} friends share the rest equally. "
            "How many cakes does each friend get?",
        ),
        (
            "{name} bakes {a} * {b} = {c} cakes.",
            "There are {c} - {d} = {e} cakes left.",
            "Each friend gets {e} / {k} = {q} cakes.",
        ),
        "q",
    ),
    Story(
        "travelling",
        "a:addend b:addend c=a+b d:part(c) e=c-d f:addend g=e+f",
        (
            "A bus has {a} people. First {b} more get on, then {d} get off and {f} get on. How many people are there?",
            "There are {a} people on a bus. {b} more get on. Then {d} get off and {f} get on. "
            "How many people are there now?",
        ),
        (
            "There are {a} + {b} = {c} people.",
            "There are {c} - {d} = {e} people left.",
            "There are {e} + {f} = {g} people.",
        ),
        "g",
    ),
    Story(
        "reading",
        "a:factor b:factor c=a*b d:addend e=c+d g:addend n=e+g",
        (
            "A book has {n} pages. {name} reads {a} pages a day for {b} days and then {d} pages more. "
            "How many pages are left?",
            "{name} reads {a} pages a day for {b} days and {d} pages on Sunday. The book has {n} pages. "
            "How many pages are left?",
        ),
        (
            "{name} reads {a} * {b} = {c} pages.",
            "{name} reads {c} + {d} = {e} pages.",
            "There are {n} - {e} = {g} pages left.",
        ),
        "g",
    ),
    Story(
        "collecting",
        "a:addend b:addend c=a+b d=a+c e:part(d) f=d-e",
        (
            "{name} has {a} {things}. {friend} has {b} more than {name}. They give {e} away. "
            "How many {things} do they have left?",
            "{name} has {a} {things}, and {friend} has {b} more than that. Together they sell {e}. "
            "How many {things} do they have left?",
        ),
        (
            "{friend} has {a} + {b} = {c} {things}.",
            "Together they have {a} + {c} = {d} {things}.",
            "They have {d} - {e} = {f} {things} left.",
        ),
        "f",
    ),
)
