"""`nanogpt-edit completion SHELL`: a script for the tab key, made by tyro from the arguments of all verbs."""

from __future__ import annotations

import operator
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import tyro

from nanogpt_edit.commands.arguments import KINDS, Completion, Run
from nanogpt_edit.commands.parse import REGISTRY, description, parse
from nanogpt_edit.pipeline.recipe import load_recipe


def completion(arguments: list[str]) -> int:
    """The verb `completion`."""
    shell = parse(Completion, arguments, verb="completion").shell
    default = Run(recipe=load_recipe("tiny"), out=Path("runs/tiny"))
    verbs: list[Any] = [
        Annotated[Run, tyro.conf.subcommand(name, default=default, description=description(Run))]
        for name in ("run", "doctor")
    ]
    verbs += [
        Annotated[kind, tyro.conf.subcommand(name, description=description(kind))] for name, kind in KINDS.items()
    ]
    every: Any = reduce(operator.or_, verbs)
    try:
        with REGISTRY:
            tyro.cli(every, prog="nanogpt-edit", args=["--tyro-print-completion", shell])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0
