"""GET / and GET engine: the pages for people, static files that ask the other routes."""

import os
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

router = APIRouter(include_in_schema=False)

STATIC = Path(__file__).resolve().parents[1] / "static"
FRESH = {"cache-control": "no-cache"}
"""Browsers ask whether a file has changed before they use theirs, so that the parts of a page always fit together."""


@router.get("/")
async def playground() -> Response:
    return FileResponse(STATIC / "index.html", headers=FRESH)


@router.get("/engine")
async def engine() -> Response:
    return FileResponse(STATIC / "engine.html", headers=FRESH)


class Static(StaticFiles):
    """The files that the pages load."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(FRESH | {"x-content-type-options": "nosniff"})
        return response
