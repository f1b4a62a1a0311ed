"""The names of ``jfb`` itself, which are imported on first use."""

import pkgutil
from importlib.metadata import version
from inspect import getmodule

import pytest

import jfb


def test_every_public_name_is_found_and_no_module_hides_one() -> None:
    assert not {module.name for module in pkgutil.iter_modules(jfb.__path__)} & set(jfb.__all__)
    assert sorted(jfb._MODULES) == sorted(jfb.__all__)
    for name, module in jfb._MODULES.items():
        found = getmodule(getattr(jfb, name))
        assert found is not None
        assert found.__name__ == f"jfb.{module}"
    assert set(jfb.__all__) <= set(dir(jfb))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'jfb' has no attribute 'train'"):
        jfb.train  # noqa: B018


def test_the_version_is_the_packages() -> None:
    assert jfb.__version__ == version("jfb")
