"""GET /, GET engine and, for browsers, GET models/{name}: the pages, static files that use the other routes."""

import os
from pathlib import Path

from fastapi import APIRouter, Depends, Response
from fastapi.responses import FileResponse
from starlette.datastructures import Headers
from starlette.routing import Match
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from app.http.auth import AccessRoute, anyone


class PageRoute(AccessRoute):
    """A route for browsers, which prefer HTML, at the path of another one, which answers programs."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and Headers(scope=scope).get("accept", "").startswith("text/html"):
            return super().matches(scope)
        return Match.NONE, {}


router = APIRouter(include_in_schema=False, route_class=AccessRoute, dependencies=[Depends(anyone)])
model_router = APIRouter(include_in_schema=False, route_class=PageRoute, dependencies=[Depends(anyone)])
"""To be included before the route with the same path that answers programs."""
STATIC = Path(__file__).resolve().parents[1] / "static"
REVALIDATE = {"cache-control": "no-cache"}
"""Browsers check for a newer file before they use theirs, so that the parts of a page always fit together."""


@router.get("/")
async def playground() -> Response:
    return FileResponse(STATIC / "index.html", headers=REVALIDATE)


@router.get("/engine")
async def engine() -> Response:
    return FileResponse(STATIC / "engine.html", headers=REVALIDATE)


@model_router.get("/models/{name}")
async def model() -> Response:
    return FileResponse(STATIC / "model.html", headers=REVALIDATE | {"vary": "accept"})


class Static(StaticFiles):
    """The files that the pages load."""

    def __init__(self) -> None:
        super().__init__(directory=STATIC)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(REVALIDATE | {"x-content-type-options": "nosniff"})
        return response
