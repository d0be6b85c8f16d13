"""`nanogpt-edit push MODEL REPO` and `pull REPO --out DIR`: a model to the Hugging Face hub, and from it."""

from __future__ import annotations

from nanogpt_edit.commands.arguments import Pull, Push
from nanogpt_edit.commands.parse import parse
from nanogpt_edit.common.sizes import size_in_words


def push(arguments: list[str]) -> int:
    """The verb `push`."""
    chosen = parse(Push, arguments, verb="push")
    from nanogpt_edit.checkpoint import hub_repos  # here, for it imports torch

    hub_repos.check_name(chosen.repo)
    sizes, left = hub_repos.files_to_push(chosen.model)
    for name, size_bytes in sizes.items():
        print(f"  {size_in_words(size_bytes):>10}  {name}")
    where = f"the {'public' if chosen.public else 'private'} repository {chosen.repo}"
    print(f"{len(sizes)} files, {size_in_words(sum(sizes.values()))}, for {where}.")
    if left:
        print(f"Not of a model, and left out: {', '.join(left)}.")
    if chosen.dry_run:
        print("Nothing was sent.")
        return 0
    print(hub_repos.push(chosen.model, chosen.repo, private=not chosen.public, update=chosen.update))
    return 0


def pull(arguments: list[str]) -> int:
    """The verb `pull`."""
    chosen = parse(Pull, arguments, verb="pull")
    from nanogpt_edit.checkpoint.hub_repos import pull as fetch  # here, for it imports torch

    print(f"The model: {fetch(chosen.repo, chosen.out, revision=chosen.revision)}")
    return 0
