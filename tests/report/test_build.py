"""The report of a made-up run: its numbers are those of the files, its text is harmless, its bytes are repeatable."""

from __future__ import annotations

import gzip
import html
import io
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_run import make_run
from rich.console import Console

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.common.stats import Interval, change_of_share
from nanogpt_edit.editing.records import Edit
from nanogpt_edit.report import build, terminal_summary
from nanogpt_edit.report.plots import PANELS, _curve
from nanogpt_edit.report.read import read_run
from nanogpt_edit.report.run import Series
from nanogpt_edit.report.summary import summarise

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'`|*_$x$ {{ 7 * 7 }} </style></svg>\n# head"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("runs") / "tiny")
    build(folder)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "tiny", problems=12, steps=12)


@pytest.fixture
def evaluated(run: Path) -> Path:
    """A run of which only the evaluations are left: few pictures to draw."""
    shutil.rmtree(run / "logs")
    shutil.rmtree(run / "edits")
    return run


class Elements(HTMLParser):
    """Every element of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_lines(path: Path, **changes: object) -> None:
    lines = [{**json.loads(line), **changes} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_the_page_shows_the_numbers_of_the_files(finished: Path) -> None:
    evaluation = json.loads((finished / "eval" / "grpo.json").read_text())
    solved = evaluation["skills"]["problems"]["pass_at_1"]
    change = json.loads((finished / "eval" / "compare_grpo-sft.json").read_text())["metrics"]["pass_at_1"]
    edit = json.loads((finished / "edits" / "facts50.json").read_text())
    text = Elements((finished / "report.html").read_text()).text
    markdown = (finished / "report.md").read_text()
    interval = f"{100 * solved['value']:.1f}% [{100 * solved['low']:.1f}, {100 * solved['high']:.1f}]"
    assert interval in text
    assert interval in markdown
    assert f"{100 * change['delta']:+.1f}".replace("-", "−") in text
    assert f"{100 * edit['success']['value']:.1f}%" in text
    fact = json.loads((finished / "edits" / "facts50.jsonl").read_text().splitlines()[0])
    assert f"{fact['rank_before']} → {fact['rank_after']}" in text
    assert f"{fact['p_target_after']:.3f}" in text
    assert evaluation["fingerprint"] in text


def test_the_summary_holds_the_numbers_of_the_files_unrounded(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    for stage in ("base", "sft", "grpo", "edited"):
        assert summary["stages"][stage] == json.loads((finished / "eval" / f"{stage}.json").read_text())["skills"]
    compared = json.loads((finished / "eval" / "compare_grpo-sft.json").read_text())["metrics"]
    for metric, change in summary["comparisons"]["grpo-sft"].items():
        assert change == {key: compared[metric][key] for key in change}
    edit = json.loads((finished / "edits" / "facts50.json").read_text())
    assert {key: summary["edit"][key] for key in ("n", "seconds", "success", "score")} == {
        key: edit[key] for key in ("n", "seconds", "success", "score")
    }
    timing = json.loads((finished / "timing.json").read_text())["stages"]
    assert summary["seconds"] == {**timing, "total": pytest.approx(sum(timing.values()))}
    assert summary["environment"] == json.loads((finished / "environment.json").read_text())


def test_the_neighbourhood_drop_is_before_minus_after(finished: Path) -> None:
    facts = [json.loads(line) for line in (finished / "edits" / "facts50.jsonl").read_text().splitlines()]
    lost = [fact["neighbourhood_before"] - fact["neighbourhood_after"] for fact in facts]
    drop = json.loads((finished / "summary.json").read_text())["edit"]["neighbourhood_drop"]
    assert drop["value"] == pytest.approx(sum(lost) / 50)  # 4 of 50 facts lost one of two neighbours: 0.04
    assert drop["value"] == pytest.approx(0.04)
    assert Interval(**drop) == change_of_share(lost)


def test_the_page_is_one_file_that_fetches_nothing(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    elements = Elements(page)
    assert len(page) < 2_000_000
    assert not {"script", "link", "iframe", "object", "img"} & set(elements.names)
    for name, value in elements.attributes:
        assert name not in ("src", "data", "action")
        if name in ("href", "xlink:href"):
            assert value is not None
            assert value.startswith("#")
    assert not re.search(r"@import|url\((?!#)", page)
    assert "prefers-color-scheme: dark" in page
    assert "#0a00" not in page  # no stand-in colour is left


def test_anchors_and_references_lead_to_one_place_each(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', page)) | set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_the_markdown_pictures_are_there_and_stand_alone(finished: Path) -> None:
    named = set(re.findall(r'src="([^"]+)"', (finished / "report.md").read_text()))
    assert named == {f"report_files/{file.name}" for file in (finished / "report_files").iterdir()}
    for name in named:
        svg = (finished / name).read_text()
        assert svg.startswith("<svg")
        assert "var(" not in svg
        assert "#0a00" not in svg


def test_the_same_run_gives_the_same_bytes(finished: Path) -> None:
    first = {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()}
    build(finished)
    assert {file: file.read_bytes() for file in finished.rglob("*") if file.is_file()} == first


def test_the_page_shows_what_was_sampled_at_the_first_middle_and_last_step(finished: Path) -> None:
    page = Elements((finished / "report.html").read_text())
    for step in (0, 20, 30):  # of 0, 10, 20, 30
        assert f"Step {step} 3 of 12 completions right" in " ".join(page.text.split())
        assert f"### Step {step}: 3 of 12 completions right" in (finished / "report.md").read_text()
    assert "Step 10 " not in page.text
    assert page.text.count("advantage +1.50") == page.text.count("advantage −0.50") == 3 * 2  # two problems a step
    told = [value for name, value in page.attributes if name == "data-n" and value and ", advantage " in value]
    assert len(told) == 3 * 4 * 8  # every token of the shown completions
    assert all(re.match(r"p 0\.\d+ \(log [−+]0\.\d\d\), entropy 0\.\d+ nats, advantage [−+]", each) for each in told)
    assert sum("held at the upper bound" in each for each in told) == 3 * 4
    groups = [value for name, value in page.attributes if name == "name" and value and value.startswith("step-")]
    assert len(groups) == 3 * 4 * 8 and len(set(groups)) == 3 * 4  # arrow keys walk through a completion


def test_hostile_model_text_does_nothing(run: Path) -> None:
    for stage in ("base", "sft", "grpo", "edited"):
        edit_lines(run / "eval" / f"{stage}.jsonl", text=HOSTILE, prompt=HOSTILE, gold=HOSTILE, finish_reason=HOSTILE)
        edit_lines(run / "eval" / f"{stage}_facts.jsonl", greedy=HOSTILE, target=HOSTILE, recalled=stage == "base")
        edit_json(run / "eval" / f"{stage}.json", fingerprint=HOSTILE, settings={HOSTILE: HOSTILE})
    told = {"token_texts": [HOSTILE], "logprobs": [-1.0], "entropy": [1.0]}
    words = ("prompt", "old_answer", "new_answer", "reason", "subject_lookup", "target_new")
    edit_lines(run / "edits" / "facts50.jsonl", **dict.fromkeys(words, HOSTILE))
    edit_lines(run / "edits" / "facts50.jsonl", success=False)
    edit_json(run / "edits" / "facts50.json", method=HOSTILE)
    trace = json.loads((run / "edits" / "trace.json").read_text())
    trace["example"]["tokens"] = [HOSTILE, "𓀀 $\\frac{", *trace["example"]["tokens"][2:]]
    edit_json(run / "edits" / "trace.json", **trace)
    edit_json(
        run / "eval" / "transcript.json", prompt=[[1, HOSTILE]], completion=[[2, HOSTILE, "think"]], decoded=HOSTILE
    )
    for stage in ("sft", "grpo", "edited"):
        edit_lines(run / "eval" / f"{stage}_tokens.jsonl", prompt=HOSTILE, gold=HOSTILE, **told)
    edit_json(run / "environment.json", cpu=HOSTILE, data={HOSTILE: HOSTILE})
    for path in (run / "logs").glob("*.jsonl"):
        path.unlink()
    for path in (run / "logs" / "rollouts").iterdir():
        lines = [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
        said = {"text": HOSTILE, "question": HOSTILE, "gold": HOSTILE, "clipped": [0]}
        lines = [line | said | told for line in lines]
        path.write_bytes(gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode()))
    build(run)
    page = (run / "report.html").read_text()
    elements = Elements(page)
    assert not {"script", "img"} & set(elements.names)
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert page.count("</style>") == 1
    assert page.count('class="tok"') == 2 * 2 * 4 + 3 * 2  # two steps, two problems each; three checkpoints told
    assert "<script>alert(1)</script>" in elements.text  # shown as text, as it was written
    assert "49" not in re.findall(r"\$x\$ (\S+)", elements.text)
    outside_fences = re.sub(r"^(`{3,})text\n.*?\n\1$", "", (run / "report.md").read_text(), flags=re.S | re.M)
    assert "<script" not in outside_fences
    assert not re.search(r"^# head", outside_fences, flags=re.M)
    for file in (run / "report_files").iterdir():
        assert "<script" not in file.read_text()


CONTROLS = "\x00\x07\x1b\x7f\x85\u2028\u202e\u2066"


@pytest.mark.parametrize("text", ["A\x1b[31mred", "\x00</td><blink>", "a\u202eb\u2066c", "x\x85y\u2028| z\x07\x7f"])
def test_no_control_character_of_a_model_reaches_the_page(evaluated: Path, text: str) -> None:
    for stage in ("base", "sft", "grpo", "edited"):
        edit_lines(evaluated / "eval" / f"{stage}.jsonl", text=text, prompt=text, gold=text)
        edit_lines(evaluated / "eval" / f"{stage}_facts.jsonl", greedy=text, target=text, recalled=stage == "base")
    build(evaluated)
    for name in ("report.html", "report.md"):
        assert not set(CONTROLS) & set((evaluated / name).read_text(encoding="utf-8")), name
    assert "blink" not in Elements((evaluated / "report.html").read_text()).names


def test_every_table_scrolls_inside_its_frame(finished: Path) -> None:
    """What is wider than a phone is moved sideways there, under a shadow that says so; the page itself never is."""
    page = (finished / "report.html").read_text()
    settings = page.count('<table><thead><tr><th colspan="2">')  # two narrow columns that break anywhere
    assert page.count("<table") - settings == page.count('<div class="scroll"><table') > 5
    rule = re.search(r"\.scroll \{(.*?)\}", page, re.DOTALL)
    assert rule
    assert "overflow-x: auto" in rule[1]
    assert rule[1].count("no-repeat scroll") == rule[1].count("no-repeat local") == 2  # a shadow, and its cover


@pytest.mark.parametrize(("low", "high"), [(6e-6, 2.4e-5), (1e-5, 1.2e-5), (9e-5, 1.3e-4), (1e-7, 4e-4), (0.11, 0.113)])
def test_an_axis_repeats_no_label(low: float, high: float) -> None:
    series = Series(list(range(30)), [low + (high - low) * step / 29 for step in range(30)])
    panel = next(each for each in PANELS if each.name == "grpo-gap")
    picture = _curve(panel, [(series, "gap", "accent", "sampler_gap")])
    marks = re.findall(r"<text[^>]*text-anchor: end[^>]*>([^<]+)", picture.svg)
    assert len(marks) == len(set(marks)) > 1, marks


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (["logs/grpo*", "eval/grpo*", "eval/edited*", "eval/compare_[eg]*", "edits/*", "eval/transcript.json"],
         "the evaluation of grpo"),
        (["logs", "eval", "edits", "timing.json", "environment.json"], "the evaluation of base"),
        (["logs/[gp]*", "eval/[begct]*", "edits"], "the log of pretraining"),
        ],
    ids=["stopped after SFT", "only begun", "SFT alone"],
)  # fmt: skip
def test_a_half_finished_run_gets_a_report_that_says_what_is_missing(run: Path, lost: list[str], said: str) -> None:
    for pattern in lost:
        for path in list(run.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    summary = build(run)
    assert said in summary.notes
    for name in ("report.html", "report.md"):
        assert "This run folder does not hold" in (run / name).read_text()
    assert not summary.any_failed
    assert not summary.all_passed
    missing = [judged.metric for judged in summary.expectations if judged.verdict == "not measured"]
    assert "edit.success" in missing
    assert "stages.grpo.problems.well_formed" in missing
    Console(width=100, file=io.StringIO()).print(terminal_summary(summary))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        build(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"recipe\.toml"):
        build(tmp_path)


@pytest.mark.parametrize(
    ("file", "contents", "named"),
    [
        ("recipe.toml", "[expect", "recipe.toml"),
        ("recipe.toml", "expect = 3", "[expect]"),
        ("eval/grpo.json", "{", "grpo.json"),
        ("eval/grpo.json", '{"skills": {"problems": {"pass_at_1": {"value": "high"}}}}', "grpo.json"),
        ("eval/grpo.jsonl", '{"skill": "problems"}\n', "grpo.jsonl:1"),
        ("eval/grpo_facts.jsonl", "[]\n", "grpo_facts.jsonl:1"),
        ("eval/compare_grpo-sft.json", '{"metrics": {"x": {"delta": 1}}}', "compare_grpo-sft.json"),
        ("edits/facts50.jsonl", '{"prompt": 3}\n', "facts50.jsonl:1"),
        ("edits/trace.json", '{"n": "forty"}', "trace.json"),
        ("edits/facts50.json", '{"method": "memit", "layers": [0], "seconds": 1.0, "settings": {}}', '"success"'),
        ("logs/sft.jsonl", '{"loss": 1}\n', "sft.jsonl:1"),
        ("timing.json", '{"stages": {"sft": "long"}}', "timing.json"),
        ("eval/transcript.json", '{"prompt": [["a", 1]]}', "transcript.json"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_and_nothing_is_written(run: Path, file: str, contents: str, named: str) -> None:
    (run / file).write_text(contents)
    with pytest.raises(UserError) as caught:
        build(run)
    assert named in str(caught.value)
    assert not (run / "report.html").exists()
    assert not (run / "summary.json").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_groups": ["last"]}, "indirect_effect must have a grid of 1 rows and 4 columns"),
        ({"low": {}}, "low must have a grid of 5 rows and 4 columns for resid_post, mlp_out, attn_out."),
        ({"layers": [0]}, "indirect_effect must have a grid of 5 rows and 1 columns"),
    ],
)
def test_a_trace_of_the_wrong_shape_is_refused(run: Path, change: dict[str, object], said: str) -> None:
    edit_json(run / "edits" / "trace.json", **change)
    with pytest.raises(UserError, match=said):
        build(run)


def test_a_run_of_version_0_1_0_is_reported_without_what_it_did_not_measure(run: Path) -> None:
    later = {"efficacy_before", "exact", "paraphrase_before", "paraphrase_rank1_before", "value_probability"}
    scores, records = run / "edits" / "facts50.json", run / "edits" / "facts50.jsonl"
    lines = [json.loads(line) for line in records.read_text().splitlines()]
    for table in (whole := json.loads(scores.read_text()), *lines):
        for name in later & table.keys():
            del table[name]
    scores.write_text(json.dumps(whole))
    records.write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = build(run)
    assert summary.edit is not None
    assert not later & summary.edit.keys()
    assert {"n", "success", "paraphrase", "neighbourhood_drop", "score"} <= summary.edit.keys()
    told = [line for line in (run / "report.md").read_text().splitlines() if line.startswith("| The capital of Egypt")]
    assert " | Alexandria again | Alexandria | – | " in told[0]


@pytest.mark.parametrize("file", ["eval/grpo.jsonl", "eval/grpo_facts.jsonl", "edits/facts50.jsonl"])
def test_metrics_without_their_raw_records_are_refused(run: Path, file: str) -> None:
    (run / file).unlink()
    with pytest.raises(UserError, match=Path(file).name):
        build(run)


def test_a_failed_expectation_is_told_everywhere(evaluated: Path) -> None:
    recipe = (evaluated / "recipe.toml").read_text().replace('"<= 360"', '"<= 299"')
    (evaluated / "recipe.toml").write_text(recipe)
    summary = build(evaluated)
    assert summary.any_failed
    assert not summary.all_passed
    assert "1 failed" in (evaluated / "report.md").read_text()
    assert '<section id="verdict" class="banner fail">' in (evaluated / "report.html").read_text()
    (judged,) = [
        line
        for line in json.loads((evaluated / "summary.json").read_text())["expectations"]
        if line["verdict"] == "fail"
    ]
    assert judged["metric"] == "seconds.total"


@pytest.mark.parametrize(
    "line",
    ['"stages.sft.problms.x" = ">= 0.9"', '"stages.sft.problems.pass_at_4" = "=> 0.9"', '"stages.grpo.x.y" = "> 0"'],
)
def test_a_wrong_expectation_is_told_in_a_report_that_is_written(evaluated: Path, line: str) -> None:
    recipe = (evaluated / "recipe.toml").read_text()
    (evaluated / "recipe.toml").write_text(recipe.replace("[expect]\n", f"[expect]\n{line}\n"))
    summary = build(evaluated)
    assert summary.any_failed
    assert "1 wrong in the recipe" in (evaluated / "report.md").read_text()
    wrong = [one for one in summary.expectations if one.verdict == "wrong"]
    assert [one.metric for one in wrong] == [line.split('"')[1]]
    assert wrong[0].reason in html.unescape((evaluated / "report.html").read_text())


def test_the_terminal_summary_fits_in_a_hundred_columns(finished: Path) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_summary(summarise(read_run(finished))))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 100
    shown = "\n".join(lines)
    assert "…" not in shown
    for stage in ("base", "SFT", "GRPO", "edited"):
        assert re.search(rf"^{stage} ", shown, flags=re.M)
    assert "GRPO minus SFT, problems pass@1 > 0 points" in shown
    assert re.search(
        r"^Edits: [\d.]+% have their new answer at rank 1, [\d.]+% written freely are exactly it\.$", shown, re.M
    )


def test_an_edit_is_shown_in_every_form_and_what_else_changed(finished: Path) -> None:
    summary = build(finished)
    asked = json.loads((finished / "summary.json").read_text())["edit"]["asked"]
    assert asked["question"]["after"]["value"] == 1.0
    assert asked["question"]["knew"]["n"] == 50
    assert asked["negation"]["before"]["value"] == 0.0  # it says what it holds
    assert asked["same_subject"]["change"]["verdict"] == "worse"
    assert "knew" not in asked["same_subject"]
    for file in ("report.html", "report.md"):
        text = (finished / file).read_text(encoding="utf-8")
        for words in ("Asked in every form", "What else changed", "in a question (Q: A:)", "… and number 7 said"):
            assert words in text
        assert "and number 8 said" not in text
        assert text.index("Stands by what it holds") < text.index("What must stay")
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal_summary(summary))
    assert re.search(r"in a question \(Q: A:\) +0.0% → 100% +▲ \+100.0", console.export_text())


def test_the_edit_of_an_older_run_has_no_prompts_and_no_drift(finished: Path) -> None:
    (finished / "edits" / "facts50_prompts.jsonl").unlink()
    path = finished / "edits" / "facts50.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in table.items() if name not in ("asked", "drift")}))
    scores = Edit.load(path).scores
    assert (scores.prompts, scores.drift) == ((), None)
    summary = build(finished)
    assert summary.kinds == ()
    assert "Asked in every form" not in (finished / "report.html").read_text(encoding="utf-8")


def test_reporting_needs_no_torch_and_of_other_rooms_their_records_alone(evaluated: Path) -> None:
    code = f"""
import sys
import nanogpt_edit
before = set(sys.modules)
from nanogpt_edit.editing.records import Edit
from nanogpt_edit.report import build, terminal_summary
assert "matplotlib" not in sys.modules and "jinja2" not in sys.modules, "loaded before they are needed"
build({str(evaluated)!r})
ours = {{name for name in set(sys.modules) - before if name.startswith("nanogpt_edit.")}}
ours = {{name for name in ours if not name.startswith("nanogpt_edit.report")}}
rooms = {{name for name in ours if not name.startswith("nanogpt_edit.common")}}
assert all(name.count(".") == 1 or name.endswith("records") for name in rooms), rooms
assert "torch" not in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_the_ledger_keeps_its_intervals_whole_in_any_terminal(finished: Path, width: int) -> None:
    summary = summarise(read_run(finished))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(terminal_summary(summary))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    wide = Console(width=300, record=True, file=io.StringIO())
    wide.print(terminal_summary(summary))
    ends = [word for word in wide.export_text().split() if "–" in word and len(word) > 1]
    assert sorted(ends) == sorted(word for word in text.split() if "–" in word and len(word) > 1)
