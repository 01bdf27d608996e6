"""One table of methods through every property. A new method adds a row to ``cases.METHODS``."""

import pytest

from tests.cases import METHODS
from tests.properties import CHECKS, DENSE_CASES, check_dense


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_property(check, case):
    check(case)


@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
@pytest.mark.parametrize(("model", "n"), DENSE_CASES, ids=[f"{model}-{n}" for model, n in DENSE_CASES])
def test_direction_equals_the_dense_solve(case, model, n):
    check_dense(case, model, n)
