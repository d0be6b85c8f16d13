"""What `nanogpt-edit patch show | apply | revert | drop | merge | diff | export` do with the patch an edit left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nanogpt_edit.checkpoint.checkpoint import fingerprint, load
from nanogpt_edit.commands.patch_verbs import Apply, Diff, Drop, Export, Merge, Revert, Show
from nanogpt_edit.common.errors import UserError, visible
from nanogpt_edit.common.files import cache_folder, read_json
from nanogpt_edit.common.terminal import say
from nanogpt_edit.data.facts import Fact
from nanogpt_edit.editing.adapters import write_gguf_adapter, write_peft
from nanogpt_edit.editing.patch import EditPatch, told
from nanogpt_edit.editing.patch_files import carried_patches, load_patch, save_edited, save_patch
from nanogpt_edit.editing.patches import diff_patches, drop_facts, merge_patches, rebase_patch
from nanogpt_edit.model.gpt import GPT
from nanogpt_edit.model.lineage import LineageEntry
from nanogpt_edit.pipeline.spared import recipe_for_edit, spared_text


def show(chosen: Show) -> int:
    found = load_patch(chosen.patch)
    print(f"{found.describe()}, {found.seconds:.1f} s, {visible(found.created) or 'no date'}")
    for number, edited in enumerate(found.edited):
        print(f"{number:>4}  {_told(edited.fact)}{_rank(found, number)}")
    for name, update in found.matrices.items():
        text = f", covariance {visible(update.covariance_sha256[:16])}…" if update.covariance_sha256 else ""
        expected = visible(update.expected_sha256[:16])
        print(f"{told(name)}: expects weights {expected}…{text}, ‖ΔW‖ {update.norm():.3g}")
    return 0


def _told(fact: Fact) -> str:
    """A fact in a line, made safe to show: patches come from other people."""
    return visible(f"{fact.prompt}  {fact.target_true or '?'} → {fact.target_new}")


def _rank(found: EditPatch, number: int) -> str:
    """What became of a fact, where it was measured."""
    ranks = [found.scores[number].get(name) for name in ("rank_before", "rank_after")] if found.scores else [None]
    return f"  (rank {ranks[0]} → {ranks[1]})" if all(isinstance(rank, int) for rank in ranks) else ""


def apply(chosen: Apply) -> int:
    if not chosen.patches:
        raise UserError("which patches? Give the .safetensors files that edits wrote.")
    check_kept(chosen.model, chosen.out)
    model = load(chosen.model)
    carried = carried_patches(chosen.model)
    for path in chosen.patches:
        found = load_patch(path)
        bound = _rebased(model, found, chosen.text) if chosen.rebase else found.apply(model)
        if not chosen.rebase and any(update.undo is None for update in found.matrices.values()):
            save_patch(bound, path)
            say(f"{path} now also holds what revert needs.")
        carried.append((path.stem, bound))
    save_edited(model, chosen.out, carried)
    print(f"The edited model: {chosen.out}")
    return 0


def _rebased(model: GPT, found: EditPatch, text: str | None) -> EditPatch:
    blocks = None
    if found.config.needs_text:
        blocks = spared_text(model, found.facts, recipe_for_edit(model.source), text=text)
    return rebase_patch(model, found, covariance_blocks=blocks, cache_dir=cache_folder()).apply(model)


def check_kept(model: Path | str, out: Path) -> None:
    """Raise UserError where the result would take the place of the model it is made of."""
    if out.resolve() == Path(model).resolve():
        raise UserError(
            f"is {out}, the model that the patches are for; it is kept, so name another folder.", field="out"
        )


def revert(chosen: Revert) -> int:
    check_kept(chosen.model, chosen.out)
    model = load(chosen.model)
    carried = carried_patches(chosen.model)
    found = [load_patch(path) for path in chosen.patches] or [patch for _, patch in carried]
    if not found:
        raise UserError(f"{chosen.model} carries no patches; name the .safetensors files to take out.")
    for each in reversed(found):
        each.revert(model)
        model.lineage = (*model.lineage, LineageEntry("reverted", f"reverted: {each.describe()}"))
        carried = [(name, patch) for name, patch in carried if patch.made_of() != each.made_of()]
    save_edited(model, chosen.out, carried)
    print(f"{_what_is_left(model, found[0], carried)}: {chosen.out}")
    return 0


def _what_is_left(model: GPT, oldest: EditPatch, carried: Sequence[tuple[str, EditPatch]]) -> str:
    """What a model is once patches were taken out of it, as far as that is known; `oldest` came out last."""
    if carried:
        return f"The model without them, which still carries {', '.join(name for name, _ in carried)}"
    if fingerprint(model) == oldest.base_fingerprint:
        return f"The original model, bit for bit (its fingerprint is {oldest.base_fingerprint[:16]}…)"
    reason = "names another fingerprint" if oldest.base_fingerprint else "names none"
    return (
        "The model without the edit, in the edited layers bit for bit what it was before; whether all of it is as "
        f"before cannot be told, for the patch {reason}"
    )


def drop(chosen: Drop) -> int:
    if not chosen.fact:
        raise UserError("which facts? Give their numbers, as nanogpt-edit patch show lists them.")
    return _keep(drop_facts(load_patch(chosen.patch), chosen.fact), chosen.out)


def merge(chosen: Merge) -> int:
    model, first, second = load(chosen.model), load_patch(chosen.first), load_patch(chosen.second)
    merged = merge_patches(
        model,
        first,
        second,
        covariance_blocks=spared_text(
            model, (*first.facts, *second.facts), recipe_for_edit(model.source), text=chosen.text
        ),
        cache_dir=cache_folder(),
    )
    return _keep(merged, chosen.out)


def _keep(made: EditPatch, out: Path) -> int:
    save_patch(made, out)
    print(f"{made.describe()}: {out}")
    return 0


def export(chosen: Export) -> int:
    kind, out = chosen.to
    found = load_patch(chosen.patch)
    base = chosen.model or str(model_beside(chosen.patch, found))
    model = load(base)
    if kind == "peft":
        write_peft(found, model, out, base=base)
    else:
        write_gguf_adapter(found, model, out)
    print(f"The adapter for {base}: {out}")
    return 0


def model_beside(path: Path, patch: EditPatch) -> Path:
    """The model in the same run's folder that a patch was made for. Raises UserError where there is none."""
    for file in sorted(path.resolve().parent.parent.glob("*/lineage.json")):
        if patch.base_fingerprint and read_json(file).get("fingerprint") == patch.base_fingerprint:
            return file.parent
    raise UserError(f"the model that {path} was made for is not beside it; name it with --model.")


def diff(chosen: Diff) -> int:
    found = diff_patches(load_patch(chosen.first), load_patch(chosen.second))
    for title, facts in (("only in the first", found.only_first), ("only in the second", found.only_second)):
        print(f"{len(facts)} facts {title}")
        for fact in facts:
            print(f"      {_told(fact)}")
    print(f"{len(found.both)} facts in both")
    for conflict in found.conflicts:
        print(f"conflict: {conflict.describe()}")
    for name, (first, second, apart) in found.weight_change.items():
        print(f"{told(name)}: ‖ΔW‖ {first:.3g} and {second:.3g}, {apart:.3g} apart")
    print("made for the same weights" if found.same_base else "made for different weights")
    return 0
