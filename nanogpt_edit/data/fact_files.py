"""Facts from files: one JSON object per line, or a JSON list of them, in one of four layouts.

Ours has `Fact`'s field names; the others are those of `fact_layouts.py`. A bad record is named by file and line, or by
its number; so are two that are the same, and one that changes nothing.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib import resources
from pathlib import Path

from nanogpt_edit.common.arguments import checked
from nanogpt_edit.common.errors import UserError, quoted
from nanogpt_edit.common.files import check_file, parse_json, read_bytes, read_numbered_jsonl
from nanogpt_edit.common.records import Place, to_dataclass
from nanogpt_edit.data.fact_layouts import counterfact, easyedit, list_of, make_fact, mend, text_of, texts_of
from nanogpt_edit.data.facts import Asked, Fact, Neighbour

BUILT_IN = ("facts50",)
FIELDS = tuple(field.name for field in fields(Fact))
LAYOUTS = "ours, CounterFact (requested_rewrite), EasyEdit and KnowEdit (ground_truth), MEND's zsRE (alt)"


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
        fact = counterfact(record, where)
    elif "ground_truth" in record:
        fact = easyedit(record, where)
    elif "alt" in record:
        fact = mend(record, where)
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
    return make_fact(
        where,
        prompt=text_of(record, "prompt", where),
        subject=text_of(record, "subject", where),
        target_new=text_of(record, "target_new", where),
        target_true=text_of(record, "target_true", where),
        rewordings=texts_of(record, "rewordings", where),
        paraphrases=texts_of(record, "paraphrases", where),
        neighbourhood=tuple(_neighbour(item, where) for item in list_of(record, "neighbourhood", where)),
        relation=text_of(record, "relation", where, optional=True),
        id=text_of(record, "id", where, optional=True),
        asked=tuple(_asked(item, where) for item in list_of(record, "asked", where)),
    )


def fact_to_record(fact: Fact) -> dict[str, object]:
    """The JSON that `fact_from_record` reads."""
    record: dict[str, object] = {
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
    return record | ({"asked": [asdict(each) for each in fact.asked]} if fact.asked else {})


def _neighbour(value: object, where: str) -> Neighbour:
    if not isinstance(value, dict):
        raise UserError(f'{where}: a neighbour is {{"prompt": …, "target_true": …}}, found {json.dumps(value)[:60]}.')
    return Neighbour(text_of(value, "prompt", where).strip(), text_of(value, "target_true", where).strip())


def _asked(value: object, where: str) -> Asked:
    if not isinstance(value, dict):
        raise UserError(
            f'{where}: a further prompt is {{"kind": …, "prompt": …, "target_new": …, "target_true": …}}, found '
            f"{json.dumps(value)[:60]}."
        )
    return to_dataclass(Asked, value, Place(where, "asked"))
