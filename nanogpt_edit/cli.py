"""The command line: finds the verb, and turns what a person can mend into one line and an exit status.

Nothing heavy is imported before the verb is known, so that `--help` and a misspelt verb answer at once. Under torchrun
some verbs run in several processes (`processes.py`). Each verb is a function in `commands/` that takes its arguments as
text and returns the exit status: 0 done, 2 a mistake to mend, 3 an expectation of the recipe failed, 130 and 143 where
SIGINT and SIGTERM have ended it (`stopping.py`).
"""

from __future__ import annotations

import errno
import importlib
import io
import logging
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NoReturn

from nanogpt_edit.common import stopping
from nanogpt_edit.common.errors import UserError, did_you_mean, visible
from nanogpt_edit.common.stopping import Stopped
from nanogpt_edit.common.version import __version__

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
    "watch": ("a run in the browser while it is under way, or finished", "nanogpt_edit.commands.watch:watch"),
    "trace": ("where in the network a fact is recalled", "nanogpt_edit.commands.trace:trace"),
    "patch": (
        "show, apply, revert, thin out, merge or compare the patches of edits",
        "nanogpt_edit.commands.patch_verbs:patch",
    ),
    "export": (
        "write a model as a GGUF file for llama.cpp, Ollama and LM Studio",
        "nanogpt_edit.commands.export:export",
    ),
    "cache": ("list or clear the covariances kept from earlier edits", "nanogpt_edit.commands.cache:cache"),
    "ledger": ("what each step of a run gained and cost, as a table", "nanogpt_edit.commands.report:ledger"),
    "report": (
        "write the report of a run again from its files, or compare two runs in pairs",
        "nanogpt_edit.commands.report:report",
    ),
    "info": ("family, sizes, tokenizer, fingerprint and history of a model", "nanogpt_edit.commands.info:info"),
    "push": ("put a model on the Hugging Face hub, with its card", "nanogpt_edit.commands.hub:push"),
    "pull": ("copy a model of the Hugging Face hub into a folder", "nanogpt_edit.commands.hub:pull"),
    "completion": ("print the script that completes verbs and flags", "nanogpt_edit.commands.completion:completion"),
}

OWN_HELP = ("cache", "export", "patch")  # verbs with verbs of their own
RESUMABLE = ("run", "pretrain", "sft", "grpo")
IN_SEVERAL_PROCESSES = (*RESUMABLE, "evaluate")
PATIENCE_SECONDS = 3.0
MISTAKE = 2
REMEDIES = {
    errno.ENOSPC: "make room on the disk",
    errno.EDQUOT: "make room in your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EISDIR: "name a file; a folder is there",
    errno.ENOTDIR: "a part of that path is a file; choose another",
    errno.ELOOP: "links lead in a circle there; choose another path",
}
# Libraries written in Rust and C++ hide the operating system's error in a text of their own.
HIDDEN_ERROR = re.compile(r"(?:os error |Os \{ code: )(\d+)")
NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|not enough memory", re.IGNORECASE)


def command() -> NoReturn:
    """The program: `main`, and the end of the process with its status."""
    stopping.obey(interrupted, alone=not several())
    try:
        if not prepare_streams():
            sys.exit(MISTAKE)
        status = 1
        try:
            status = main()
        except SystemExit as ended:  # for --help
            status = int(ended.code or 0)
        except Exception:
            traceback.print_exc()
    finally:
        stopping.done()
    if several() or stopping.asked() is not None:
        stopping.leave(status)
    sys.exit(status)


def prepare_streams() -> bool:
    """Let standard output show what its encoding lacks as an escape.

    False, and said so, where it is closed: the next file opened would take its place.
    """
    if sys.stderr is None:
        sys.stderr = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    if sys.stdout is None:
        complain(f"standard output is closed; send it to a file or to {os.devnull} instead.")
        return False
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; `arguments` default to the process's own. Returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["-q"] or "--quiet" in arguments:
        arguments.remove("-q" if arguments[0] == "-q" else "--quiet")
        logging.getLogger("nanogpt_edit").setLevel(logging.WARNING)
    verb = arguments[0] if arguments else "--help"
    try:
        if verb in ("--help", "-h", "help"):
            print(overview())
            return 0
        if verb in ("--version", "-V"):
            print(f"{PROGRAM} {__version__}")
            return 0
        check_text(arguments)
        check_place()
        check_launcher()
        if verb in VERBS and {"-h", "--help"} & set(arguments) and verb not in OWN_HELP:
            importlib.import_module("nanogpt_edit.commands.arguments").show_help(verb, arguments[1:])
        with at_work(verb), together(verb):
            status = find_verb(verb)(arguments[1:])
        sys.stdout.flush()
        return status
    except UserError as error:
        return complain(str(error))
    except KeyboardInterrupt as error:
        return interrupted(error.number if isinstance(error, Stopped) else signal.SIGINT, verb)
    except BrokenPipeError:
        # The reader (head, less) has gone; keep Python from failing once more while it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if (number := stopping.asked()) is not None:  # a library has made another error of it
            return interrupted(number, verb)
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


