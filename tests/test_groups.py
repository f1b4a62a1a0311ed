"""pytest-xdist groups tests, so that files that share servers run in one worker, and each server is started once."""

import pytest


def test_a_test_is_in_the_group_that_its_file_has(request: pytest.FixtureRequest) -> None:
    grouping = getattr(request.config.option, "loadgroup", False)  # in a worker of `--dist loadgroup`
    assert request.node.nodeid.endswith("@test_groups.py") == grouping
