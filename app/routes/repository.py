"""The Open Inference Protocol's model repository extension: what the model store holds, load and unload."""

from typing import Any, Literal

from fastapi import APIRouter, Depends

from app.engine_client.catalogue import Catalogue
from app.http.auth import AccessRoute, admin, user
from app.http.state import State
from app.routes.openapi import errors
from app.schemas.open_inference import ChangeRequest, IndexEntry, IndexRequest
from jfb.store import ModelVersion

OPTIONS: dict[str, Any] = {"tags": ["open inference protocol"], "route_class": AccessRoute}
router = APIRouter(prefix="/v2/repository", dependencies=[Depends(user)], **OPTIONS)
admin_router = APIRouter(prefix="/v2/repository/models/{name}", dependencies=[Depends(admin)], **OPTIONS)


@router.post("/index", summary="List the model store", responses=errors(400, 401, 408, 413, 503))
async def repository_index(state: State, wanted: IndexRequest | None = None) -> list[IndexEntry]:
    entries = _entries(state.engines.catalogue)
    return [entry for entry in entries if entry.state == "READY" or wanted is None or not wanted.ready]


@admin_router.post("/load", summary="Load a model", responses=errors(400, 401, 403, 408, 413, 503))
async def load_model(state: State, name: str, change: ChangeRequest | None = None) -> list[IndexEntry]:
    await state.engines.load(name)
    return [entry for entry in _entries(state.engines.catalogue) if entry.name == name]


@admin_router.post("/unload", summary="Unload a model", responses=errors(400, 401, 403, 408, 413, 503))
async def unload_model(state: State, name: str, change: ChangeRequest | None = None) -> list[IndexEntry]:
    await state.engines.unload(name)
    return [entry for entry in _entries(state.engines.catalogue) if entry.name == name]


def _entries(catalogue: Catalogue) -> list[IndexEntry]:
    """Every version; one that is served although its replacement was refused is ready, and has the reason."""
    served = {ModelVersion(name, number) for name in catalogue.names for number in catalogue.versions(name)}
    entries = []
    for version in sorted(served | catalogue.refused.keys()):
        state: Literal["READY", "UNAVAILABLE"] = "READY" if version in served else "UNAVAILABLE"
        reason = catalogue.refused.get(version, "")
        entries.append(IndexEntry(name=version.name, version=str(version.number), state=state, reason=reason))
    entries += [IndexEntry(name=name, state="UNAVAILABLE", reason="unloaded on request") for name in catalogue.unloaded]
    return sorted(entries, key=lambda entry: entry.name)
