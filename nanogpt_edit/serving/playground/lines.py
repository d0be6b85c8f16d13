"""The lines of Python and of the shell that do what a button of the playground has done."""

from __future__ import annotations

import json
import shlex

from nanogpt_edit.data.fact_files import fact_to_record
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.serving.playground.edition import Edition

MOST_WRITTEN = 3  # facts; more are named as a file


def python_lines(source: str, edition: Edition) -> str:
    """As `import nanogpt_edit as ne` says it, with the dial where it is turned and the edits
    that the model had before, as they can be saved."""
    given = "".join(f", {name}={value!r}" for name, value in edition.settings.items())
    turned = any(factor != 1 for factor in edition.factors)
    lines = [
        "import nanogpt_edit as ne",
        *(["from nanogpt_edit.editing.patches import scale_patch"] if turned else []),
        "",
        f"model = ne.load({source!r})",
        *(f"ne.load_patch({f'{name}.safetensors'!r}).apply(model)" for name in edition.earlier),
        f"facts = {_facts(edition.patch.facts)}",
        f"patch = ne.edit(model, facts{given})",
        *([f"patch = scale_patch(patch, {_factors(edition)})"] if turned else []),
        "with patch.applied(model):                     # bitwise undone on leaving",
        "    print(ne.score(model, patch.facts))",
    ]
    return "\n".join(lines)


def shell_lines(source: str, edition: Edition) -> str:
    """As the command line says it: the facts into a file, the edit, and its undoing."""
    flags = "".join(f" --edit.{name} {shlex.quote(value)}" for name, value in edition.settings.items())
    model, lines = shlex.quote(source), list[str]()
    if edition.earlier:
        saved = " ".join(shlex.quote(f"{name}.safetensors") for name in edition.earlier)
        lines.append(f"nanogpt-edit patch apply {model} {saved} --out before")
        model = "before"
    facts = "facts50"
    if len(edition.patch.facts) <= MOST_WRITTEN:
        facts = "facts.jsonl"
        records = "\n".join(json.dumps(_short(fact), ensure_ascii=False) for fact in edition.patch.facts)
        lines += ["cat > facts.jsonl <<'END'", records, "END"]
    lines.append(f"nanogpt-edit edit {model} {facts} --out mine{flags}")
    lines.append("nanogpt-edit patch revert mine/edited mine/edits/*.safetensors --out mine/original    # bit for bit")
    return "\n".join(lines)


def _facts(facts: tuple[Fact, ...]) -> str:
    if len(facts) > MOST_WRITTEN:
        return 'ne.read_facts("facts50")'
    return "[" + ", ".join(f"ne.Fact(**{_short(fact)!r})" for fact in facts) + "]"


def _short(fact: Fact) -> dict[str, object]:
    """A fact as a record, without what is empty and what it is only measured with."""
    record = fact_to_record(fact)
    return {name: record[name] for name in ("prompt", "subject", "target_new", "target_true")}


def _factors(edition: Edition) -> str:
    return "[" + ", ".join(f"{factor:g}" for factor in edition.factors) + "]"
