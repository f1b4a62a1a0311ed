"""The Open Inference Protocol's statistics extension: what each version has done, from the metrics."""

from collections import Counter
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from app.engine_client.messages import ServedVersion
from app.http.auth import AccessRoute, user
from app.http.state import AppState, State
from app.inference import run
from app.routes.metrics import refresh
from app.routes.openapi import errors
from app.schemas.open_inference import Duration, InferenceStatistics, ModelStatistics, Statistics

OPTIONS: dict[str, Any] = {"tags": ["open inference protocol"], "route_class": AccessRoute, "dependencies": [Depends(user)]}
router = APIRouter(prefix="/v2/models", **OPTIONS)
PHASES = {"queue": "queue", "compute_input": "inject", "compute_infer": "iterate", "compute_output": "readout"}
"""Triton's names of the phases of a request, and ours."""


@router.get("/stats", summary="Statistics of all models", responses=errors(401, 503))
async def statistics(state: State) -> Statistics:
    catalogue = state.engines.catalogue
    return await _statistics(state, [(name, number) for name in catalogue.names for number in catalogue.versions(name)])


@router.get("/{name}/stats", summary="Statistics of a model's versions", responses=errors(401, 404, 503))
async def model_statistics(state: State, name: str) -> Statistics:
    return await _statistics(state, [(name, number) for number in state.engines.catalogue.versions(name)])


@router.get(
    "/{name}/versions/{version}/stats",
    operation_id="model_statistics_version",
    summary="Statistics of one version",
    responses=errors(400, 401, 404, 503),
)
async def version_statistics(state: State, model: Annotated[ServedVersion, Depends(run.find_model)]) -> Statistics:
    return await _statistics(state, [(model.model, model.version)])


async def _statistics(state: AppState, versions: list[tuple[str, int]]) -> Statistics:
    await refresh(state)
    totals: Counter[tuple[str, str, str]] = Counter()
    for sample in (sample for family in state.registry.collect() for sample in family.samples):
        name, labels = sample.name, sample.labels
        if name == "jfb_http_requests_total":
            name = "success" if labels["status"] < "400" else "fail"
        totals[name, labels.get("model", ""), labels.get("version", "")] += sample.value  # type: ignore[assignment]

    def of(model: str, version: str) -> ModelStatistics:
        phases = {
            name: Duration(
                count=int(totals[f"jfb_{phase}_seconds_count", model, version]),
                ns=int(totals[f"jfb_{phase}_seconds_sum", model, version] * 1e9),
            )
            for name, phase in PHASES.items()
        }
        success = Duration(count=int(totals["success", model, version]), ns=sum(phase.ns for phase in phases.values()))
        fail = Duration(count=int(totals["fail", model, version]), ns=0)
        return ModelStatistics(
            name=model,
            version=version,
            inference_count=int(totals["jfb_rows_total", model, version]),
            execution_count=int(totals["jfb_engine_ticks_total", model, version]),
            inference_stats=InferenceStatistics(success=success, fail=fail, **phases),
        )

    return Statistics(model_stats=[of(name, str(number)) for name, number in versions])
