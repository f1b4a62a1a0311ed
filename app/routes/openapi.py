"""What FastAPI cannot generate of the OpenAPI description: errors, the bodies of the fast routes, and examples."""

import re
from pathlib import Path
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, request_response

from app.engine_client.errors import EngineUnavailable
from app.engine_client.messages import ServedVersion
from app.http.state import AppState
from app.http.store_reads import read_store
from app.routes import examples
from app.schemas.native import Error, IterationEvent, PredictRequest, StreamParameters
from app.schemas.open_inference import InferRequest
from jfb import __version__
from jfb.store import CARD

MEANINGS = {
    400: "Not JSON, or no model named and no default model; under /v2 also what is 422 elsewhere.",
    401: "Missing or invalid API key.",
    403: "The API key does not permit this.",
    404: "No such model or version; the error lists those that exist.",
    408: "The head or the body did not arrive in time.",
    413: "The body, the batch, or its images together are too large.",
    415: "Unknown content type; the error lists the known ones.",
    422: "Invalid request; the error names the field.",
    429: "The queue is full; Retry-After says when to retry.",
    500: "The engine could not compute these rows.",
    503: "The models are being loaded, the engine is being restarted, or too many large bodies or images wait; retry after "
    "Retry-After seconds.",
    504: "The deadline passed before any row completed an iteration, and the model has no learned start to answer with.",
}
PATH_PARAMETERS: dict[str, Any] = {
    "name": {"description": "Name of the model; see GET /models.", "schema": {"type": "string"}},
    "version": {
        "description": "Number of the version, or one of its aliases; see GET /models/{name}.",
        "schema": {
            "anyOf": [{"type": "integer", "minimum": 1}, {"type": "string", "pattern": "^[A-Za-z][A-Za-z0-9._-]{0,127}$"}]
        },
    },
    "file": {"description": "Name of the file; see GET /models/{name}/versions/{version}.", "schema": {"type": "string"}},
}
TEXT_PARAMETERS: dict[str, Any] = msgspec.json.schema_components([StreamParameters])[1]["StreamParameters"]["properties"]
"""The parameters of a prediction where they are text: in a query or a form, neither of which has nulls."""
TEXT_PARAMETERS["session"] |= TEXT_PARAMETERS["session"].pop("anyOf")[0]
QUERY_PARAMETERS = [
    {"name": name, "in": "query", "required": False, "description": schema["description"], "schema": schema}
    for name, schema in TEXT_PARAMETERS.items()
]
FILE = {
    "description": "PNG or JPEG files, one per row.",
    "type": "array",
    "minItems": 1,
    "items": {"type": "string", "format": "binary"},
}
PREDICT_FORM = {
    "description": "Images to predict, and the parameters.",
    "type": "object",
    "required": ["file"],
    "properties": {"file": FILE} | TEXT_PARAMETERS,
    "additionalProperties": False,
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Error responses, for ``responses`` of a route."""
    return {status: {"model": Error, "description": MEANINGS[status]} for status in statuses}


def operation_id(route: APIRoute) -> str:
    """The name of a route's function, which generated clients call theirs; with ``_version`` where its path names one."""
    return f"{route.name}_version" if "{version}" in route.path_format else route.name


def install(app: FastAPI, state: AppState) -> None:
    """Have ``/openapi.json`` show examples for the models that are served at the moment."""

    def describe() -> dict[str, Any]:
        description = get_openapi(
            title=app.title, version=__version__, summary=app.summary, description=app.description, routes=app.routes
        )
        schemas = description["components"]["schemas"]
        schemas |= msgspec.json.schema_components([PredictRequest, InferRequest], ref_template="#/components/schemas/{name}")[1]
        schemas["PredictForm"] = PREDICT_FORM
        schemas |= _predict_requests(schemas["PredictRequest"])
        event = IterationEvent.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= event.pop("$defs") | {"IterationEvent": event}
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI adds them wherever a path has a parameter
            schemas.pop(name, None)
        try:
            catalogue = state.engines.catalogue
            shown = catalogue.default or next(iter(catalogue.names), None)
            model = catalogue.find(shown) if shown else None
        except EngineUnavailable:  # the models are being loaded
            model = None
        for path, operations in description["paths"].items():
            for operation in operations.values():
                if "HTTPValidationError" in str(operation["responses"].get("422")):
                    del operation["responses"]["422"]
                described = [one for one in operation.get("parameters", []) if one["in"] != "path"]
                for name in re.findall(r"{(\w+)}", path):
                    described.append({"name": name, "in": "path", "required": True, **PATH_PARAMETERS[name]})
                operation["parameters"] = described
                if model is not None:
                    _add_examples(path, operation, model, state.settings.model_store)
        return description

    async def answer(request: Request) -> Response:
        description = await read_store(describe)
        if root := request.scope.get("root_path"):
            description["servers"] = [{"url": root}]
        return JSONResponse(description)

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way to change the description
    for route in app.routes:
        if isinstance(route, Route) and route.path == app.openapi_url:  # FastAPI's would read the store on the event loop
            route.app = request_response(answer)


def _predict_requests(whole: dict[str, Any]) -> dict[str, Any]:
    """A schema for each kind of rows, and their union: generators understand this, but not that one of two fields is required."""
    kinds = {}
    for rows, other in (("inputs", "images"), ("images", "inputs")):
        fields = {name: field for name, field in whole["properties"].items() if name != other}
        title = f"Predict{rows.capitalize()}"
        kinds[title] = whole | {
            "title": title,
            "description": f"Rows to predict, as {rows}.",
            "properties": fields,
            "required": [rows],
        }
    union = [{"$ref": f"#/components/schemas/{title}"} for title in kinds]
    return kinds | {"PredictRequest": {"title": "PredictRequest", "description": whole["description"], "oneOf": union}}


def _add_examples(path: str, operation: dict[str, Any], model: ServedVersion, model_store: Path) -> None:
    for parameter in operation["parameters"]:
        if parameter["in"] == "path":
            parameter["example"] = {"name": model.model, "version": model.version, "file": CARD}[parameter["name"]]
    if path.endswith("/predict"):
        bodies = examples.predict_examples(model, model_store)
    elif path.endswith("/infer"):
        bodies = examples.infer_examples(model, model_store)
    elif "requestBody" in operation:
        bodies = {"empty": {"summary": "nothing", "value": {}}}
    else:
        return
    operation["requestBody"]["content"]["application/json"]["examples"] = bodies
