"""The playground's edits over HTTP: make one, watch what it does, turn it, undo it, take it along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from fastapi import APIRouter, Request
from fastapi.responses import Response

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.data.fact_files import fact_from_record, fact_to_record, read_facts
from nanogpt_edit.data.facts import Fact, locate_subject
from nanogpt_edit.editing.patch_files import save_patch
from nanogpt_edit.evaluation.writing import written_answers
from nanogpt_edit.model.tokenizer import tokenizer_of
from nanogpt_edit.serving.json_body import JsonRoute
from nanogpt_edit.serving.playground.desk import Desk
from nanogpt_edit.serving.playground.examples import likely_subject
from nanogpt_edit.serving.playground.jobs import Job, plain, streamed
from nanogpt_edit.serving.playground.lines import python_lines, shell_lines
from nanogpt_edit.serving.playground.twin import twin
from nanogpt_edit.serving.wire import Json

MOST_FACTS = 200


@dataclass(frozen=True)
class Subject:
    """What POST /api/subject takes."""

    model: str
    prompt: str
    subject: str = ""


@dataclass(frozen=True)
class NewEdit:
    """What POST /api/edits takes: facts as `fact_from_record` reads them."""

    model: str
    facts: list[dict[str, object]]
    settings: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Turn:
    """What PATCH /api/edits/NAME takes: the dial, and a factor for every fact."""

    scale: float
    switches: list[float]


def edit_routes(desk: Desk) -> APIRouter:
    """POST /api/subject, /api/edits, /api/patches; GET, PATCH, DELETE of edits."""
    routes = APIRouter(prefix="/api", route_class=JsonRoute)

    @routes.get("/facts")
    def packaged() -> Json:
        return {"facts": [fact_to_record(fact) for fact in read_facts("facts50")]}

    @routes.post("/subject")
    def subject(asked: Subject) -> Json:
        return find_subject(desk, asked)

    @routes.get("/edits")
    def edits() -> Json:
        return {"edits": list(desk.editions)}

    @routes.post("/edits")
    async def edit(request: Request, asked: NewEdit) -> Response:
        facts = read_records(asked.facts)

        def work(job: Job) -> Json:
            with desk.working(job.still_wanted):
                edition = desk.edit(asked.model, facts, asked.settings, job.progress)
                return told(desk, job, edition.name)

        return await streamed(request, work)

    @routes.post("/edits/{name}/measure")
    async def measure(request: Request, name: str) -> Response:
        desk.find(name)

        def work(job: Job) -> Json:
            with desk.working(job.still_wanted):
                return told(desk, job, name)

        return await streamed(request, work)

    @routes.patch("/edits/{name}")
    def turn(name: str, asked: Turn) -> Json:
        with desk.working():
            return {"likely": desk.turn(name, asked.scale, asked.switches)}

    @routes.delete("/edits/{name}")
    def undo(name: str) -> Json:
        with desk.working():
            return {"undone": [name], "exact": desk.undo(name)}

    @routes.delete("/edits")
    def undo_all() -> Json:
        with desk.working():
            exact = {name: desk.undo(name) for name in list(desk.editions)[::-1]}
            return {"undone": list(exact), "exact": all(exact.values())}

    @routes.get("/edits/{name}/patch")
    def patch(name: str) -> Response:
        with TemporaryDirectory() as folder, desk.working():
            file = Path(folder) / "patch.safetensors"
            save_patch(desk.find(name).saved(), file)
            return Response(
                file.read_bytes(),
                media_type="application/octet-stream",
                headers={"Content-Disposition": f'attachment; filename="{name}.safetensors"'},
            )

    @routes.post("/patches")
    async def load(request: Request, model: str) -> Response:
        contents = await request.body()

        def work(job: Job) -> Json:
            with TemporaryDirectory() as folder, desk.working(job.still_wanted):
                file = Path(folder) / "the patch"
                file.write_bytes(contents)
                return told(desk, job, desk.load(model, file).name)

        return await streamed(request, work)

    return routes


def read_records(records: Sequence[Mapping[str, object]]) -> list[Fact]:
    """The facts of a request. Raises UserError for none, too many, or one that is no fact."""
    if not 1 <= len(records) <= MOST_FACTS:
        raise UserError(f"there are {len(records)} facts in the request; 1 to {MOST_FACTS} can be edited at once here.")
    return [fact_from_record({"target_true": "", **each}, where=f"fact {n}") for n, each in enumerate(records, 1)]


def find_subject(desk: Desk, asked: Subject) -> Json:
    """Where the subject stands in the prompt, and what the model says there now."""
    model = desk.shelf.open(asked.model)
    subject = asked.subject.strip() or likely_subject(asked.prompt)
    if not asked.prompt.strip() or not subject:
        return {"subject": "", "start": 0, "end": 0, "lookup": "", "tokens": [], "says": ""}
    place = locate_subject(asked.prompt, subject, tokenizer_of(model))
    [(says, _)] = written_answers(twin(model), [(asked.prompt, "…")])
    return {
        "subject": asked.prompt[place.span.start : place.span.end],
        "start": place.span.start,
        "end": place.span.end,
        "lookup": place.span.lookup,
        "tokens": [tokenizer_of(model).token_text(i) for i in place.token_ids[place.first : place.last + 1]],
        "says": says,
    }


def told(desk: Desk, job: Job, name: str) -> Json:
    """Tell what the edit does (the event "edit"), and return what else it changed: that takes longer."""
    edition, meter = desk.find(name), desk.meter(name)
    source = str(desk.shelf.about(edition.root)["source"])
    lines = {"python": python_lines(source, edition), "shell": shell_lines(source, edition)}
    job.tell({"event": "edit", "edit": plain(meter.view(job.progress)), **lines})
    return {"elsewhere": plain(meter.elsewhere(job.progress))}
