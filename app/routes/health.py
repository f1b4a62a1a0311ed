"""GET v2/health: is the server up, and can it answer?"""

import msgspec
from fastapi import APIRouter, Response

from app.engine_client.errors import EngineDied
from app.http.errors import unavailable
from app.http.state import ServerOfRequest
from app.routes import openapi
from app.schemas.native import Live, Ready

router = APIRouter(prefix="/v2/health", tags=["health"])

LOOK_SECONDS = 2.0
"""How long the engine may take to answer that it is well; it looks at its messages between two iterations."""


@router.get("/live", summary="Is the server up?", **openapi.answers(Live))
async def live() -> Response:
    return Response(msgspec.json.encode(Live(True)), media_type="application/json")


@router.get("/ready", summary="Are all models loaded, and does the engine answer?", **openapi.answers(Ready, 503))
async def ready(server: ServerOfRequest) -> Response:
    if server.stopping.is_set():
        raise unavailable("server: it is shutting down")
    if server.engine.trouble is not None:
        raise unavailable(f"engine: {server.engine.trouble}")
    catalogue = server.catalogue
    if not server.engine.ready:
        raise unavailable("engine: it is being started")
    try:
        await server.engine.client.look(LOOK_SECONDS)
    except (EngineDied, TimeoutError) as error:
        raise unavailable(f"engine: expected an answer within {LOOK_SECONDS:g} s, got none") from error
    if not catalogue.names:
        raise unavailable(f"model_store: expected at least one model in {server.settings.model_store}, got none that loads")
    return Response(msgspec.json.encode(Ready(True)), media_type="application/json")
