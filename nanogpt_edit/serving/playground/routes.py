"""The playground: its page, and everything that the page asks for beside the OpenAI-compatible routes."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from nanogpt_edit.editing.config import METHODS
from nanogpt_edit.pipeline.records import STAGE_NAMES
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.playground.desk import Desk
from nanogpt_edit.serving.playground.edit_routes import edit_routes
from nanogpt_edit.serving.playground.examples import (
    as_record,
    facts_to_trace,
    facts_to_try,
    prompts_to_try,
    read_if_whole,
)
from nanogpt_edit.serving.playground.run_routes import run_routes
from nanogpt_edit.serving.playground.trace_routes import trace_routes
from nanogpt_edit.serving.wire import Json

KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
FILES = {file.name: file for file in (resources.files("nanogpt_edit.serving.playground") / "page").iterdir()}


def playground(desk: Desk) -> APIRouter:
    """GET / and its files, GET /api/about, and the routes of edits, traces and runs."""
    routes, shelf = APIRouter(), desk.shelf
    examples: dict[tuple[str, ...], Json] = {}

    @routes.get("/", include_in_schema=False)
    def page() -> Response:
        return file("index.html")

    @routes.get("/playground/{name}", include_in_schema=False)
    def file(name: str) -> Response:
        """One of a fixed set: no path from a request is opened."""
        kind = KINDS.get(name[name.rfind(".") :])
        if name not in FILES or kind is None:
            raise HTTPException(404, f"the playground has no file {name[:60]}")
        return Response(FILES[name].read_bytes(), media_type=kind, headers={"Cache-Control": "no-cache"})

    @routes.get("/api/about")
    def about() -> Json:
        shelf.follow()
        own = tuple(name for name in shelf.names() if name not in desk.editions)
        if own not in examples:
            examples[own] = to_try(shelf, own)
            if (edited := examples[own]["edited"]) is not None:
                desk.ordinary.begin(str(edited), shelf.open(str(edited)))
        return {
            "models": [shelf.about(name) for name in shelf.names()],
            "edits": list(desk.editions),
            "methods": list(METHODS),
            "examples": examples[own],
            "run": None if shelf.run_folder is None else str(shelf.run_folder),
        }

    for part in (edit_routes(desk), trace_routes(desk), run_routes(shelf)):
        routes.include_router(part)
    return routes


def to_try(shelf: Shelf, names: tuple[str, ...]) -> Json:
    """What the page offers, and which models it compares and edits when it is opened."""
    taught = [name for name in STAGE_NAMES if name in names]
    edited = next((name for name in reversed(taught) if name != "edited"), names[0] if names else None)
    run = None if shelf.run_folder is None else read_if_whole(shelf.run_folder)
    facts = facts_to_try(None if edited is None else shelf.open(edited), run)
    chats = edited is not None and bool(shelf.about(edited)["has_chat_template"])
    return {
        "ask": [asdict(each) for each in prompts_to_try(facts, run, chats=chats)],
        "compare": [name for name in taught if name != "edited"] or names[:3],
        "edit": [as_record(*each) for each in facts],
        "trace": [as_record(*each) for each in facts_to_trace(facts, run)],
        "edited": edited,
    }
