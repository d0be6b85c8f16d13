"""Recipe files."""

from __future__ import annotations

from bad_inputs import Bad

ROWS = (
    Bad("run r.toml --out x", says="r.toml: no such file"),
    Bad("run r.toml --out x", says="r.toml: not valid TOML", files={"r.toml": "[sft\n"}),
    Bad("run r.toml --out x", says='did you mean "steps"?', files={"r.toml": "[sft]\nstep = 3\n"}),
    Bad("run r.toml --out x", says="r.toml: not valid TOML", files={"r.toml": b"name = '\xff'\n"}),
)
