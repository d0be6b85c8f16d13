"""Recipe files."""

from __future__ import annotations

from pathlib import Path

from bad_inputs import Bad


def recipe(text: str | bytes, says: str, *, verb: str = "run") -> Bad:
    """A recipe with this text."""
    return Bad(f"{verb} r.toml" + (" --out x" if verb == "run" else ""), says=says, files={"r.toml": text})


ROWS = (
    Bad("run r.toml --out x", says="r.toml: no such file"),
    Bad("doctor r.toml", says="r.toml: no such file"),
    Bad("run r.toml --out x", says="r.toml: a folder, where a file was expected", files={"r.toml": Path.mkdir}),
    Bad(f"run {'r' * 300}.toml --out x", says="name too long"),
    Bad("run model/config.json/r.toml --out x", says="not a directory"),
    recipe("[expect]\n'edit.succes' = '>= 0.5'\n", says="edit.succes"),
    recipe(b"\xef\xbb\xbf[sft]\nstep = 3\n", says='did you mean "steps"?'),
    recipe("[sft]\nlearning_rate = 1e-400\n", says="r.toml: not valid TOML (1e-400 is nearer to zero"),
    Bad("run model --out x", says="model: a folder, where a file was expected. A recipe is a .toml file"),
    Bad("doctor r", says="Name the recipe.toml in it.", files={"r/recipe.toml": "seed = 1\n"}),
    Bad("edit model facts50 --recipe model --out x", says="model: a folder, where a file was expected"),
    recipe("", says="r.toml: there is nothing in it"),
    recipe("# only a comment\n", says="r.toml: there is nothing in it"),
    recipe("", says="r.toml: there is nothing in it", verb="doctor"),
    recipe("[sft\n", says="r.toml: not valid TOML"),
    recipe(b"name = '\xff'\n", says="r.toml: not valid TOML"),
    recipe("\0\0\0\0", says="r.toml: not valid TOML"),
    recipe("a = " + "[" * 100_000, says="r.toml: not valid TOML"),
    recipe(f"seed = {'9' * 5000}", says="r.toml: not valid TOML"),
    recipe("seed = 1\nseed = 2\n", says="r.toml: not valid TOML"),
    recipe("[sft]\nstep = 3\n", says='did you mean "steps"?'),
    recipe("[stf]\nsteps = 3\n", says='unknown field "stf"; did you mean "sft"?'),
    recipe("[sft.grpo]\nsteps = 3\n", says='unknown field "grpo"'),
    recipe("sft = 3\n", says='"sft" must be a table'),
    recipe("[[sft]]\nsteps = 3\n", says='"sft" must be a table'),
    recipe("[sft]\nsteps = 'ten'\n", says='[sft] "steps" must be a whole number'),
    recipe("[sft]\nsteps = 1e3\n", says='[sft] "steps" must be a whole number'),
    recipe("[sft]\nlearning_rate = nan\n", says="[sft] learning_rate is nan"),
    recipe("[sft]\nlearning_rate = inf\n", says="[sft] learning_rate is inf"),
    recipe("[sft]\nlearning_rate = 1e999\n", says="[sft] learning_rate is inf"),
    recipe(f"[sft]\nlearning_rate = {'9' * 400}\n", says="learning_rate"),
    recipe("[grpo.rewards]\naccuracy = nan\n", says="rewards.accuracy is nan"),
    recipe("[grpo.rewards]\naccuracy = inf\n", says="rewards.accuracy is inf"),
    recipe("[edit]\nclamp = nan\n", says="[edit] clamp is nan"),
    recipe("[edit]\nlayers = [1, 0]\n", says="[edit] layers"),
    recipe("[edit]\nmethod = 'memmit'\n", says='[edit] method is "memmit"; did you mean "memit"'),
    recipe("[world]\nstep_weights = [nan, 1.0, 1.0]\n", says="step_weights"),
    recipe("seed = 12345678901234567890123\n", says="seed is a number of 74 bits"),
    recipe("[edit]\nseed = 12345678901234567890123\n", says="[edit] seed is a number of 74 bits"),
    recipe("[world]\nseed = 12345678901234567890123\n", says="[world] seed is a number of 74 bits"),
    recipe("[world]\nproblems = 1_000_000_000\n", says="lower world.problems"),
    recipe("[world]\nproblems = 1_000_000_000\n", says="lower world.problems", verb="doctor"),
    recipe("[model]\nn_layer = 1_000_000_000\n", says="lower the numbers under model."),
    recipe("[model]\nvocab_size = 1_000_000_000_000\n", says="lower the numbers under model."),
    recipe("[model]\nsource = 'nowhere/at/all'\n", says="nowhere/at/all"),
    recipe("[problems]\npath = 'nowhere.jsonl'\n", says="nowhere.jsonl"),
    recipe('[problems]\npath = "no\\u0000where.jsonl"\n', says="no\\x00where"),
    recipe("[pretrain]\ntext = 'nowhere.txt'\n", says="pretrain.text: "),
    recipe("[evaluate]\ntext = 'nowhere.txt'\n", says="evaluate.text: "),
    recipe("facts = 'nowhere.jsonl'\n", says="nowhere.jsonl: no such file"),
    recipe("device = 'gpu'\n", says='device "gpu"'),
    recipe("threads = 1_000_000\n", says="threads is 1000000"),
    recipe("[grpo.rewards]\nacuracy = 1\n", says='did you mean "accuracy"?'),
    recipe("[grpo.rewards]\n'nowhere:reward' = 1\n", says='module "nowhere" cannot be imported'),
    recipe("[grpo.rewards]\n'os:nothing' = 1\n", says='no function "nothing"'),
    Bad(
        "run tiny --out x --grpo.rewards leaver:reward=1",
        says='module "leaver" cannot be imported',
        files={"leaver.py": "raise SystemExit(0)\n"},
    ),
    Bad(
        "doctor tiny --grpo.rewards quitter:reward=1",
        says='module "quitter" cannot be imported',
        files={"quitter.py": "import sys\nsys.exit('done')\n"},
    ),
    Bad(
        "run tiny --out x --grpo.rewards broken:reward=1",
        says='module "broken" cannot be imported',
        files={"broken.py": "def reward(:\n"},
    ),
    recipe("[expect]\n'edit.success' = 'much'\n", says="edit.success"),
    recipe("expect = 3\n", says='"expect" must be a table'),
)