def at_work(verb: str) -> AbstractContextManager[object]:
    """In a pipe it is said that a verb is still at it where nothing else says so: while torch is loaded, too."""
    if verb not in VERBS or verb in ("serve", "watch") or rank() > 0:
        return nullcontext()
    from nanogpt_edit.common.terminal import progress  # here, for --help needs none

    return progress(verb, plain=True)


def interrupted(number: int, verb: str | None = None) -> int:
    """Say that a signal has ended the verb (None: that of this process) -> the exit status."""
    verb = verb or "".join(sys.argv[1:2])
    if stopping.speak() and rank() == 0:
        what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
        complain(f"{what}.{' The same command goes on from where it was.' if verb in RESUMABLE else ''}")
    return stopping.status_of(number)


def together(verb: str) -> AbstractContextManager[None]:
    """One of torchrun's processes joins the others. Raises UserError for a verb that is not for several."""
    if not several():
        return nullcontext()
    if verb in VERBS and verb not in IN_SEVERAL_PROCESSES:
        raise UserError(
            f"{verb} runs in one process and torchrun started {os.environ['WORLD_SIZE']}; start it without torchrun. "
            f"For several: {', '.join(IN_SEVERAL_PROCESSES)}."
        )
    from nanogpt_edit.common.distributed import joined  # here, for it imports torch

    return joined()


def check_text(arguments: Sequence[str]) -> None:
    """Raise UserError for an argument that is not text: bytes that are no UTF-8 come as halves of surrogate pairs."""
    for number, word in enumerate(arguments, start=1):
        try:
            word.encode()
        except UnicodeEncodeError:
            raise UserError(f"argument {number}, {word!a}, is not UTF-8 text; write or rename it in UTF-8.") from None


def check_place() -> None:
    """Raise UserError when the folder the program was started in is there no more."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UserError("the working folder has been deleted; go to another (cd) and start again.") from None


LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def check_launcher() -> None:
    """Raise UserError when the environment speaks of several processes, and not as torchrun does."""
    if set(LAUNCHER) & set(os.environ) and not all(os.environ.get(name, "0").isdecimal() for name in LAUNCHER):
        said = ", ".join(f'{name}="{os.environ[name]}"' for name in LAUNCHER if name in os.environ)
        raise UserError(f"the environment says {said}, which torchrun would not; unset them, or start with torchrun.")
    if several() and "RANK" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, as for one of several processes, and RANK is not set; unset "
            "it, or start with torchrun."
        )


def several() -> bool:
    """Is this one of several processes that torchrun started? It sets WORLD_SIZE and RANK."""
    size = os.environ.get("WORLD_SIZE", "1")
    return size.isdecimal() and int(size) > 1


def rank() -> int:
    """This process's number among those that torchrun started; 0 when it is alone."""
    number = os.environ.get("RANK", "0")
    return int(number) if several() and number.isdecimal() else 0


def overview() -> str:
    """What `nanogpt-edit --help` prints."""
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{summary}" for verb, (summary, _) in VERBS.items())
    return (
        f"{PROGRAM} {__version__}: teach a GPT to reason, edit the facts in its weights, prove what each step did.\n\n"
        f"usage: {PROGRAM} VERB [arguments]\n\n{verbs}\n\n"
        f"{PROGRAM} VERB --help explains every argument of a verb, with its unit and default.\n"
        f"{PROGRAM} VERB --quiet shows results and errors only.\n"
        "Exit status: 0 done, 2 a mistake to mend, 3 an expectation of the recipe failed, 130 interrupted, 143 ended.\n"
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
    """The sentence for what the operating system refused, whichever library met it; None for anything else: a bug."""
    text = str(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(text)):
        return "there is not enough memory for this; use a smaller model, smaller batches or fewer rows at once."
    if isinstance(error, OSError):
        names = " and ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return refused(error.errno, error.strerror or text, names)
    if isinstance(error, ValueError) and "null byte" in text:
        return "a path has a null character in it, which no file's name can have; take it out."
    hidden = HIDDEN_ERROR.search(text)
    if hidden is not None:
        return refused(int(hidden[1]), os.strerror(int(hidden[1])), "")
    return refused(errno.ENOSPC, "no space left on device", "") if "No space left on device" in text else None


def refused(number: int | None, reason: str, names: str) -> str:
    """What the operating system said, of which files, and what to do about it."""
    where = f" ({names})" if names else ""
    remedy = REMEDIES.get(number or 0, "mend it")
    return (
        f"{reason.lower().rstrip('.')}{where}. Nothing was left half written; {remedy} and run the same command again."
    )
