"""A sweep tries one setting after the other, keeps its trials, and is confirmed on facts that did not choose."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from edit_world import PLAIN, covariance_blocks, facts, sentences, trained_model

from nanogpt_edit import cli
from nanogpt_edit.checkpoint.checkpoint import save
from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.files import write_jsonl
from nanogpt_edit.data.fact_files import fact_to_record
from nanogpt_edit.editing.config import EditConfig, SweepConfig
from nanogpt_edit.model.config import GPTConfig
from nanogpt_edit.pipeline import sweep as sweep_module
from nanogpt_edit.pipeline.sweep import _candidates, _groups_around, mark, read_trials, sweep

START = replace(
    PLAIN, layers=(2,), covariance_weight=20.0, learning_rate=0.3, steps=12, n_prefixes=0, clamp=3.0, weight_decay=0.0
)
GRID = SweepConfig(spans=(2,), strengths=(0.1,), clamps=(3.0,), kl_coefs=(0.0625,))


def run(log: Path) -> sweep_module.Sweep:
    return sweep(
        trained_model(),
        facts(4),
        START,
        GRID,
        covariance_blocks=covariance_blocks(),
        text=covariance_blocks()[:6],
        log=log,
    )


def test_the_best_settings_are_kept_and_confirmed_on_other_facts(tmp_path: Path) -> None:
    found = run(tmp_path / "sweep.jsonl")
    steps = [trial.step for trial in found.trials]
    assert steps[:3] == ["layers alone"] * 3
    assert [trial.layers for trial in found.trials[:3]] == [(0,), (1,), (2,)]
    best = max(found.trials, key=lambda trial: trial.mark)
    assert (found.chosen.layers, found.chosen.covariance_weight) == (best.layers, best.settings["covariance_weight"])
    assert [record.id for record in found.confirmed.records] == ["capital-1", "capital-3"]
    for trial in found.trials:
        assert trial.mark == pytest.approx(
            mark((trial.success, trial.paraphrase, trial.neighbourhood, trial.text_kept))
        )
        assert 0 < trial.text_kept <= 1


def test_an_interrupted_sweep_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole.jsonl")
    lines = (tmp_path / "whole.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "half.jsonl").write_text("".join(lines[:2]), encoding="utf-8")
    fresh: list[EditConfig] = []
    edit = sweep_module._Trier._edit

    def count(self: sweep_module._Trier, step: str, config: EditConfig) -> sweep_module.Trial:
        fresh.append(config)
        return edit(self, step, config)

    monkeypatch.setattr(sweep_module._Trier, "_edit", count)
    again = run(tmp_path / "half.jsonl")
    assert len(fresh) == len(lines) - 2
    assert again.chosen == whole.chosen
    assert [trial.mark for trial in read_trials(tmp_path / "half.jsonl")] == [trial.mark for trial in whole.trials]


def test_what_is_tried_by_hand() -> None:
    grid = SweepConfig(single_layers=3, spans=(2, 5), strengths=(0.5, 2.0), clamps=(1.0, 3.0), kl_coefs=(0.0,))

    twelve = GPTConfig(vocab_size=8, block_size=8, n_layer=12, n_head=1, n_embd=8)

    def tried(step: str, config: EditConfig) -> list[EditConfig]:
        return list(_candidates(step, config, grid, twelve))

    assert [c.layers for c in tried("layers alone", START)] == [(0,), (6,), (11,)]  # of twelve, at even distances
    assert [c.layers for c in tried("layers together", START)] == [
        (1, 2),
        (2, 3),
        *(tuple(range(i, i + 5)) for i in range(3)),
        (0, 1, 2),  # all up to the best one
    ]
    assert [c.covariance_weight for c in tried("strength", START)] == [10.0, 40.0]
    assert [c.clamp for c in tried("clamp", START)] == [1.0]  # 3.0 is what it has
    assert tried("layers together", replace(START, method="rome")) == []
    assert tried("strength", replace(START, method="rome")) == []
    assert [c.norm_constraint for c in tried("strength", replace(START, method="ft"))] == [2.5e-3, 1e-2]
    assert tried("clamp", replace(START, method="ft")) == []


@pytest.mark.parametrize(
    ("best", "n_layer", "expected"),
    [
        (0, 3, [(0, 1)]),  # (0, 1, 2) would end at the last layer, from which no later token reads
        (1, 3, [(0, 1)]),
        (2, 3, [(1, 2), (0, 1, 2)]),  # where the last layer is best, subjects end their prompts
        (2, 6, [(1, 2), (2, 3), (0, 1, 2), (1, 2, 3), (2, 3, 4), (0, 1, 2, 3, 4)]),
        (0, 1, []),
    ],
)
def test_groups_hold_the_best_layer(best: int, n_layer: int, expected: list[tuple[int, ...]]) -> None:
    assert list(_groups_around(best, (2, 3, 5), n_layer)) == expected


def test_the_mark_is_a_harmonic_mean_of_what_there_is() -> None:
    assert mark((1.0, 0.5, 1.0, 1.0)) == pytest.approx(0.8)
    assert mark((1.0, None, None, 0.5)) == pytest.approx(2 / 3)
    assert mark((0.0, 1.0)) == 0.0


def test_too_few_facts_and_a_foreign_log_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 4 facts"):
        sweep(trained_model(), facts(3), START, GRID, covariance_blocks=None, text=covariance_blocks(), log=tmp_path)
    (tmp_path / "other.jsonl").write_text('{"x": 1}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r'other\.jsonl:1 has an unknown field "x"'):
        read_trials(tmp_path / "other.jsonl")


@pytest.mark.slow
def test_from_the_sweep_to_the_picture_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, source = str(tmp_path / "model"), str(tmp_path / "facts.jsonl")
    save(trained_model(), Path(model))
    write_jsonl(Path(source), [fact_to_record(replace(fact, subject=fact.subject.title())) for fact in facts(4)])
    settings = ["--edit.layers", "1", "--edit.steps", "5", "--edit.n-prefixes", "0", "--edit.covariance-tokens", "4000"]
    settings += ["--edit.refine-steps", "0"]
    grid = ["--grid.spans", "--grid.strengths", "--grid.clamps", "--grid.kl-coefs", "0.0"]
    small = ["--world.problems", "40", "--pretrain.fact-repeats", "1", "--pretrain.context-tokens", "32"]
    out = tmp_path / "sweep"
    command = ["edit", model, source, "--sweep", *settings, *grid, *small]
    (tmp_path / "text.txt").write_text("\n".join(sentences() * 40), encoding="utf-8")
    assert cli.main([*command, "--pretrain.text", str(tmp_path / "text.txt"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "layers alone      2 " in printed
    assert "On the 2 facts that did not choose:" in printed
    assert "[edit]" in (out / "sweep.toml").read_text(encoding="utf-8")
    assert not (out / "edited").exists()

    arguments = ["--facts", source, "--trace.draws", "2", "--sweep", str(out / "sweep.jsonl")]
    assert cli.main(["trace", model, *arguments, "--out", str(tmp_path / "trace")]) == 0
    assert "resid_post, layer" in capsys.readouterr().out
    assert json.loads((tmp_path / "trace" / "trace.json").read_text(encoding="utf-8"))["n"] == 4
    for name in ("trace-mlp_out", "trace-layers"):
        assert "<svg" in (tmp_path / "trace" / f"{name}.svg").read_text(encoding="utf-8")
        assert (tmp_path / "trace" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["trace", model]) == 2
    assert "Give --prompt and --subject, or --facts" in capsys.readouterr().err
