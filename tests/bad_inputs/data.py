"""Files of problems and of text, read by every verb that takes them."""

from __future__ import annotations

import gzip
import json

from bad_inputs import Bad

GOOD = '{"question": "What is 1 + 1?", "answer": "#### 2"}\n' * 3
FILES: dict[str, tuple[str | bytes, str]] = {
    "half.jsonl": (GOOD + '{"question": "3 \\ud83c", "answer": "#### 3"}\n', "half.jsonl:4: not valid JSON (half of"),
    "comma.jsonl": (GOOD + '{"question": "How much?", "answer": "#### 2,5"}\n', "comma.jsonl:4: the answer"),
    "tuple.jsonl": ('{"question": "Where?", "answer": "#### (3,4)"}\n', "tuple.jsonl:1: the answer"),
    "end.jsonl": (
        GOOD + '{"question": "a", "answer": "b<|endoftext|>\\n#### 5"}\n',
        "end.jsonl:4: the text holds",
    ),
    "chat.jsonl": ('{"question": "<|im_start|>a", "answer": "#### 5"}\n', "chat.jsonl:1: the text holds <|im_start|>"),
    "lfs.jsonl": ("version https://git-lfs.github.com/spec/v1\n", "lfs.jsonl: a pointer of git-LFS"),
    "one.jsonl": (GOOD, "one.jsonl: 1 different problems are too few to divide"),
    "twice.jsonl": (GOOD + '{"question": "1?", "question": "2?", "answer": "#### 2"}\n', '"question" is there twice'),
    "p.csv": ("question,answer\na,1\n", "p.csv: a table of csv"),
    "p.xlsx": (b"PK\x03\x04", "p.xlsx: a zip archive (or a spreadsheet"),
    "utf16.jsonl": (GOOD.encode("utf-16"), "utf16.jsonl: UTF-16 text"),
    "latin.jsonl": (GOOD.encode() + b'{"question": "\xe9"}', "latin.jsonl:4: not UTF-8 text"),
    "cut.jsonl.gz": (gzip.compress(GOOD.encode())[:-9], "cut.jsonl.gz: a damaged gzip file"),
    "cut.parquet": (b"PAR1PAR1", "cut.parquet: a Parquet file that cannot be read"),
    "deep.json": ("[" * 100_000, "deep.json: not valid JSON (nested too deeply)"),
    "two.json": (json.dumps({"train": [{"a": 1}], "test": [{"a": 1}]}), "two.json: several lists of records"),
}
VERBS = ("evaluate model --out x --problems.path {}", "doctor tiny --out x --problems.path {}")
TEXTS: dict[str, tuple[str | bytes, str]] = {
    "t.txt": (b"caf\xe9", "t.txt:1: not UTF-8 text"),
    "short.txt": ("hi", "evaluate.text: the text has 3 tokens, too few for one block of 63"),
    "t.jsonl": ('{"body": "a"}\n', 't.jsonl: 1 rows have no text in field "text"'),
    "lfs.txt": ("version https://git-lfs.github.com/spec/v1\n", "lfs.txt: a pointer of git-LFS"),
    "t.zip": (b"PK\x03\x04", "t.zip: a zip archive"),
}

ROWS = (
    *(
        Bad(VERBS[i % len(VERBS)].format(name), says=says, files={name: contents})
        for i, (name, (contents, says)) in enumerate(FILES.items())
    ),
    *(
        Bad(f"evaluate model --world.problems 10 --evaluate.text {name}", says=says, files={name: contents})
        for name, (contents, says) in TEXTS.items()
    ),
)
