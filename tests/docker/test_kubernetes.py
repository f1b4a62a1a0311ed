"""The Kubernetes files against the published schemas and against the server's settings and routes. No cluster is needed."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.http.server import SHUTDOWN_SECONDS
from app.settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "docker"
DOCUMENTS: list[dict[str, Any]] = [
    document
    for name in ("deployment.yaml", "inference-service.yaml")
    for document in yaml.safe_load_all((FOLDER / "kubernetes" / name).read_text())
]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [document for document in DOCUMENTS if document["kind"] == kind]


def pods() -> list[dict[str, Any]]:
    """The specifications of all pods; for KServe, the service sets the grace period."""
    (deployment,), (runtime,), (service,) = of_kind("Deployment"), of_kind("ServingRuntime"), of_kind("InferenceService")
    predictor = service["spec"]["predictor"]
    runtime_pod = {key: runtime["spec"][key] for key in ("containers", "volumes")}
    service_pod = {key: predictor[key] for key in ("terminationGracePeriodSeconds", "securityContext")}
    return [deployment["spec"]["template"]["spec"], runtime_pod | service_pod]


def test_every_object_matches_its_schema() -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    latest = kubernetes_validate.latest_version()
    kubernetes_own = [document for document in DOCUMENTS if "kserve" not in document["apiVersion"]]
    wrapped = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}, "spec": pod} for pod in pods()]
    assert len(kubernetes_own) >= 6
    for document in [*kubernetes_own, *wrapped]:
        kubernetes_validate.validate(document, latest, strict=True)


@pytest.mark.parametrize("pod", pods(), ids=["deployment", "inference service"])
def test_the_grace_period_is_longer_than_a_shutdown(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    drain = next(int(one["value"]) for one in container["env"] if one["name"] == "JFB_DRAIN_SECONDS")
    engine = 2
    assert pod["terminationGracePeriodSeconds"] > drain + SHUTDOWN_SECONDS + engine
    probe = container["readinessProbe"]
    assert drain > probe["failureThreshold"] * (probe["periodSeconds"] + probe["timeoutSeconds"])


@pytest.mark.parametrize("pod", pods(), ids=["deployment", "inference service"])
def test_probes_use_routes_that_exist(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/v2/health/ready", "readiness": "/v2/health/ready", "liveness": "/v2/health/live"}
    ports = {port["containerPort"] for port in container["ports"]} | {port["name"] for port in container["ports"]}
    assert {container[f"{name}Probe"]["httpGet"]["port"] for name in probes} <= ports


def test_every_variable_in_these_files_is_a_setting() -> None:
    known = {f"JFB_{name.upper()}" for name in Settings.model_fields}
    ours = {"JFB_RUNS", "JFB_TEST_DOCKER"}  # of training, and of these tests
    for path in [FOLDER / "Dockerfile", FOLDER / "compose.yaml", *(FOLDER / "kubernetes").iterdir()]:
        assert set(re.findall(r"JFB_[A-Z_]+", path.read_text())) <= known | ours, path


def test_the_autoscalers_aim_at_a_deployment_that_is_there() -> None:
    names = {document["metadata"]["name"] for document in of_kind("Deployment")}
    names |= {f"{document['metadata']['name']}-predictor" for document in of_kind("InferenceService")}
    assert {document["spec"]["scaleTargetRef"]["name"] for document in of_kind("HorizontalPodAutoscaler")} == names
