"""The property tests are worth something only if wrong methods fail them."""

import dataclasses

import pytest

from tests.cases import METHODS
from tests.mutants import MUTANTS
from tests.properties import CHECKS, check_golden


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught_by_a_property(mutant):
    original = next(case for case in METHODS if case.name == MUTANTS[mutant])
    case = dataclasses.replace(original, make=mutant)
    caught = any(not _passes(check, case) for check in CHECKS if check is not check_golden)
    assert caught, f"{mutant.__name__} passes every property"


def _passes(check, case) -> bool:
    try:
        check(case)
    except AssertionError:
        return False
    return True
