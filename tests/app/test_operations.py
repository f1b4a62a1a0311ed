"""docs/operations.md against the code: its tables cannot go stale."""

import http
import re
from pathlib import Path
from typing import get_args

import httpx
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from app.routes.openapi import MEANINGS
from app.schemas.native import EndStatus
from app.settings import Settings
from jfb import Status
from tests.app.running import RunningServer

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def table(heading: str) -> list[list[str]]:
    """The cells of the first table behind a heading, without its head, and without backticks."""
    text = PAGE.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("|")][2:]
    return [[cell.strip().replace("`", "") for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def shown(default: object) -> str:
    return "" if default is None or default == "" else str(default).lower() if isinstance(default, bool) else str(default)


def test_every_setting_is_there_with_its_default_and_its_description() -> None:
    documented = [tuple(row) for row in table("Settings")]
    assert documented == [
        (f"JFB_{name.upper()}", shown(field.default), " ".join((field.description or "").split()))
        for name, field in Settings.model_fields.items()
    ]


def test_every_metric_is_there_with_its_kind_and_its_labels(server: RunningServer, digits: NDArray[np.float64]) -> None:
    assert server.predict({"inputs": digits.tolist()}).status_code == 200
    families = text_string_to_metric_families(server.client.get("/metrics").text)
    found = {}
    for family in families:
        if not family.name.endswith("_created"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            found[name] = (family.type, ", ".join(sorted(labels)), family.documentation)
    assert {name: (kind, labels, meaning) for name, kind, labels, meaning in table("Metrics")} == found


def test_every_status_code_of_the_description_is_there_with_its_meaning() -> None:
    codes = {int(code): meaning for code, meaning in table("Status codes")}
    assert {code: codes.get(code) for code in MEANINGS} == MEANINGS
    assert set(codes) - set(MEANINGS) == {200, 405, 431, 499, 501, 505}
    assert all(code in http.HTTPStatus._value2member_map_ or code == 499 for code in codes)


def test_every_status_word_is_there() -> None:
    words = [row[0] for row in table("Status words")]
    assert words == list(Status)
    assert set(get_args(EndStatus)) == set(words) - {"cancelled"}


def test_the_endpoints_are_those_of_the_description(client: httpx.Client) -> None:
    described = {
        (method.upper(), path)
        for path, operations in client.get("/openapi.json").json()["paths"].items()
        for method in operations
    }
    assert {(method, path) for method, path, _ in table("Endpoints")} == described
