"""The playground's view of a run over HTTP."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter
from fastapi.responses import FileResponse

from nanogpt_edit.common.errors import UserError
from nanogpt_edit.serving.json_body import JsonRoute
from nanogpt_edit.serving.models import Shelf
from nanogpt_edit.serving.playground import run_view
from nanogpt_edit.serving.wire import Json

REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""A report brings its style with it, and no script."""


def run_routes(shelf: Shelf) -> APIRouter:
    """GET /api/run, /api/run/curves, /api/run/rollouts, /api/run/ledger, /api/run/report."""
    routes = APIRouter(prefix="/api/run", route_class=JsonRoute)

    def folder() -> Path:
        if shelf.run_folder is None:
            raise UserError("the server was given a model and no run; start it with the folder of one.")
        return shelf.run_folder

    @routes.get("")
    def stages() -> Json:
        return run_view.stages(folder())

    @routes.get("/curves")
    def curves() -> Json:
        return run_view.curves(folder())

    @routes.get("/rollouts")
    def rollouts(step: int | None = None) -> Json:
        return run_view.rollouts(folder(), step)

    @routes.get("/ledger")
    def ledger() -> Json:
        return run_view.ledger(folder())

    @routes.get("/report")
    def report() -> FileResponse:
        file = folder() / "report.html"
        if not file.is_file():
            raise UserError(f"{file} is not there yet; the run writes it at its end.")
        return FileResponse(file, media_type="text/html", headers={"Content-Security-Policy": REPORT_POLICY})

    return routes
