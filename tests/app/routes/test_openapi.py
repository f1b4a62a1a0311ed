"""The server against its own description: schemathesis makes up requests from /openapi.json and judges the answers."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import APIOperation, Case
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.app.running import RunningServer

CHECKS = [status_code_conformance, content_type_conformance, response_headers_conformance, response_schema_conformance]
KNOWN_PATHS = [
    "/health",
    "/metrics",
    "/models",
    "/models/{name}",
    "/models/{name}/predict",
    "/models/{name}/samples",
    "/models/{name}/versions/{version}",
    "/models/{name}/versions/{version}/files/{file}",
    "/models/{name}/versions/{version}/predict",
    "/predict",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/stats",
    "/v2/models/{name}",
    "/v2/models/{name}/config",
    "/v2/models/{name}/infer",
    "/v2/models/{name}/ready",
    "/v2/models/{name}/stats",
    "/v2/models/{name}/versions/{version}",
    "/v2/models/{name}/versions/{version}/config",
    "/v2/models/{name}/versions/{version}/infer",
    "/v2/models/{name}/versions/{version}/ready",
    "/v2/models/{name}/versions/{version}/stats",
    "/v2/repository/index",
    "/v2/repository/models/{name}/load",
    "/v2/repository/models/{name}/unload",
]


@pytest.fixture(scope="module")
def operations(server: RunningServer) -> dict[str, APIOperation]:
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    return {found.ok().path: found.ok() for found in schema.get_all_operations()}


def test_the_description_has_every_path(operations: dict[str, APIOperation]) -> None:
    assert sorted(operations) == KNOWN_PATHS


@pytest.mark.parametrize("path", [path for path in KNOWN_PATHS if "/repository/models/" not in path])  # others need those models
def test_whatever_fits_the_description_is_answered_as_it_says(operations: dict[str, APIOperation], path: str) -> None:
    operation = operations[path]

    @settings(max_examples=20 if operation.method == "post" else 8, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case: Case) -> None:
        answer = case.call_and_validate(checks=CHECKS, timeout=20)
        # 504 is the answer to a deadline that cannot be kept.
        assert answer.status_code < 500 or (answer.status_code == 504 and "deadline_ms: " in answer.text)

    check()


@pytest.mark.parametrize("path", ["/predict", "/models/{name}/predict", "/v2/models/{name}/infer"])
def test_whatever_does_not_fit_the_description_is_answered_as_it_says(operations: dict[str, APIOperation], path: str) -> None:
    @settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operations[path].as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE))
    def check(case: Case) -> None:
        answer = case.call_and_validate(checks=CHECKS, timeout=20)
        assert answer.status_code < 500 or answer.status_code == 504, "a valid deadline may be too short"

    check()
