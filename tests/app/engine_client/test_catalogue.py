"""The catalogue: which model a request means."""

from collections.abc import Sequence

import pytest

from app.engine_client.catalogue import Catalogue
from app.engine_client.errors import ModelNotFound, NoDefaultModel
from app.engine_client.messages import Refusal, ServedVersion, State
from jfb.store import ModelVersion
from tests.app.store import SLOW


def served(*versions: tuple[str, int], refused: Sequence[Refusal] = ()) -> list[State]:
    """The state of one engine that serves some versions, published in this order."""
    config = SLOW.model_dump_json()
    published = [ServedVersion(*version, config, published=second) for second, version in enumerate(versions)]
    return [State(published, list(refused), [])]


def test_the_only_model_is_the_default() -> None:
    catalogue = Catalogue(served(("one", 1), ("one", 2)))
    assert catalogue.default == "one"
    assert catalogue.find().version == 2


def test_the_highest_version_is_meant_where_none_is_named_whatever_the_order() -> None:
    catalogue = Catalogue(served(("one", 10), ("one", 9), ("one", 2)))
    assert catalogue.find("one").version == 10
    assert catalogue.versions("one") == [2, 9, 10]


def test_the_settings_name_the_default_among_several() -> None:
    assert Catalogue(served(("one", 1), ("two", 1)), "two").find().model == "two"


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (served(("b", 1), ("a", 1)), "a"),
        (served(("a", 1), ("b", 1), ("c", 1)), "c"),
        (served(("b", 1), ("a", 1), ("b", 2)), "b"),
        (served(("b", 2), ("a", 1), ("b", 1)), "b"),
        (served(("a", 1), refused=[Refusal(ModelVersion("b", 1), "truncated")]), "a"),
        ([*served(("b", 1)), *served(("b", 1), ("a", 1))], "a"),
        ([*served(("b", 1)), *served(("a", 1))], "a"),
    ],
)
def test_the_default_among_several_is_the_served_model_that_was_published_last(states: list[State], expected: str) -> None:
    assert Catalogue(states).default == Catalogue(states[::-1]).default == expected
    assert Catalogue(states).find().model == expected


def test_the_models_of_all_engines_are_served() -> None:
    catalogue = Catalogue([*served(("one", 1)), *served(("one", 1), ("two", 1))])
    assert catalogue.names == ["one", "two"]
    assert catalogue.versions("one") == [1]


@pytest.mark.parametrize(
    ("catalogue", "message"),
    [
        (
            Catalogue(served(("one", 1)), "gone"),
            r"default model 'gone' is not served \(available: one\): use /models/one/predict, or start with --default-model one$",
        ),
        (Catalogue(), "no model is loaded: train one with python -m training train digits$"),
        (Catalogue(default="gone"), "no model is loaded"),
    ],
)
def test_without_a_served_default_the_error_says_what_to_type(catalogue: Catalogue, message: str) -> None:
    with pytest.raises(NoDefaultModel, match=message):
        catalogue.find()


def test_a_model_of_which_nothing_loads_is_unknown_and_the_error_says_why() -> None:
    catalogue = Catalogue(served(("one", 1), refused=[Refusal(ModelVersion("bad", 1), "truncated")]))
    with pytest.raises(ModelNotFound, match=r"no model 'bad' \(available: one\); version 1 was refused: truncated"):
        catalogue.find("bad")


def test_an_alias_is_the_version_that_it_names() -> None:
    (state,) = served(("one", 1), ("one", 2), ("two", 1))
    aliases = {"one": {"old": 1, "broken": 3}}
    catalogue = Catalogue([State(state.served, [Refusal(ModelVersion("one", 3), "truncated")], [], [], aliases)])
    assert catalogue.find("one", "old").version == 1
    assert (catalogue.aliases("one"), catalogue.aliases("two")) == (aliases["one"], {})
    message = r"model one has no alias 'odl' \(versions: 1, 2; aliases: old, broken; did you mean old\?\)"
    with pytest.raises(ModelNotFound, match=message):
        catalogue.find("one", "odl")
    with pytest.raises(ModelNotFound, match=r"no alias 'old' \(versions: 1; aliases: none\)"):
        catalogue.find("two", "old")
    message = r"model one has no version 3, which is broken \(available: 1, 2\); it was refused: truncated"
    with pytest.raises(ModelNotFound, match=message):
        catalogue.find("one", "broken")


def test_the_config_is_the_one_that_the_engine_sent() -> None:
    assert Catalogue(served(("one", 1))).find("one", 1).config == SLOW
