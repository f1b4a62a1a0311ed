"""The Open Inference Protocol's model repository extension: what the store holds, load and unload."""

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec
from fastapi import APIRouter, Request, Response

from app.engine_client.errors import LoadFailed
from app.http import body
from app.http.errors import Refusal, bad_requests_are_400
from app.http.state import Server, ServerOfRequest
from app.inference import tensors
from app.routes import openapi
from app.schemas.open_inference import ChangeRequest, IndexEntry, IndexRequest

router = APIRouter(prefix="/v2/repository", tags=["open inference protocol"])
admin_router = APIRouter(prefix="/v2/repository/models/{name}", tags=["open inference protocol"])

INDEX = openapi.answers(IndexEntry, 400, 408, 413, 503, many=True)


@router.post("/index", summary="What the model store holds", **INDEX, **openapi.optional_body(IndexRequest))
async def index(request: Request, server: ServerOfRequest) -> Response:
    with bad_requests_are_400():
        asked = tensors.decode("body", await body.read(request, server.settings) or b"{}", IndexRequest)
    return _json([entry for entry in _entries(server) if entry.state == "READY" or not asked.ready])


@admin_router.post("/load", summary="Serve what the store holds of a model now", **INDEX, **openapi.optional_body(ChangeRequest))
async def load(request: Request, server: ServerOfRequest, name: str) -> Response:
    return await _change(request, server, name, server.engine.client.load)


@admin_router.post("/unload", summary="Serve a model no longer", **INDEX, **openapi.optional_body(ChangeRequest))
async def unload(request: Request, server: ServerOfRequest, name: str) -> Response:
    return await _change(request, server, name, server.engine.client.unload)


async def _change(request: Request, server: Server, name: str, change: Callable[[str], Awaitable[None]]) -> Response:
    with bad_requests_are_400():
        tensors.decode("body", await body.read(request, server.settings) or b"{}", ChangeRequest)
        try:
            await change(name)
        except LoadFailed as error:
            raise Refusal(400, f"model: {error}") from error
    return _json([entry for entry in _entries(server) if entry.name == name])


def _entries(server: Server) -> list[IndexEntry]:
    """Every version; one that is served although what replaces it was refused is ready, and has the reason."""
    catalogue, state = server.catalogue, server.engine.client.state
    served = {f"{name}/{version}" for name in catalogue.names for version in catalogue.versions(name)}
    entries = []
    for path in served | catalogue.refused.keys():
        name, _, version = path.partition("/")
        word: Literal["READY", "UNAVAILABLE"] = "READY" if path in served else "UNAVAILABLE"
        entries.append(IndexEntry(name=name, version=version, state=word, reason=catalogue.refused.get(path, "")))
    for name in state.unloaded if state else []:
        entries.append(IndexEntry(name=name, state="UNAVAILABLE", reason="it was unloaded"))
    return sorted(entries, key=lambda entry: (entry.name, int(entry.version or 0)))


def _json(entries: list[IndexEntry]) -> Response:
    return Response(msgspec.json.encode(entries), media_type="application/json")
