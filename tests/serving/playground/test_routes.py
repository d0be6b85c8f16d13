"""What the playground asks of the server: files, subjects, edits turned, saved, loaded and undone, traces, runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from edit_world import facts, trained_model
from playground_run import served_run
from serving_run import Served

from nanogpt_edit.checkpoint.checkpoint import fingerprint
from nanogpt_edit.data.fact_files import fact_to_record
from nanogpt_edit.editing.patch_files import load_patch

FACT = fact_to_record(facts(1)[0])


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served_run(tmp_path_factory.mktemp("run")) as found:
        yield found


def told(here: Served, path: str, body: object) -> list[dict[str, object]]:
    """The events of a stream."""
    status, _, found = here.ask("POST", path, body)
    assert status == 200, found
    lines = [line.removeprefix("data: ") for line in found.decode().split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def get(here: Served, path: str) -> dict[str, object]:
    status, _, found = here.ask("GET", path)
    assert status == 200, found
    return json.loads(found)


def refusal(here: Served, method: str, path: str, body: object = None) -> tuple[int, str]:
    status, _, found = here.ask(method, path, body)
    return status, json.loads(found)["error"]["message"]


@pytest.fixture(scope="module")
def edited(here: Served) -> dict[str, object]:
    *events, done = told(here, "/api/edits", {"model": "small", "facts": [FACT]})
    kinds = [event["event"] for event in events]
    assert kinds.count("edit") == 1 and kinds[0] == "progress" and set(kinds) == {"progress", "edit"}
    return events[kinds.index("edit")] | done


def edit_told(here: Served, path: str, body: object) -> dict[str, object]:
    """What is told of an edit, and then of what else it changed."""
    events = told(here, path, body)
    return {name: value for event in events if event["event"] != "progress" for name, value in event.items()}


def test_the_page_and_its_files_are_a_fixed_set(here: Served) -> None:
    status, headers, page = here.ask("GET", "/")
    assert status == 200 and headers["content-type"].startswith("text/html")
    assert "'unsafe-inline'" not in headers["content-security-policy"]
    assert b"<script>" not in page and b" style=" not in page and b"onclick" not in page
    for name in ("main.js", "base.css"):
        status, headers, _ = here.ask("GET", f"/playground/{name}")
        assert status == 200 and "text/" in headers["content-type"]
    for name in ("..%2Fapp.py", "%2e%2e", "nothing.js", "__init__.py"):
        assert here.ask("GET", f"/playground/{name}")[0] == 404


def test_about_names_models_methods_and_examples(here: Served) -> None:
    about = get(here, "/api/about")
    assert [model["id"] for model in about["models"]] == ["small"]
    assert "memit" in about["methods"] and about["examples"]["edit"] and about["examples"]["ask"]


def test_a_subject_is_found_as_it_is_typed(here: Served) -> None:
    prompt = FACT["prompt"]
    given = here.post("/api/subject", {"model": "small", "prompt": prompt, "subject": str(FACT["subject"]).lower()})
    assert prompt[given["start"] : given["end"]].lower() == str(FACT["subject"]).lower()
    guessed = here.post("/api/subject", {"model": "small", "prompt": "The capital of Egypt is"})
    assert guessed["subject"] == "Egypt" and "".join(guessed["tokens"]).strip() == "Egypt"
    assert refusal(here, "POST", "/api/subject", {"model": "small", "prompt": "A b", "subject": "c"})[0] == 400


def test_an_edit_stands_beside_its_model(here: Served, edited: dict[str, object]) -> None:
    name = edited["edit"]["id"]
    assert name == "small+edit-1" and name in here.shelf.names()
    [fact] = edited["edit"]["facts"]
    assert fact["says"] == FACT["target_new"] and fact["said"] == FACT["target_true"] and fact["exact"]
    assert {each["kind"] for each in fact["prompts"]} >= {"prompt", "behind", "negation"}
    assert edited["elsewhere"]["change"]["n"] > 10 and edited["elsewhere"]["text"]["kl"]["value"] > 0
    assert "ne.edit(model, facts)" in edited["python"] and "nanogpt-edit edit" in edited["shell"]
    assert fingerprint(here.shelf.open("small")) == fingerprint(trained_model())


def test_the_dial_moves_what_is_served(here: Served, edited: dict[str, object]) -> None:
    name = edited["edit"]["id"]
    [answers] = [each["answers"] for each in edited["edit"]["facts"][0]["prompts"] if each["kind"] == "prompt"]

    def turned(scale: float) -> list[float]:
        status, _, found = here.ask("PATCH", f"/api/edits/{name}", {"scale": scale, "switches": [1.0]})
        assert status == 200, found
        return json.loads(found)["likely"][0]

    assert turned(1.0) == pytest.approx([answer["now"] for answer in answers])
    assert turned(0.0) == pytest.approx([answer["before"] for answer in answers])
    assert fingerprint(here.shelf.open(name)) == fingerprint(trained_model())
    measured = edit_told(here, f"/api/edits/{name}/measure", {})
    assert measured["edit"]["scale"] == 0.0 and measured["elsewhere"]["text"]["kl"]["value"] == 0
    assert refusal(here, "PATCH", f"/api/edits/{name}", {"scale": 2, "switches": [1.0]})[0] == 400
    turned(1.0)


def test_a_patch_is_saved_and_loaded_again(here: Served, edited: dict[str, object], tmp_path: Path) -> None:
    status, headers, found = here.ask("GET", f"/api/edits/{edited['edit']['id']}/patch")
    assert status == 200 and "small+edit-1.safetensors" in headers["content-disposition"]
    file = tmp_path / "saved.safetensors"
    file.write_bytes(found)
    assert load_patch(file).facts == facts(1)
    kind = {"Content-Type": "application/octet-stream"}
    status, _, events = here.ask("POST", "/api/patches?model=small", found, kind)
    assert status == 200 and b'"id":"small+edit-2"' in events
    assert fingerprint(here.shelf.open("small+edit-2")) == fingerprint(here.shelf.open("small+edit-1"))
    status, _, refused = here.ask("POST", "/api/patches?model=small", b"no patch", kind)
    assert status == 400 and b"traceback" not in refused.lower()


@pytest.mark.slow
def test_an_edit_of_an_edit_names_the_whole_way(here: Served, edited: dict[str, object]) -> None:
    second = fact_to_record(facts(2)[1])
    settings = {"method": "rome"}  # it changes one layer of the two below
    done = edit_told(here, "/api/edits", {"model": edited["edit"]["id"], "facts": [second], "settings": settings})
    again = edit_told(here, f"/api/edits/{done['edit']['id']}/measure", {})
    assert again == done  # nothing was turned: it is not measured anew
    assert "small+edit-1.safetensors" in done["python"] and "small+edit-1.safetensors" in done["shell"]
    before = fingerprint(here.shelf.open(done["edit"]["id"]))
    for scale in (0, 1):  # the edit below is turned: this one stays what it is
        assert here.ask("PATCH", "/api/edits/small+edit-1", {"scale": scale, "switches": [1.0]})[0] == 200
        assert fingerprint(here.shelf.open(done["edit"]["id"])) == before
    assert "method='rome'" in done["python"] and "--edit.method rome" in done["shell"]


def test_undone_is_bit_for_bit(here: Served, edited: dict[str, object]) -> None:
    name = edited["edit"]["id"]
    status, _, found = here.ask("DELETE", f"/api/edits/{name}")
    assert status == 200 and json.loads(found) == {"undone": [name], "exact": True}
    status, _, found = here.ask("DELETE", "/api/edits")
    assert status == 200 and json.loads(found)["exact"] is True
    assert here.shelf.names() == ["small"] and fingerprint(here.shelf.open("small")) == fingerprint(trained_model())
    assert refusal(here, "DELETE", f"/api/edits/{name}")[0] == 400


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "small", "facts": []}, 400, "0 facts"),
        ({"model": "none", "facts": [FACT]}, 404, "no model"),
        ({"model": "small", "facts": [{"prompt": "x"}]}, 400, "fact 1"),
        ({"model": "small", "facts": [FACT], "settings": {"steps": "9"}}, 400, "cannot be set here"),
        ({"model": "small", "facts": [FACT], "settings": {"method": "magic"}}, 400, "method"),
    ],
)
def test_what_cannot_be_edited_is_said_in_a_sentence(here: Served, body: object, status: int, said: str) -> None:
    found, sentence = refusal(here, "POST", "/api/edits", body)
    assert found == status and said in sentence


def test_a_trace_and_its_lens(here: Served) -> None:
    asked = {"model": "small", "prompt": FACT["prompt"], "subject": FACT["subject"], "answer": FACT["target_true"]}
    *_, done = told(here, "/api/trace", {**asked, "draws": 2})
    rows, tokens = done["trace"]["effect"]["resid_post"], done["trace"]["tokens"]
    assert len(rows) == len(tokens) == len(done["lens"]["best"])
    assert done["trace"]["clean_p"] > 0.5 > done["trace"]["corrupted_p"]
    assert refusal(here, "POST", "/api/trace", {**asked, "draws": 99})[0] == 400


def test_a_run_is_told_from_its_files(here: Served) -> None:
    run = get(here, "/api/run")
    assert [stage["name"] for stage in run["stages"]] == ["base", "sft", "grpo", "edited"] and not run["running"]
    assert get(here, "/api/run/curves")["sft"]["loss"]["steps"]
    seen = get(here, "/api/run/rollouts")
    assert seen["step"] == run["rollout_steps"][-1] and seen["rollouts"][0]["token_texts"]
    assert [row["stage"] for row in get(here, "/api/run/ledger")["rows"]] == ["base", "SFT", "GRPO", "edited"]
    assert refusal(here, "GET", "/api/run/rollouts?step=99999")[0] == 400
    assert refusal(here, "GET", "/api/run/report")[0] == 400
