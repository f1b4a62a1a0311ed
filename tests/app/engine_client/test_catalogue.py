"""The catalogue: which model a request means."""

import json

import pytest

from app.engine_client.catalogue import Catalogue
from app.engine_client.messages import ServedVersion
from app.http.errors import Refusal
from tests.app.store import SLOW


def served(*versions: tuple[str, int]) -> list[ServedVersion]:
    return [ServedVersion(name, version, SLOW.model_dump_json()) for name, version in versions]


def test_the_only_model_is_the_default() -> None:
    catalogue = Catalogue(served(("one", 1), ("one", 2)), {}, None)
    assert catalogue.default == "one"
    assert catalogue.find(None, None).version == 2


def test_the_highest_version_is_meant_where_none_is_named_whatever_the_order() -> None:
    catalogue = Catalogue(served(("one", 10), ("one", 9), ("one", 2)), {}, None)
    assert catalogue.find("one", None).version == 10
    assert catalogue.versions("one") == [2, 9, 10]


def test_the_settings_name_the_default_among_several() -> None:
    assert Catalogue(served(("one", 1), ("two", 1)), {}, "two").find(None, None).name == "two"


@pytest.mark.parametrize(
    ("catalogue", "said"),
    [
        (Catalogue(served(("one", 1), ("two", 1)), {}, None), "several models and no default.*one, two"),
        (Catalogue(served(("one", 1)), {}, "gone"), 'default model "gone" is not served.*one'),
        (Catalogue([], {}, None), "no model"),
    ],
)
def test_without_a_default_a_request_must_name_its_model(catalogue: Catalogue, said: str) -> None:
    with pytest.raises(Refusal, match=said) as refusal:
        catalogue.find(None, None)
    assert refusal.value.status == 400


def test_a_model_of_which_nothing_loads_is_unknown_and_the_answer_says_why() -> None:
    with pytest.raises(Refusal, match='got "bad"; version 1 was refused: truncated') as refusal:
        Catalogue(served(("one", 1)), {"bad/1": "truncated"}, None).find("bad", None)
    assert refusal.value.status == 404


def test_the_config_that_http_reads_is_the_one_that_the_engine_announces() -> None:
    config = Catalogue(served(("one", 1)), {}, None).find("one", 1).config
    assert json.loads(SLOW.model_dump_json()) | {
        "architecture": {"name": config.architecture.name, "arguments": SLOW.architecture.arguments},
        "input": {name: getattr(config.input, name) for name in type(SLOW.input).model_fields}
        | {"shape": list(config.input.shape)},
        "classes": config.classes,
        "serving": {name: getattr(config.serving, name) for name in json.loads(SLOW.model_dump_json())["serving"]},
    } == json.loads(SLOW.model_dump_json())
