"""Facts from files: one JSON object per line, or a JSON list of them, in one of four layouts.

Ours has `Fact`'s field names. The others are known by a field of theirs: CounterFact as first published
(`requested_rewrite`), EasyEdit's CounterFact, zsRE and KnowEdit (`ground_truth`), and MEND's zsRE (`alt`). What one of
them says and a `Fact` has no place for is named. A bad record is named by file and line, or by its number; so are two
that are the same, and one that changes nothing.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.common.files import check_file, parse_json, read_bytes, read_numbered_jsonl
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.facts import Fact, Neighbour

BUILT_IN = ("facts50",)
FIELDS = (
    *("prompt", "subject", "target_new", "target_true", "rewordings", "paraphrases", "neighbourhood"),
    *("relation", "id"),
)
LAYOUTS = "ours, CounterFact (requested_rewrite), EasyEdit and KnowEdit (ground_truth), MEND's zsRE (alt)"
# Questions of the other layouts that a Fact has no place for.
UNREAD = ("portability", "attribute_prompts", "generation_prompts")


@checked
def read_facts(source: str | Path) -> tuple[Fact, ...]:
    """The facts of a file (.jsonl or .json), or of a set that comes with the package ("facts50").

    Raises UserError naming file and line for a missing file, a bad record or an empty file.
    """
    if str(source) in BUILT_IN:
        with resources.as_file(resources.files("nanogpt_edit.data.world") / f"{source}.jsonl") as file:
            return _read_ours(file)
    path = Path(source)
    check_file(path, f"Give a .jsonl or .json of facts, or one of: {', '.join(BUILT_IN)}.")
    records = _records(path)
    if not records:
        raise UserError(f"{path}: there are no facts in it.")
    facts = {where: _fact_of(record, where) for where, record in records}
    check_changes(facts)
    for name in UNREAD:
        if count := sum(bool(record.get(name)) for _, record in records):
            say(f"{path}: {name} of {count} of {len(records)} facts is not read, as a fact has no place for it.")
    return tuple(facts.values())


def _read_ours(path: Path) -> tuple[Fact, ...]:
    return tuple(fact_from_record(record, where=f"{path}:{line}") for line, record in read_numbered_jsonl(path))


def _records(path: Path) -> list[tuple[str, Mapping[str, object]]]:
    """Every record with its place. What begins as a list is read as one, whatever the file's name."""
    contents = b"" if path.suffix == ".gz" else read_bytes(path).removeprefix(BOM_UTF8).strip()
    if not contents.startswith(b"["):
        if path.suffix == ".json" and b"\n" in contents and _is_json(contents):
            raise UserError(f"{path}: one JSON object; a list of facts ([…]) was expected, or one fact per line.")
        return [(f"{path}:{line}", record) for line, record in read_numbered_jsonl(path)]
    try:
        records = parse_json(contents.decode())
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from None
    assert isinstance(records, list)
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise UserError(f"{path}, record {number}: a JSON object was expected, found {type(record).__name__}.")
    return [(f"{path}, record {number}", record) for number, record in enumerate(records, 1)]


def _is_json(contents: bytes) -> bool:
    try:
        parse_json(contents.decode())
    except ValueError:
        return False
    return True


def _fact_of(record: Mapping[str, object], where: str) -> Fact:
    """The fact of a record in any of the layouts, with a true answer to each of its questions."""
    if "requested_rewrite" in record:
        fact = _counterfact(record, where)
    elif "ground_truth" in record:
        fact = _easyedit(record, where)
    elif "alt" in record:
        fact = _mend(record, where)
    else:
        fact = fact_from_record(record, where=where)
    if not all(answer.strip() for answer in (fact.target_true, *(n.target_true for n in fact.neighbourhood))):
        raise UserError(
            f"{where}: a true answer (target_true) is empty, so nothing could be compared with it; fill it in."
        )
    return fact


def check_changes(facts: Mapping[str, Fact]) -> None:
    """Raise UserError for a fact that is there twice, and for one whose new answer is the old one."""
    seen: dict[tuple[str, str], str] = {}
    for where, fact in facts.items():
        if fact.target_new.casefold() == fact.target_true.casefold():
            raise UserError(
                f"{where}: the new answer to {quoted(fact.prompt)} is the old one, {quoted(fact.target_true)}, so "
                "nothing would be changed; leave the fact out."
            )
        before = seen.setdefault((fact.prompt, fact.target_new), where)
        if before != where:
            change = f"{quoted(fact.prompt)} → {quoted(fact.target_new)}"
            raise UserError(f"{where}: {change} is there already ({before}); leave one out.")


def fact_from_record(record: Mapping[str, object], *, where: str) -> Fact:
    """A `Fact` from JSON with its field names. Raises UserError that begins with `where`."""
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise UserError(
            f"{where}: unknown field {', '.join(unknown)}; a fact has {', '.join(FIELDS)}. (Layouts that are read: "
            f"{LAYOUTS}.)"
        )
    neighbourhood = _list(record, "neighbourhood", where)
    return _fact(
        where,
        prompt=_text(record, "prompt", where),
        subject=_text(record, "subject", where),
        target_new=_text(record, "target_new", where),
        target_true=_text(record, "target_true", where),
        rewordings=tuple(_string(item, "rewordings", where) for item in _list(record, "rewordings", where)),
        paraphrases=tuple(_string(item, "paraphrases", where) for item in _list(record, "paraphrases", where)),
        neighbourhood=tuple(_neighbour(item, where) for item in neighbourhood),
        relation=_text(record, "relation", where, optional=True),
        id=_text(record, "id", where, optional=True),
    )


