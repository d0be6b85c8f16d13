"""Verbs, flags and their values."""

from __future__ import annotations

from bad_inputs import Bad

VERBS = (
    Bad("rnu", says='no verb "rnu"; did you mean "run"?'),
    Bad("''", says="no verb"),
    Bad("--halp", says="--help lists them"),
    Bad("cache lst", says='did you mean "list"?'),
    Bad("run", says="name the recipe first"),
    Bad("run --out x", says="name the recipe first"),
    Bad("run tinny", says='did you mean "tiny"?'),
    Bad("doctor", says="name the recipe first"),
    Bad("sample", says="missing"),
    Bad("sample model", says="--prompt"),
    Bad("sample model --promt hi", says="--prompt"),
    Bad("compare model", says="AFTER"),
    Bad("trace model", says="--prompt"),
)

NUMBERS = (
    Bad("run tiny --out x --sft.learning-rate ten", says="'ten' is not a number"),
    Bad("run tiny --out x --sft.steps 1.5", says="'1.5' is not a whole number"),
    Bad("run tiny --out x --sft.learning-rate -1", says="learning_rate"),
    Bad("run tiny --out x --grpo.group-size 1", says="group_size"),
    Bad("sample model --prompt hi --n 0", says="n is 0"),
    Bad("sample model --prompt hi --temperature -1", says="temperature"),
    Bad("sample model --prompt hi --top-p 0", says="top_p"),
    Bad("sample model --prompt hi --device gpu", says='device "gpu"'),
)

ROWS = (*VERBS, *NUMBERS)
