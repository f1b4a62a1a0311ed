"""Every route and the key that it requires; a route that declares none cannot be created."""

from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, Depends, FastAPI

from app.http.auth import AccessRoute, admin, anyone, user
from app.http.fast_route import FastRoute
from app.main import create_app, create_metrics_app, include
from app.routes.open_inference import NOT_OFFERED
from app.routes.pages import PageRoute
from app.settings import Settings
from app.supervisor.supervisor import RunFolder

ACCESS = {
    "GET /": anyone,
    "GET /engine": anyone,
    "GET /metrics": anyone,
    "GET /health": anyone,
    "GET /v2/health/live": anyone,
    "GET /v2/health/ready": anyone,
    "POST /predict": user,
    "POST /models/{name}/predict": user,
    "POST /models/{name}/versions/{version}/predict": user,
    "GET /models": user,
    "GET /models/{name}": user,
    "GET /models/{name} as a page": anyone,
    "GET /models/{name}/versions/{version}": user,
    "GET /models/{name}/versions/{version}/files/{file}": user,
    "GET /models/{name}/samples": user,
    "GET /v2": user,
    "GET /v2/": user,
    "GET /v2/models/{name}": user,
    "GET /v2/models/{name}/ready": user,
    "GET /v2/models/{name}/versions/{version}": user,
    "GET /v2/models/{name}/versions/{version}/ready": user,
    "GET /v2/models/stats": user,
    "GET /v2/models/{name}/stats": user,
    "GET /v2/models/{name}/versions/{version}/stats": user,
    "GET /v2/models/{name}/config": user,
    "GET /v2/models/{name}/versions/{version}/config": user,
    "POST /v2/models/{name}/infer": user,
    "POST /v2/models/{name}/versions/{version}/infer": user,
    "POST /v2/repository/index": user,
    "POST /v2/repository/models/{name}/load": admin,
    "POST /v2/repository/models/{name}/unload": admin,
    **{f"{method} /v2{path}": user for path in NOT_OFFERED for method in ("GET", "POST")},
}
OPEN_PATHS = {"/openapi.json", "/docs", "/docs/oauth2-redirect", "/static", "/static-offline-docs"}
"""Not routes of ours: the description, and files."""


def routes(app: Any) -> list[Any]:
    """All routes of an application, those of included routers too."""
    found = []
    for route in app.routes:
        included = getattr(route, "original_router", None)
        found += routes(included) if included is not None else [route]
    return found


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return create_app(Settings(), RunFolder(tmp_path_factory.mktemp("run"), 1))


def test_every_route_requires_the_expected_key(app: FastAPI) -> None:
    ours = [route for route in routes(app) if isinstance(route, AccessRoute)]
    found = [
        (f"{method} {route.path}{' as a page' * isinstance(route, PageRoute)}", route)
        for route in ours
        for method in route.methods
    ]
    assert len(found) == len(ACCESS)
    assert {name: route.access for name, route in found} == ACCESS
    others = {route.path for route in routes(app) if not isinstance(route, AccessRoute)}
    assert others <= OPEN_PATHS


def test_the_metrics_port_has_metrics_and_health_only(app: FastAPI) -> None:
    found = {route.path for route in routes(create_metrics_app(app.state.server))}
    assert found - OPEN_PATHS == {"/metrics", "/health", "/v2/health/live", "/v2/health/ready"}


def test_the_description_has_the_security_scheme_where_a_key_is_wanted(app: FastAPI) -> None:
    for path, operations in app.openapi()["paths"].items():
        for method, operation in operations.items():
            wanted = ACCESS[f"{method.upper()} {path}"] is not anyone
            assert operation.get("security", []) == ([{"API key": []}] if wanted else [])


async def endpoint() -> None:
    pass


@pytest.mark.parametrize("dependencies", [[], [Depends(user), Depends(admin)], [Depends(endpoint)]])
def test_a_route_without_exactly_one_decision_cannot_be_made(dependencies: list[Any]) -> None:
    router = APIRouter(route_class=AccessRoute, dependencies=dependencies)
    with pytest.raises(TypeError, match="/new: must depend on exactly one of anyone, user and admin"):
        router.get("/new")(endpoint)


def test_a_router_of_other_routes_cannot_be_included() -> None:
    router = APIRouter()
    router.get("/new")(endpoint)
    with pytest.raises(TypeError, match="must be an AccessRoute"):
        include(FastAPI(), [router])


def test_a_fast_route_ignores_no_dependency() -> None:
    router = APIRouter(route_class=FastRoute, dependencies=[Depends(user)])
    with pytest.raises(TypeError, match="/new: must have no dependency except its access decision"):
        router.post("/new", dependencies=[Depends(endpoint)])(endpoint)


def test_a_run_folder_is_all_that_an_application_needs(tmp_path: Path) -> None:
    assert create_app(Settings(), RunFolder(tmp_path, 2)).state.server.engines.states == {}
