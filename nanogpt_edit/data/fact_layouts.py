"""The layouts in which others publish facts to edit, as `Fact`s.

Each is known by a field of its own: CounterFact as first published (`requested_rewrite`; Meng et al. 2022), EasyEdit's
CounterFact, zsRE and KnowEdit (`ground_truth`; Wang et al. 2023), and MEND's zsRE (`alt`; Mitchell et al. 2022). What
they ask besides becomes a fact's `asked`: portability, by its kind; generation prompts are texts about the subject,
attribute prompts other subjects that have the new answer; a prompt that is a question is asked as one, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.facts import Asked, AskedKind, Fact, Neighbour

PORTABILITY: Mapping[str, AskedKind] = {"subject_aliasing": "alias", "reversed_relation": "reversed"}
"""What the kinds of KnowEdit's portability ask for, in small letters; any other is a step further (`one_hop`)."""


def counterfact(record: Mapping[str, object], where: str) -> Fact:
    """Meng et al.'s layout; the neighbourhood prompts share the fact's own true answer."""
    rewrite = record["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise UserError(f"{where}: requested_rewrite is not an object.")
    subject = text_of(rewrite, "subject", where)
    truth, new = (_target(rewrite, name, where).strip() for name in ("target_true", "target_new"))
    asked = [Asked("about", prompt, new, truth) for prompt in texts_of(record, "generation_prompts", where)]
    asked += [Asked("attribute", prompt, new, new) for prompt in texts_of(record, "attribute_prompts", where)]
    return make_fact(
        where,
        prompt=text_of(rewrite, "prompt", where).replace("{}", subject),
        subject=subject,
        target_new=new,
        target_true=truth,
        paraphrases=texts_of(record, "paraphrase_prompts", where),
        neighbourhood=tuple(Neighbour(text, truth) for text in texts_of(record, "neighborhood_prompts", where)),
        relation=text_of(rewrite, "relation_id", where, optional=True),
        id=str(record.get("case_id", "")),
        asked=tuple(asked),
    )


def easyedit(record: Mapping[str, object], where: str) -> Fact:
    """`prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, and neighbours as `locality_prompt` with
    `locality_ground_truth` or as KnowEdit's `locality`: {kind: [{"prompt", "ground_truth"}]}; `portability` likewise.
    """
    near = [("", record.get("locality_prompt"), record.get("locality_ground_truth"))]
    far = [("", record.get("portability_prompt"), record.get("portability_ground_truth"))]
    prompt, new = text_of(record, "prompt", where), text_of(record, "target_new", where)
    truth = _first_answer(record["ground_truth"], "ground_truth", where)
    return make_fact(
        where,
        prompt=prompt,
        subject=text_of(record, "subject", where),
        target_new=new,
        target_true=truth,
        paraphrases=_present(record, "rephrase_prompt", where),
        neighbourhood=_neighbours([*near, *_by_kind(record, "locality", where)], where),
        relation=text_of(record, "relation_id", where, optional=True),
        id=str(record.get("case_id", "")),
        asked=(
            *_as_question(prompt, new, truth),
            *_portability([*far, *_by_kind(record, "portability", where)], (new, truth), where),
        ),
    )


def mend(record: Mapping[str, object], where: str) -> Fact:
    """Mitchell et al.'s zsRE: `src`, `subject`, `alt` (new), `answers` (true), `rephrase`, `loc` and `loc_ans`."""
    prompt, new = text_of(record, "src", where), text_of(record, "alt", where)
    truth = _first_answer(record.get("answers"), "answers", where)
    return make_fact(
        where,
        prompt=prompt,
        subject=text_of(record, "subject", where),
        target_new=new,
        target_true=truth,
        paraphrases=_present(record, "rephrase", where),
        neighbourhood=_neighbours([("", record.get("loc"), record.get("loc_ans"))], where),
        relation="",
        id=str(record.get("case_id", "")),
        asked=_as_question(prompt, new, truth),
    )


Told = tuple[str, object, object]
"""A further question of a record as it stands there: its kind, prompt and answer."""


def _by_kind(record: Mapping[str, object], name: str, where: str) -> Iterator[Told]:
    """The questions of KnowEdit's {kind: [{"prompt", "ground_truth"}]}."""
    kinds = record.get(name) or {}
    if not isinstance(kinds, dict):
        raise UserError(f'{where}: "{name}" must be an object of lists, found {json.dumps(kinds)[:60]}.')
    for kind in kinds:
        for question in list_of(kinds, kind, f"{where}, {name}"):
            if not isinstance(question, dict):
                raise UserError(f'{where}: {name} "{kind}" must hold objects, found {json.dumps(question)[:60]}.')
            yield kind, question.get("prompt"), question.get("ground_truth")


def _neighbours(told: Sequence[Told], where: str) -> tuple[Neighbour, ...]:
    """The (prompt, answer) pairs there are. MEND's prompts begin with the name of the data set they are from."""
    return tuple(
        Neighbour(
            _string(prompt, "locality", where).removeprefix("nq question:").strip(),
            _first_answer(answer, "locality", where).strip(),
        )
        for _, prompt, answer in told
        if prompt and answer
    )


def _portability(told: Sequence[Told], answers: tuple[str, str], where: str) -> Iterator[Asked]:
    """What follows from the new answer. Only where that is asked for itself is the answer before the edit known."""
    new, truth = answers
    for kind, prompt, answer in told:
        if prompt and answer:
            right = _first_answer(answer, "portability", where).strip()
            before = truth if right == new else ""
            asked = PORTABILITY.get(kind.casefold(), "one_hop")
            yield Asked(asked, _string(prompt, "portability", where).strip(), right, before)


def _as_question(prompt: str, new: str, truth: str) -> tuple[Asked, ...]:
    return (Asked("question", prompt.strip(), new, truth),) if prompt.rstrip().endswith("?") and new.strip() else ()


def make_fact(
    where: str,
    *,
    prompt: str,
    subject: str,
    target_new: str,
    target_true: str,
    paraphrases: tuple[str, ...],
    neighbourhood: tuple[Neighbour, ...],
    relation: str,
    id: str,
    rewordings: tuple[str, ...] = (),
    asked: tuple[Asked, ...] = (),
) -> Fact:
    """The fact of a record's parts, without the spaces around them. Raises UserError that begins with `where`."""
    try:
        return Fact(
            prompt=prompt.strip(),
            subject=subject.strip(),
            target_new=target_new.strip(),
            target_true=target_true.strip(),
            rewordings=tuple(text.strip() for text in rewordings),
            paraphrases=tuple(text.strip() for text in paraphrases),
            neighbourhood=neighbourhood,
            relation=relation,
            id=id,
            asked=asked,
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def text_of(record: Mapping[str, object], name: str, where: str, *, optional: bool = False) -> str:
    """The text of a field. Raises UserError where it is missing, unless it is `optional`: then it is empty."""
    if name not in record:
        if optional:
            return ""
        raise UserError(f'{where}: the field "{name}" is missing.')
    return _string(record[name], name, where)


def list_of(record: Mapping[str, object], name: str, where: str) -> Sequence[object]:
    """The list of a field that may be missing. Raises UserError for anything else."""
    value = record.get(name, [])
    if not isinstance(value, list):
        raise UserError(f'{where}: "{name}" must be a list, found {json.dumps(value)[:60]}.')
    return value


def texts_of(record: Mapping[str, object], name: str, where: str) -> tuple[str, ...]:
    """The texts of a field that may be missing."""
    return tuple(_string(item, name, where) for item in list_of(record, name, where))


def _present(record: Mapping[str, object], name: str, where: str) -> tuple[str, ...]:
    """The text of a field that may be missing or empty."""
    text = text_of(record, name, where, optional=True)
    return (text,) if text.strip() else ()


def _first_answer(value: object, name: str, where: str) -> str:
    """An answer as text, or the first of a list of answers, or of their other names."""
    while isinstance(value, list) and value:
        value = value[0]
    return _string(value, name, where)


def _string(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{where}: "{name}" must be text, found {json.dumps(value)[:60]}.')
    return value


def _target(rewrite: Mapping[str, object], name: str, where: str) -> str:
    """CounterFact writes a target as {"str": "English", "id": "Q1860"}."""
    value = rewrite.get(name)
    return text_of(value, "str", where) if isinstance(value, dict) else text_of(rewrite, name, where)
