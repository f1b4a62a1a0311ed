"""GET models: what is served, and the files that training left with it."""

import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Response

from app.engine_client.catalogue import Catalogue
from app.engine_client.messages import ServedVersion
from app.http.auth import AccessRoute, user
from app.http.errors import ApiError
from app.http.state import AppState, State
from app.http.store_reads import read_store
from app.inference.run import find_model
from app.routes.examples import samples
from app.routes.openapi import errors
from app.schemas.native import LabelStopDescription, ModelDescription, ModelList
from jfb import store
from jfb.store import ModelVersion, Sample

JSON, CSV, PNG = "application/json", "text/csv; charset=utf-8", "image/png"
FILES: Mapping[str, str] = {
    store.CARD: "text/markdown; charset=utf-8",
    store.HISTORY: CSV,
    store.CURVES: PNG,
    store.EVALUATION: JSON,
    store.EVALUATION_TABLE: CSV,
    store.EVALUATION_PLOT: PNG,
    store.DIFFICULTY_TABLE: CSV,
    store.DIFFICULTY_PLOT: PNG,
    "model.onnx": "application/octet-stream",
}
"""The files of a version that clients may read, with their media types."""
FILE_CONTENT: dict[int | str, dict[str, Any]] = {200: {"content": {kind.partition(";")[0]: {} for kind in FILES.values()}}}
MAX_FILE_BYTES = 2**26
"""Larger files are not offered: each is read into memory."""

router = APIRouter(tags=["models"], route_class=AccessRoute, dependencies=[Depends(user)])
RequestedModel = Annotated[ServedVersion, Depends(find_model)]


@router.get("/models", summary="List the models", response_model=ModelList, responses=errors(401, 503))
async def list_models(state: State) -> Response:
    return _json(await read_store(lambda: _list(state).model_dump_json()))


@router.get("/models/{name}", summary="Describe a model", response_model=ModelDescription, responses=errors(401, 404, 503))
async def describe_model(state: State, name: str) -> Response:
    catalogue = state.engines.catalogue
    description = await read_store(lambda: _describe(state, catalogue, catalogue.find(name)).model_dump_json())
    return Response(description, media_type=JSON, headers={"vary": "accept"})  # browsers get a page


@router.get(
    "/models/{name}/versions/{version}",
    summary="Describe one version of a model",
    response_model=ModelDescription,
    responses=errors(401, 404, 422, 503),
)
async def describe_version(state: State, model: RequestedModel) -> Response:
    return _json(await read_store(lambda: _describe(state, state.engines.catalogue, model).model_dump_json()))


@router.get(
    "/models/{name}/versions/{version}/files/{file}",
    summary="A file of one version, such as its model card",
    response_class=Response,
    responses=FILE_CONTENT | errors(401, 404, 422, 503),
)
async def read_version_file(state: State, model: RequestedModel, file: str) -> Response:
    content = await read_store(lambda: _read(state, model, file))
    return Response(content, media_type=FILES[file], headers={"x-content-type-options": "nosniff", "cache-control": "no-cache"})


@router.get(
    "/models/{name}/samples", summary="Inputs to try a model with", response_model=list[Sample], responses=errors(401, 404, 503)
)
async def list_samples(state: State, name: str) -> Response:
    model = state.engines.catalogue.find(name)
    return _json(await read_store(lambda: msgspec.json.encode(samples(model, state.settings.model_store))))


def _json(content: str | bytes) -> Response:
    return Response(content, media_type=JSON)


def _folder(state: AppState, model: ServedVersion) -> Path:
    return ModelVersion(model.model, model.version).folder(state.settings.model_store)


def _files(folder: Path) -> dict[str, int]:
    """The files that may be read, with their sizes; not links, which could lead out of the store."""
    found = {}
    for name in FILES:
        try:
            status = (folder / name).lstat()
        except OSError:
            continue
        if stat.S_ISREG(status.st_mode) and 0 < status.st_size <= MAX_FILE_BYTES:
            found[name] = status.st_size
    return found


def _read(state: AppState, model: ServedVersion, name: str) -> bytes:
    folder = _folder(state, model)
    files = _files(folder)
    if name not in files:
        version = f"version {model.version} of model {model.model}"
        raise ApiError(404, f"{version} has no file {name[:80]!r} (available: {', '.join(files) or 'none'})")
    try:
        return store.read_file(folder / name, MAX_FILE_BYTES)
    except store.CheckpointError as error:
        raise ApiError(404, f"file: {name} cannot be read") from error


def _list(state: AppState) -> ModelList:
    catalogue = state.engines.catalogue
    models = [_describe(state, catalogue, catalogue.find(name)) for name in catalogue.names]
    refused = {str(version): reason for version, reason in catalogue.refused.items()}
    return ModelList(default=catalogue.default, models=models, refused=refused)


def _describe(state: AppState, catalogue: Catalogue, model: ServedVersion) -> ModelDescription:
    name, folder = model.model, _folder(state, model)
    serving, limit = model.config.serving, state.settings.max_iterations_limit
    try:
        metrics = store.read_metrics(folder)
    except store.CheckpointError:  # whatever is in it, the model is served
        metrics = None
    return ModelDescription(
        name=name,
        version=model.version,
        versions=catalogue.versions(name),
        aliases=catalogue.aliases(name),
        default=catalogue.default == name,
        architecture=model.config.architecture.name,
        input=model.config.input,
        classes=model.config.classes,
        tolerance=serving.tolerance,
        max_iterations=min(serving.max_iterations, limit),
        max_iterations_limit=limit,
        residual_norm=serving.residual_norm.value,
        solver=serving.solver,
        solvers=list(model.solvers),
        label_stop=LabelStopDescription.model_validate(model.label_stop, from_attributes=True) if model.label_stop else None,
        metrics=metrics,
        files=_files(folder),
        refused={str(number): reason for number, reason in catalogue.refused_versions(name).items()},
    )
