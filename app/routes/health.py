"""GET health and GET v2/health: does the server run, and can it answer?"""

from fastapi import APIRouter, Depends

from app.http.auth import AccessRoute, anyone
from app.http.errors import unavailable
from app.http.state import State
from app.routes.openapi import errors
from app.schemas.native import Live, Ready
from app.supervisor.process import read_status

router = APIRouter(tags=["health"], route_class=AccessRoute, dependencies=[Depends(anyone)])
ANSWER_SECONDS = 2.0
"""How long an engine may take to answer; it reads its messages between two iterations."""


@router.get("/v2/health/live", summary="Server liveness")
async def server_live() -> Live:
    return Live(live=True)


@router.get("/health", operation_id="health", summary="Whether the server can answer, for load balancers", responses=errors(503))
@router.get("/v2/health/ready", summary="Server readiness", responses=errors(503))
async def server_ready(state: State) -> Ready:
    if state.stopping.is_set():
        raise unavailable("server: shutting down")
    statuses = [read_status(file) for file in state.run_folder.status_files]
    if not any(status.ready for status in statuses):
        reasons = [status.last_error for status in statuses if status.last_error]
        raise unavailable(f"engine: {reasons[0] if reasons else 'starting'}")
    catalogue = state.engines.catalogue
    if not await state.engines.refresh(ANSWER_SECONDS):
        raise unavailable(f"engine: must answer within {ANSWER_SECONDS:g} s (got no answer)")
    if not catalogue.names:
        raise unavailable(f"model_store: must hold a model that can be loaded (got none in {state.settings.model_store})")
    return Ready(ready=True)
