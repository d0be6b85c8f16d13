"""Everything this project claims of a GPU, in about ten minutes: tests, speeds, and the earlier system's four stages.

Parts: environment, tests, decode, train, grpo, profile (`gpu_parts.py`), edit (`gpu_edit.py`), and validation-sft,
validation-grpo, validation-evaluation, validation-edit (`gpu_validation.py`). Each runs in a process of its own, so
that one that fails, or runs out of memory, leaves the others: it says why, and the next one begins. What a part found
is one JSON line, printed and added to `--out` as soon as it is known. A part may take `--limit-seconds`; a stage of the
validation is stopped in time and its seconds are extrapolated, which the line says. Nothing is fetched.

On a machine with a GPU `gpu.sh` calls this with the wheels that are missing there.

    python benchmarks/gpu.py --out gpu.jsonl                       # GPT-2's sizes, random weights, the embedded world
    python benchmarks/gpu.py --data DIR --model DIR --out gpu.jsonl  # DIR: gsm8k/, gpt2_tokenizer/; a model directory
    python benchmarks/gpu.py --size tiny --device cpu              # every part to its end on two cores, in a minute
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

import gpu_edit
import gpu_parts
import gpu_validation
import torch
from gpt2 import SIZES, problems_and_tokenizer, write
from gpu_setting import Found, Setting
from machine import timed

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import append_jsonl, read_json, write_json
from nanogpt_edit.pipeline.environment import environment, version

PARTS: Mapping[str, Callable[[Setting], Found]] = {
    "environment": gpu_parts.environment,
    "tests": gpu_parts.tests,
    "decode": gpu_parts.decode,
    "train": gpu_parts.train,
    "grpo": gpu_parts.grpo,
    "edit": gpu_edit.edit,
    "profile": gpu_parts.profile,
    "validation-sft": gpu_validation.sft,
    "validation-grpo": gpu_validation.grpo,
    "validation-evaluation": gpu_validation.evaluation,
    "validation-edit": gpu_validation.edit,
}
FOLDERS = (str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent))
WITHOUT_MODEL = ("environment", "tests")
STAGE_SHARE = 0.75  # of a part's seconds; what is left is for loading and saving
PROCESSES = get_context("forkserver")  # torch is imported once, and nothing of a GPU is touched before a part begins


def main() -> None:
    chosen = arguments()
    os.environ["PYTHONPATH"] = os.pathsep.join([*FOLDERS, *filter(None, [os.environ.get("PYTHONPATH")])])
    PROCESSES.set_forkserver_preload(["gpu_edit", "gpu_parts", "gpu_validation"])
    failed = []
    with working_folder(chosen.work) as work:
        for name, model in models(chosen, work).items():
            for part in chosen.parts:
                if not takes_part(part, carried=name != chosen.size, alone=chosen.model is None):
                    continue
                line = run_apart(part, name, model, work, chosen)
                print(json.dumps(line), flush=True)
                if chosen.out is not None:
                    append_jsonl(chosen.out, line)
                failed += [part] if "failed" in line else []
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), metavar="PART", help="some of them; or validation")
    parser.add_argument("--size", choices=SIZES, default="gpt2", help="of the random model; tiny: little work as well")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--data", type=Path, help="folder with gsm8k/ and gpt2_tokenizer/; default: the embedded world")
    parser.add_argument("--model", type=Path, help="a real model's directory: parts run with it too, validation alone")
    parser.add_argument("--limit-seconds", type=float, default=60.0, help="most seconds of a part")
    parser.add_argument("--work", type=Path, help="folder for models and states; default: a temporary one")
    parser.add_argument("--out", type=Path, help="file the lines are added to")
    chosen = parser.parse_args()
    chosen.parts = [part for asked in chosen.parts for part in matching(asked, parser)]
    return chosen


def matching(asked: str, parser: argparse.ArgumentParser) -> list[str]:
    """The parts that are called so, or begin so."""
    found = [part for part in PARTS if part == asked or part.startswith(f"{asked}-")]
    if not found:
        parser.error(f'there is no part "{asked}"; the parts are {", ".join(PARTS)}')
    return found


def takes_part(part: str, *, carried: bool, alone: bool) -> bool:
    """Does a part run with this model, a carried one or the random one that may be `alone`? The card and the tests are
    looked at once, and the stages of the validation too, with the carried model where there is one."""
    if part in WITHOUT_MODEL:
        return not carried
    return carried or alone or not part.startswith("validation-")


@contextmanager
def working_folder(asked: Path | None) -> Iterator[Path]:
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
        yield asked
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def models(chosen: argparse.Namespace, work: Path) -> dict[str, Path]:
    """Name and directory of each model that the parts run with: the random one, and the one that was carried."""
    directory = work / chosen.size / "base"
    write(chosen.size, problems_and_tokenizer(chosen.data)[1], directory)
    found = {chosen.size: directory}
    if chosen.model is not None:
        found[chosen.model.resolve().name] = chosen.model.resolve()
    return found


def run_apart(part: str, name: str, model: Path, work: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """One part in a process of its own -> its line."""
    own = work / name
    own.mkdir(parents=True, exist_ok=True)
    answer, said, started = own / f"{part}.json", own / f"{part}.log", time.perf_counter()
    answer.unlink(missing_ok=True)
    limit = chosen.limit_seconds
    setting = Setting(chosen.size, torch.device(chosen.device), chosen.data, model, own, STAGE_SHARE * limit)
    child = PROCESSES.Process(target=run_here, args=(part, setting, answer, said))
    child.start()
    reason = ended(child, limit)
    line = {"part": part, "model": name, "device": chosen.device, "wall_seconds": time.perf_counter() - started}
    if answer.exists():
        return line | read_json(answer)
    text = said.read_text() if said.exists() else ""
    print(text[-4000:], file=sys.stderr, flush=True)
    return line | {"failed": reason or last_line(text)}


def ended(child: BaseProcess, limit: float) -> str | None:
    """Wait for a part -> why it was ended, if it was. What it has started ends with it."""
    child.join(limit)
    code = child.exitcode
    child.kill()  # also one that is only about to begin
    with suppress(ProcessLookupError):  # all of it has ended
        assert child.pid is not None
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
    if code is None:
        return f"over its limit of {limit:g} seconds"
    return f"killed by {signal.Signals(-code).name}" if code < 0 else None


def last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def run_here(part: str, setting: Setting, answer: Path, said: Path) -> None:
    """One part in this process: what it found goes to the file `answer`, what it says to the file `said`."""
    os.setpgid(0, 0)
    with said.open("w", buffering=1) as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
        try:
            found, seconds = timed(lambda: PARTS[part](setting))
        except (UserError, RuntimeError, SystemExit) as error:
            traceback.print_exc()
            print(" ".join(str(error).split()), file=file)
            raise SystemExit(1) from None
        hardware = environment(setting.device) | {"transformers": version("transformers"), "cuda": torch.version.cuda}
        write_json(answer, {"seconds": seconds, **found, "environment": hardware})


if __name__ == "__main__":
    main()
