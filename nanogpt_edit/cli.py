"""The command line: finds the verb, and turns what a person can mend into one line and an exit status.

Nothing heavy is imported before the verb is known, so that `--help` and a misspelt verb answer at once. Under torchrun
some verbs run in several processes (`processes.py`). Each verb is a function in `commands/` that takes its arguments as
text and returns the exit status: 0 done, 2 a mistake to mend, 3 an expectation of the recipe failed, 130 interrupted.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from nanogpt_edit import __version__
from nanogpt_edit.errors import UserError, did_you_mean, visible

PROGRAM = "nanogpt-edit"

# verb: (what it does, where its function is)
VERBS: dict[str, tuple[str, str]] = {
    "run": ("run a recipe from nothing to the report; called again, it goes on", "nanogpt_edit.commands.run:run"),
    "pretrain": ("train a new model on plain text", "nanogpt_edit.commands.stages:pretrain"),
    "sft": ("fine-tune a model on worked solutions", "nanogpt_edit.commands.stages:sft"),
    "grpo": ("improve a model by reinforcement learning on problems", "nanogpt_edit.commands.stages:grpo"),
    "edit": ("write facts into a model's weights", "nanogpt_edit.commands.stages:edit"),
    "doctor": ("look for the silent failures of a recipe before it trains", "nanogpt_edit.commands.doctor:examine"),
    "sample": ("write completions of a prompt, as text or token by token", "nanogpt_edit.commands.sample:sample"),
    "evaluate": ("measure a model, with intervals over problems", "nanogpt_edit.commands.evaluate:run"),
    "compare": ("two evaluations of the same problems, in pairs", "nanogpt_edit.commands.compare:compare"),
    "serve": ("a playground in the browser and an HTTP API", "nanogpt_edit.commands.serve:serve"),
    "trace": ("where in the network a fact is recalled", "nanogpt_edit.commands.trace:trace"),
    "patch": (
        "show, apply, revert, thin out, merge or compare the patches of edits",
        "nanogpt_edit.commands.patch:patch",
    ),
    "cache": ("list or clear the covariances kept from earlier edits", "nanogpt_edit.commands.cache:cache"),
    "ledger": ("what each step of a run gained and cost, as a table", "nanogpt_edit.commands.report:ledger"),
    "report": ("write the report of a run again from its files", "nanogpt_edit.commands.report:report"),
    "info": ("family, sizes, tokenizer, fingerprint and history of a model", "nanogpt_edit.commands.info:info"),
}

RESUMABLE = ("run", "pretrain", "sft", "grpo")
IN_SEVERAL_PROCESSES = (*RESUMABLE, "evaluate")
PATIENCE_SECONDS = 3.0
MISTAKE, INTERRUPTED = 2, 130
# A disk or a permission a person can mend: no traceback.
MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def command() -> NoReturn:
    """The program: `main`, and the end of the process with its status."""
    if not several():
        sys.exit(main())
    status = 1
    try:
        status = main()
    except SystemExit as asked:  # for --help
        status = int(asked.code or 0)
    except Exception:
        traceback.print_exc()
    from nanogpt_edit.processes import leave  # here, for it imports torch

    leave(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` default to the process's own. Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = arguments[0] if arguments else "--help"
    try:
        if verb in ("--help", "-h", "help"):
            print(overview())
            return 0
        if verb in ("--version", "-V"):
            print(f"{PROGRAM} {__version__}")
            return 0
        with together(verb):
            status = find_verb(verb)(arguments[1:])
        sys.stdout.flush()
        return status
    except UserError as error:
        return complain(str(error))
    except KeyboardInterrupt:
        again = " The same command goes on from where it was." if verb in RESUMABLE else ""
        if rank() == 0:
            complain(f"interrupted.{again}")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; keep Python from failing once more while it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        sentence = mendable(error)
        if sentence is None:
            raise
        return complain(sentence)


def find_verb(name: str) -> Callable[[list[str]], int]:
    """The function behind a verb. Raises UserError, with the nearest verb, for a name that is none."""
    if name not in VERBS:
        raise UserError(f'there is no verb "{name}"{did_you_mean(name, VERBS)} {PROGRAM} --help lists them.')
    module, _, function = VERBS[name][1].partition(":")
    found: Callable[[list[str]], int] = getattr(importlib.import_module(module), function)
    return found


def together(verb: str) -> AbstractContextManager[None]:
    """One of torchrun's processes joins the others. Raises UserError for a verb that is not for several."""
    if not several():
        return nullcontext()
    if verb in VERBS and verb not in IN_SEVERAL_PROCESSES:
        raise UserError(
            f"{verb} runs in one process and torchrun started {os.environ['WORLD_SIZE']}; start it without torchrun. "
            f"For several: {', '.join(IN_SEVERAL_PROCESSES)}."
        )
    from nanogpt_edit.processes import joined  # here, for it imports torch

    return joined()


def several() -> bool:
    """Is this one of several processes that torchrun started? It sets WORLD_SIZE and RANK."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def rank() -> int:
    """This process's number among those that torchrun started; 0 when it is alone."""
    return int(os.environ["RANK"]) if several() else 0


def overview() -> str:
    """What `nanogpt-edit --help` prints."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{summary}" for verb, (summary, _) in VERBS.items())
    return (
        f"{PROGRAM} {__version__}: teach a GPT to reason, edit the facts in its weights, prove what each step did.\n\n"
        f"usage: {PROGRAM} VERB [arguments]\n\n{verbs}\n\n"
        f"{PROGRAM} VERB --help explains every argument of a verb, with its unit and default.\n"
        f"First steps: {PROGRAM} run tiny --out runs/tiny"
    )


def complain(sentence: str) -> int:
    """One line on standard error.

    Of several processes the first speaks for all. Another one waits, so that torchrun, which ends them all when one
    fails, lets it come to this only when the trouble is its own.
    """
    if rank():
        time.sleep(PATIENCE_SECONDS)
        sentence = f"process {rank()}: {sentence}"
    print(f"{PROGRAM}: {visible(' '.join(sentence.split()))}", file=sys.stderr)
    return MISTAKE


def mendable(error: Exception) -> str | None:
    """The sentence for a full disk or a missing permission, whichever library met it; None for anything else."""
    if isinstance(error, OSError) and error.errno in MENDABLE:
        where = f" ({error.filename})" if error.filename else ""
        reason = (error.strerror or "input or output failed").lower()
        return f"{reason}{where}. Nothing was left half written; mend it and run the same command again."
    # Libraries written in other languages hide the operating system's error in a text.
    if "No space left on device" in str(error):
        return "no space left on the disk. Nothing was left half written; make room and run the same command again."
    return None
