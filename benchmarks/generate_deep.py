"""How fast a thin deep model decodes: the engine beside transformers' `generate` and llama.cpp, in turns.

SmolLM2-135M has thirty layers of width 576, so that much of a step is not arithmetic. A job is `rows` prompts of
`--prompt` tokens of their own, each continued greedily by exactly `--tokens`; all sides have the same float32 weights,
and llama.cpp a second time as float16. The table has tokens per second, prompts included, and what share of the
machine's fp32 matrix peak (measured in the same run) the products of weights and states reached; "agree" is how many of
the first row's first eight tokens are ours. llama.cpp is driven through its batches (llama-cpp-python), one sequence a
row, keys and values as by default. With `--clock cpu` the seconds are the processor's, which other programs stretch
little; take one thread, for a thread that waits for another counts too.

    python benchmarks/generate_deep.py MODEL                     # a directory or a name; four sides, 1, 8 and 64 rows
    python benchmarks/generate_deep.py MODEL --sides ours transformers --rows 64
"""

from __future__ import annotations

import argparse
import ctypes
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch
from machine import finish, matrix_peak
from peers import peer_model
from turns import Options, Turn, take_turns

import nanogpt_edit as ne
from nanogpt_edit.checkpoint.gguf_export import write_gguf
from nanogpt_edit.engine.engine import Engine
from nanogpt_edit.engine.sampling_config import Sampling
from nanogpt_edit.pipeline.environment import version

FIRST = 8  # tokens of the first row, by which the sides are seen to do the same


def ours(turn: Turn, options: Options) -> None:
    engine = Engine(ne.load(options["model"]))
    while job := turn.next():
        began = time.process_time()
        made = engine.generate(job["prompts"], sampling=Sampling(temperature=0.0, max_new_tokens=job["tokens"]))
        turn.done(**first([each.token_ids for each in made], began))


def transformers(turn: Turn, options: Options, *, cache: str | None = None) -> None:
    model = peer_model(options)[1].eval()
    model.generation_config.eos_token_id = None
    while job := turn.next():
        began = time.process_time()
        prompts = torch.tensor(job["prompts"])
        with torch.inference_mode():
            made = model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                do_sample=False,
                max_new_tokens=job["tokens"],
                pad_token_id=0,
                cache_implementation=cache,
                disable_compile=True,
            )
        turn.done(**first(made[:, prompts.shape[1] :].tolist(), began))


def llama_cpp(turn: Turn, options: Options, *, type: str) -> None:
    import llama_cpp as lib
    import numpy as np

    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(options[type].encode(), lib.llama_model_default_params())
    vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
    while job := turn.next():
        began = time.process_time()
        prompts, tokens = job["prompts"], job["tokens"]
        rows, width = len(prompts), len(prompts[0])
        settings = lib.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = rows * (width + tokens), rows
        settings.n_batch = settings.n_ubatch = 512
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()
        context = lib.llama_init_from_model(model, settings)
        batch = lib.llama_batch_init(512, 0, 1)

        def run(
            entries: Sequence[tuple[int, int, int, bool]], context: object = context, batch: object = batch
        ) -> None:
            batch.n_tokens = len(entries)
            for at, (token, position, row, wanted) in enumerate(entries):
                batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, row
            if lib.llama_decode(context, batch):
                raise RuntimeError("llama_decode failed")

        made: list[list[int]] = [[] for _ in prompts]
        at_once = 512 // width
        for begin in range(0, rows, at_once):
            part = range(begin, min(begin + at_once, rows))
            run([(prompts[row][at], at, row, at == width - 1) for row in part for at in range(width)])
            for place, row in enumerate(part):
                logits = lib.llama_get_logits_ith(context, (place + 1) * width - 1)
                made[row].append(int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax()))
        for step in range(1, tokens):
            run([(each[-1], width + step - 1, row, True) for row, each in enumerate(made)])
            pointer = ctypes.cast(lib.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
            for row, token in enumerate(np.ctypeslib.as_array(pointer, (rows, vocabulary)).argmax(axis=1).tolist()):
                made[row].append(token)
        lib.llama_batch_free(batch)
        lib.llama_free(context)
        turn.done(**first(made, began))


def first(made: Sequence[Sequence[int]], began: float) -> dict[str, float]:
    """What a step found: its tokens, the processor's seconds since `began`, the first tokens of its first row."""
    counted = {"tokens": sum(map(len, made)), "cpu": time.process_time() - began}
    return counted | {f"token{at}": made[0][at] for at in range(min(FIRST, len(made[0])))}


SIDES = {
    "ours": ours,
    "transformers": transformers,
    "transformers-static": partial(transformers, cache="static"),
    "llama.cpp-f32": partial(llama_cpp, type="f32"),
    "llama.cpp-f16": partial(llama_cpp, type="f16"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8, 64])
    parser.add_argument("--prompt", type=int, default=16, help="tokens of each prompt")
    parser.add_argument("--tokens", type=int, default=48, help="new ones of each row")
    parser.add_argument("--pairs", type=int, default=3, help="times that every side does every job, after a warm-up")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--out", type=Path, help="file for the result")
    chosen = parser.parse_args()
    peak = matrix_peak(clock=time.perf_counter if chosen.clock == "wall" else time.process_time)
    model = ne.load(chosen.model)
    weights = sum(weight.numel() for weight in model.parameters())
    generator = torch.Generator().manual_seed(0)

    def prompts(rows: int) -> list[list[int]]:
        drawn: list[list[int]] = torch.randint(0, 40_000, (rows, chosen.prompt), generator=generator).tolist()
        return drawn

    jobs = [{"part": "warm-up", "prompts": prompts(1), "tokens": 4}]
    for _ in range(chosen.pairs):
        jobs += [{"part": str(rows), "prompts": prompts(rows), "tokens": chosen.tokens} for rows in chosen.rows]
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder) / "model"
        ne.save(model, directory)
        options: Options = {"model": str(directory)}
        for type in ("f32", "f16") if any(side.startswith("llama") for side in chosen.sides) else ():
            options[type] = str(Path(folder) / f"{type}.gguf")
            write_gguf(model, Path(options[type]), type=type, notes={})
        steps = take_turns({name: SIDES[name] for name in chosen.sides}, jobs, options)
    found = []
    for rows in chosen.rows:
        for name, every in steps.items():
            mine = [number for number, job in enumerate(jobs) if job["part"] == str(rows)]
            done = [every[number] for number in mine]
            seconds = [step.seconds if chosen.clock == "wall" else step.found["cpu"] for step in done]
            rates = [step.found["tokens"] / each for step, each in zip(done, seconds, strict=True)]
            work = 2 * weights * (chosen.prompt + chosen.tokens) / chosen.tokens
            same = [
                every[n].found[f"token{at}"] == steps["ours"][n].found[f"token{at}"]
                for n in mine
                for at in range(FIRST)
            ]
            found.append(
                {
                    "rows": rows,
                    "side": name,
                    "tokens_per_second": median(rates),
                    "slowest": min(rates),
                    "fastest": max(rates),
                    "of_peak": median(rates) * work / peak,
                    "agree": sum(same) / len(same),
                }
            )
            print(found[-1], flush=True)
    finish(
        {
            "name": "generate_deep",
            "model": chosen.model,
            "sizes": {name: getattr(chosen, name) for name in ("rows", "prompt", "tokens", "pairs", "clock")},
            "matrix_peak_gflops": peak / 1e9,
            "found": found,
        },
        chosen.out,
        details={"peers": {name: version(name) for name in ("transformers", "llama_cpp_python")}},
    )


if __name__ == "__main__":
    main()
