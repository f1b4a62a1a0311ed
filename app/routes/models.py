"""GET models: what is served."""

import json

import msgspec
from fastapi import APIRouter, Response

from app.engine_client.catalogue import Catalogue
from app.http.state import Server, ServerOfRequest
from app.inference.samples import samples_of
from app.routes import openapi
from app.schemas.native import InputDescription, ModelDescription, ModelList, Sample

router = APIRouter(tags=["models"])


# Plain functions: FastAPI runs them in a thread, where reading metrics.json from a slow disk holds up nobody.


@router.get("/models", summary="Everything in the model store", **openapi.answers(ModelList, 503))
def list_models(server: ServerOfRequest) -> Response:
    catalogue = server.catalogue
    models = [_describe(server, catalogue, name) for name in catalogue.names]
    return _json(ModelList(catalogue.default, models, catalogue.refused))


@router.get("/models/{name}", summary="One model", **openapi.answers(ModelDescription, 404, 503))
def describe_model(server: ServerOfRequest, name: str) -> Response:
    return _json(_describe(server, server.catalogue, name))


@router.get("/models/{name}/samples", summary="Inputs to try a model with", **openapi.answers(Sample, 404, 503, many=True))
def list_samples(server: ServerOfRequest, name: str) -> Response:
    return _json(samples_of(server.catalogue.find(name, None), server.settings.model_store))


def _describe(server: Server, catalogue: Catalogue, name: str) -> ModelDescription:
    model = catalogue.find(name, None)
    spec, serving, limit = model.config.input, model.config.serving, server.settings.max_iterations_limit
    return ModelDescription(
        name=model.name,
        version=model.version,
        versions=catalogue.versions(name),
        default=catalogue.default == name,
        architecture=model.config.architecture.name,
        input=InputDescription(list(spec.shape), spec.kind, spec.dtype, spec.low, spec.high),
        classes=model.config.classes,
        tolerance=serving.tolerance,
        max_iterations=min(serving.max_iterations, limit),
        max_iterations_limit=limit,
        residual_norm=serving.residual_norm,
        solver=serving.solver,
        solvers=list(model.solvers),
        label_stop=model.label_stop,
        metrics=_metrics(server, model.name, model.version),
        refused=catalogue.refused_versions(name),
    )


def _metrics(server: Server, name: str, version: int) -> dict[str, object] | None:
    try:
        content = json.loads((server.settings.model_store / name / str(version) / "metrics.json").read_bytes())
    except (OSError, ValueError):  # a model need not have been measured
        return None
    return content if isinstance(content, dict) else None


def _json(content: ModelList | ModelDescription | list[Sample]) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