def fact_to_record(fact: Fact) -> dict[str, object]:
    """The JSON that `fact_from_record` reads."""
    return {
        "id": fact.id,
        "relation": fact.relation,
        "prompt": fact.prompt,
        "subject": fact.subject,
        "target_true": fact.target_true,
        "target_new": fact.target_new,
        "rewordings": list(fact.rewordings),
        "paraphrases": list(fact.paraphrases),
        "neighbourhood": [{"prompt": n.prompt, "target_true": n.target_true} for n in fact.neighbourhood],
    }


def _easyedit(record: Mapping[str, object], where: str) -> Fact:
    """`prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, and neighbours as `locality_prompt` with
    `locality_ground_truth` or as KnowEdit's `locality`: {kind: [{"prompt", "ground_truth"}]}."""
    pairs = [(record.get("locality_prompt"), record.get("locality_ground_truth"))]
    locality = record.get("locality") or {}
    if not isinstance(locality, dict):
        raise UserError(f'{where}: "locality" must be an object of lists, found {json.dumps(locality)[:60]}.')
    for kind in locality:
        for question in _list(locality, kind, f"{where}, locality"):
            if not isinstance(question, dict):
                raise UserError(f'{where}: locality "{kind}" must hold objects, found {json.dumps(question)[:60]}.')
            pairs.append((question.get("prompt"), question.get("ground_truth")))
    return _fact(
        where,
        prompt=_text(record, "prompt", where),
        subject=_text(record, "subject", where),
        target_new=_text(record, "target_new", where),
        target_true=_first_answer(record["ground_truth"], "ground_truth", where),
        paraphrases=_present(record, "rephrase_prompt", where),
        neighbourhood=_neighbours(pairs, where),
        relation=_text(record, "relation_id", where, optional=True),
        id=str(record.get("case_id", "")),
    )


def _mend(record: Mapping[str, object], where: str) -> Fact:
    """Mitchell et al.'s zsRE: `src`, `subject`, `alt` (new), `answers` (true), `rephrase`, `loc` and `loc_ans`."""
    return _fact(
        where,
        prompt=_text(record, "src", where),
        subject=_text(record, "subject", where),
        target_new=_text(record, "alt", where),
        target_true=_first_answer(record.get("answers"), "answers", where),
        paraphrases=_present(record, "rephrase", where),
        neighbourhood=_neighbours([(record.get("loc"), record.get("loc_ans"))], where),
        relation="",
        id=str(record.get("case_id", "")),
    )


def _present(record: Mapping[str, object], name: str, where: str) -> tuple[str, ...]:
    """The text of a field that may be missing or empty."""
    text = _text(record, name, where, optional=True)
    return (text,) if text.strip() else ()


def _first_answer(value: object, name: str, where: str) -> str:
    """An answer as text, or the first of a list of answers, or of their other names."""
    while isinstance(value, list) and value:
        value = value[0]
    return _string(value, name, where)


def _neighbours(pairs: Sequence[tuple[object, object]], where: str) -> tuple[Neighbour, ...]:
    """The (prompt, answer) pairs there are. MEND's prompts begin with the name of the data set they are from."""
    return tuple(
        Neighbour(
            _string(prompt, "locality", where).removeprefix("nq question:").strip(),
            _first_answer(answer, "locality", where).strip(),
        )
        for prompt, answer in pairs
        if prompt and answer
    )


def _counterfact(record: Mapping[str, object], where: str) -> Fact:
    """Meng et al.'s layout; the neighbourhood prompts share the fact's own true answer."""
    rewrite = record["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise UserError(f"{where}: requested_rewrite is not an object.")
    subject, truth = _text(rewrite, "subject", where), _target(rewrite, "target_true", where)
    neighbours = _list(record, "neighborhood_prompts", where)
    return _fact(
        where,
        prompt=_text(rewrite, "prompt", where).replace("{}", subject),
        subject=subject,
        target_new=_target(rewrite, "target_new", where),
        target_true=truth,
        paraphrases=tuple(
            _string(item, "paraphrase_prompts", where) for item in _list(record, "paraphrase_prompts", where)
        ),
        neighbourhood=tuple(Neighbour(_string(item, "neighborhood_prompts", where), truth) for item in neighbours),
        relation=_text(rewrite, "relation_id", where, optional=True),
        id=str(record.get("case_id", "")),
    )


def _fact(
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
) -> Fact:
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
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _text(record: Mapping[str, object], name: str, where: str, *, optional: bool = False) -> str:
    if name not in record:
        if optional:
            return ""
        raise UserError(f'{where}: the field "{name}" is missing.')
    return _string(record[name], name, where)


def _string(value: object, name: str, where: str) -> str:
    if not isinstance(value, str):
        raise UserError(f'{where}: "{name}" must be text, found {json.dumps(value)[:60]}.')
    return value


def _list(record: Mapping[str, object], name: str, where: str) -> Sequence[object]:
    value = record.get(name, [])
    if not isinstance(value, list):
        raise UserError(f'{where}: "{name}" must be a list, found {json.dumps(value)[:60]}.')
    return value


def _neighbour(value: object, where: str) -> Neighbour:
    if not isinstance(value, dict):
        raise UserError(f'{where}: a neighbour is {{"prompt": …, "target_true": …}}, found {json.dumps(value)[:60]}.')
    return Neighbour(_text(value, "prompt", where).strip(), _text(value, "target_true", where).strip())


def _target(rewrite: Mapping[str, object], name: str, where: str) -> str:
    """CounterFact writes a target as {"str": "English", "id": "Q1860"}."""
    value = rewrite.get(name)
    return _text(value, "str", where) if isinstance(value, dict) else _text(rewrite, name, where)
