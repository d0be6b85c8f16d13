"""Files and folders that are not what a verb needs, and places nothing can be written to."""

from __future__ import annotations

from pathlib import Path

from bad_inputs import Bad

LONG = "d" * 300
WORDS = "word " * 3000
LOOP = {"loop": lambda path: path.symlink_to("loop")}
FACT = '{"prompt": "The capital of France is", "subject": "France", "target_new": "Rome", "target_true": "Paris"}'
FACTS = {"f.jsonl": FACT}
LONG_FACT = FACT.replace("The", f"{WORDS}The")
TRACE = "trace model --prompt 'Paris is' --subject Paris"

READ = (
    Bad("info nowhere", says="nowhere"),
    Bad("info ./nowhere", says="nowhere"),
    Bad("info model/config.json", says="model/config.json"),
    Bad("info model/config.json/x", says="model/config.json/x"),
    Bad(f"info {LONG}", says="ddd"),
    Bad("info loop", says="loop", files=LOOP),
    Bad("info empty", says="empty", files={"empty": Path.mkdir}),
    Bad("sample nowhere --prompt hi", says="nowhere"),
    Bad("serve nowhere", says="nowhere"),
    Bad("evaluate nowhere", says="nowhere"),
    Bad("trace nowhere --prompt 'Paris is' --subject Paris", says="nowhere"),
    Bad("sft nowhere --out x", says="nowhere"),
    Bad("grpo nowhere --out x", says="nowhere"),
    Bad("edit nowhere facts50 --out x", says="nowhere"),
    Bad("edit model nowhere.jsonl --out x", says="nowhere.jsonl: no such file"),
    Bad("edit model model --out x", says="model: a folder, where a file was expected. Give a .jsonl or .json of facts"),
    Bad("edit model f.jsonl --out x", says="(15,024 characters)", files={"f.jsonl": f"{LONG_FACT}\n{LONG_FACT}\n"}),
    Bad(
        "edit model f.jsonl --out x",
        says='"id" is there twice',
        files={"f.jsonl": FACT[:-1] + ', "id": "a", "id": "b"}'},
    ),
    Bad("trace model --facts f.jsonl", says="tokens and the model reads 64; shorten it", files={"f.jsonl": LONG_FACT}),
    Bad(f"trace model --prompt '{WORDS}' --subject word", says="(15,000 characters) comes to"),
    Bad(f"trace model --prompt 'Paris is' --subject '{WORDS}'", says=" … "),
    Bad(f"sample model --prompt '{WORDS}'", says="the prompt has 1"),
    Bad("edit model f.jsonl --out x", says="f.jsonl", files={"f.jsonl": ""}),
    Bad("edit model f.json --out x", says="f.json", files={"f.json": "[" * 100_000}),
    Bad("edit model f.jsonl --out x", says="f.jsonl:1", files={"f.jsonl": '{"a":' * 100_000}),
    Bad("edit model loop --out x", says="loop", files=LOOP),
    Bad("evaluate model --problems.path nowhere.jsonl", says="nowhere.jsonl"),
    Bad(f"evaluate model --problems.path {LONG}.jsonl", says="ddd"),
    Bad("evaluate model --problems.path loop", says="loop", files=LOOP),
    Bad("evaluate model --evaluate.text nowhere.txt", says="evaluate.text"),
    Bad("sft model --out x --problems.path nowhere.jsonl", says="nowhere.jsonl"),
    Bad("sft model --out x --sft.replay 0.1 --sft.replay-source nowhere.txt", says="sft.replay_source"),
    Bad("compare nowhere model", says="nowhere"),
    Bad("compare model model", says="no evaluation"),
    Bad("compare model/config.json model/config.json", says="model/config.json"),
    Bad(f"compare {LONG} model", says="ddd"),
    Bad("compare a.jsonl a.jsonl", says="a.jsonl:1", files={"a.jsonl": '{"skill": NaN}\n'}),
    Bad("ledger nowhere", says="nowhere"),
    Bad("ledger model", says="model"),
    Bad("ledger model/config.json", says="model/config.json"),
    Bad(f"ledger {LONG}", says="ddd"),
    Bad("report nowhere", says="nowhere"),
    Bad("report model", says="model"),
    Bad("report r", says="recipe.toml", files={"r/recipe.toml": "[" * 100_000}),
    Bad("patch show nowhere", says="nowhere"),
    Bad("patch show model", says="model: a folder, where a file was expected"),
    Bad(f"{TRACE} --facts nowhere.jsonl", says="--facts"),
    Bad("trace model --facts nowhere.jsonl", says="nowhere.jsonl"),
    Bad("trace model --facts f.jsonl --out o --sweep s.jsonl", says="s.jsonl: no such file", files=FACTS),
)

WRITTEN = (
    Bad("run tiny --out model/config.json", says="model/config.json"),
    Bad("run tiny --out model/config.json/x", says="model/config.json/x"),
    Bad(f"run tiny --out {LONG}", says="name too long"),
    Bad("run tiny --out loop", says="loop", files=LOOP),
    Bad("run tiny --out loop/x", says="loop", files=LOOP),
    Bad("pretrain --out model/config.json", says="model/config.json"),
    Bad("sft model --out model/config.json", says="model/config.json"),
    Bad(f"edit model f.jsonl --out {LONG}", says="name too long", files=FACTS),
    Bad("evaluate model --out model/config.json", says="model/config.json"),
    Bad(f"evaluate model --out {LONG}", says="name too long"),
    Bad(f"{TRACE} --out d.svg", says="d.svg", files={"d.svg": Path.mkdir}),
    Bad(f"{TRACE} --out d.gif", says="d.gif"),
    Bad(f"{TRACE} --out {LONG}.svg", says="name too long"),
    Bad(f"{TRACE} --out model/config.json/d.svg", says="model/config.json"),
    Bad("trace model --facts f.jsonl --out model/config.json", says="model/config.json", files=FACTS),
)

ROWS = (*READ, *WRITTEN)
