import pytest
from pydantic import ValidationError

from jfb.config import SOLVER_NAMES, Serving, must_be_one_of
from jfb.solvers import SOLVERS


def test_the_solvers_of_a_config_are_those_that_there_are() -> None:
    assert tuple(SOLVERS) == SOLVER_NAMES
    for name in SOLVER_NAMES:
        assert Serving(solver=name).solver == name


def test_an_unknown_solver_is_rejected_with_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r"solver: must be one of picard, .*\(got 'andersen'; did you mean 'anderson'\?\)"):
        Serving(solver="andersen")


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert must_be_one_of(["a", "b"], "zebra") == "must be one of a, b (got 'zebra')"
    assert must_be_one_of([], "none") == "must be one of none (got 'none')"
