"""GET models: what is served."""

import msgspec
from fastapi import APIRouter, Depends, Response

from app.engine_client.catalogue import Catalogue
from app.http.auth import AccessRoute, user
from app.http.state import AppState, State
from app.http.store_reads import read_store
from app.routes.examples import samples
from app.routes.openapi import errors
from app.schemas.native import LabelStopDescription, ModelDescription, ModelList
from jfb import store
from jfb.store import ModelVersion, Sample

router = APIRouter(tags=["models"], route_class=AccessRoute, dependencies=[Depends(user)])


@router.get("/models", summary="List the models", response_model=ModelList, responses=errors(401, 503))
async def list_models(state: State) -> Response:
    return _json(await read_store(lambda: _list(state).model_dump_json()))


@router.get("/models/{name}", summary="Describe a model", response_model=ModelDescription, responses=errors(401, 404, 503))
async def describe_model(state: State, name: str) -> Response:
    return _json(await read_store(lambda: _describe(state, state.engines.catalogue, name).model_dump_json()))


@router.get(
    "/models/{name}/samples", summary="Inputs to try a model with", response_model=list[Sample], responses=errors(401, 404, 503)
)
async def list_samples(state: State, name: str) -> Response:
    model = state.engines.catalogue.find(name)
    return _json(await read_store(lambda: msgspec.json.encode(samples(model, state.settings.model_store))))


def _json(content: str | bytes) -> Response:
    return Response(content, media_type="application/json")


def _list(state: AppState) -> ModelList:
    catalogue = state.engines.catalogue
    models = [_describe(state, catalogue, name) for name in catalogue.names]
    refused = {str(version): reason for version, reason in catalogue.refused.items()}
    return ModelList(default=catalogue.default, models=models, refused=refused)


def _describe(state: AppState, catalogue: Catalogue, name: str) -> ModelDescription:
    model = catalogue.find(name)
    serving, limit = model.config.serving, state.settings.max_iterations_limit
    try:
        metrics = store.read_metrics(ModelVersion(name, model.version).folder(state.settings.model_store))
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
        refused={str(number): reason for number, reason in catalogue.refused_versions(name).items()},
    )
