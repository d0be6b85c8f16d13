"""Facts from files: our JSONL, CounterFact as EasyEdit writes it, and CounterFact as first published.

Ours is one JSON object per line with `Fact`'s field names. The other two are JSON lists; which one is seen from the
first record (`requested_rewrite` is the original's). A bad record is named by file and line, or by its number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path

from nanogpt_edit.arguments import checked
from nanogpt_edit.edit.facts import Fact, Neighbour
from nanogpt_edit.errors import UserError
from nanogpt_edit.files import read_numbered_jsonl

BUILT_IN = ("facts50",)
FIELDS = (
    *("prompt", "subject", "target_new", "target_true", "rewordings", "paraphrases", "neighbourhood"),
    *("relation", "id"),
)


@checked
def read_facts(source: str | Path, *, limit: int | None = None) -> tuple[Fact, ...]:
    """The facts of a file (.jsonl or .json), or of a set that comes with the package ("facts50").

    Raises UserError naming file and line for a missing file, a bad record or an empty file.
    """
    if str(source) in BUILT_IN:
        with resources.as_file(resources.files("nanogpt_edit.edit") / "cases" / f"{source}.jsonl") as file:
            return _read_ours(file)[:limit]
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: no such file. Give a .jsonl or .json of facts, or one of: {', '.join(BUILT_IN)}.")
    facts = _read_list(path) if path.suffix == ".json" else _read_ours(path)
    if not facts:
        raise UserError(f"{path}: there are no facts in it.")
    return facts[:limit]


def _read_ours(path: Path) -> tuple[Fact, ...]:
    return tuple(fact_from_record(record, where=f"{path}:{line}") for line, record in read_numbered_jsonl(path))


def fact_from_record(record: Mapping[str, object], *, where: str) -> Fact:
    """A `Fact` from JSON with its field names. Raises UserError that begins with `where`."""
    unknown = sorted(set(record) - set(FIELDS))
    if unknown:
        raise UserError(f"{where}: unknown field {', '.join(unknown)}; a fact has {', '.join(FIELDS)}.")
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


def _read_list(path: Path) -> tuple[Fact, ...]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid JSON ({error}).") from None
    if not isinstance(records, list):
        raise UserError(f"{path}: a JSON list of facts was expected, found {type(records).__name__}.")
    return tuple(_list_record(record, f"{path}, record {number}") for number, record in enumerate(records, 1))


def _list_record(record: object, where: str) -> Fact:
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON object was expected, found {type(record).__name__}.")
    if "requested_rewrite" in record:
        return _counterfact(record, where)
    if "ground_truth" in record:
        return _easyedit(record, where)
    return fact_from_record(record, where=where)


def _easyedit(record: Mapping[str, object], where: str) -> Fact:
    """`prompt`, `subject`, `target_new`, `ground_truth`, `rephrase_prompt`, `locality_prompt`, `…_ground_truth`."""
    rephrase = _text(record, "rephrase_prompt", where, optional=True)
    locality = _text(record, "locality_prompt", where, optional=True)
    truth = _text(record, "locality_ground_truth", where, optional=True)
    return _fact(
        where,
        prompt=_text(record, "prompt", where),
        subject=_text(record, "subject", where),
        target_new=_text(record, "target_new", where),
        target_true=_text(record, "ground_truth", where),
        paraphrases=(rephrase,) if rephrase else (),
        neighbourhood=(Neighbour(locality, truth),) if locality and truth else (),
        relation="",
        id=str(record.get("case_id", "")),
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
