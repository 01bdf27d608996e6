"""The property tests are worth something only if wrong methods, and layers, fail them."""

import dataclasses
import warnings

import pytest
from torch import nn

from kfbench.layers.embedding_layer import EmbeddingLayer
from kfbench.layers.finding import KINDS
from tests.cases import METHODS
from tests.mutants import MUTANT_EMBEDDINGS, MUTANT_LAYERS, MUTANTS
from tests.properties import CHECKS, check_dense, check_golden


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.__name__)
def test_mutant_is_caught_by_a_property(mutant):
    original = next(case for case in METHODS if case.name == MUTANTS[mutant])
    case = dataclasses.replace(original, make=mutant)
    caught = any(not _passes(check, case) for check in CHECKS if check is not check_golden)
    assert caught, f"{mutant.__name__} passes every property"


def test_layers_that_are_right_pass():
    check_dense(METHODS[0], "images", 4)


@pytest.mark.parametrize("mutant", MUTANT_LAYERS, ids=lambda mutant: mutant.__name__)
def test_mutant_layer_is_caught_by_a_direction(mutant, monkeypatch):
    monkeypatch.setitem(KINDS, nn.Conv2d, mutant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where rows are wrong, verification says so and leaves the layer out
        caught = not _passes(lambda case: check_dense(case, "images", 4), METHODS[0])
    assert caught, f"{mutant.__name__} gives FOOF's direction"


@pytest.mark.parametrize("mutant", [EmbeddingLayer, *MUTANT_EMBEDDINGS], ids=lambda mutant: mutant.__name__)
def test_mutant_embedding_is_caught_by_a_direction(mutant, monkeypatch):
    monkeypatch.setitem(KINDS, nn.Embedding, mutant)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        passes = _passes(lambda case: check_dense(case, "tokens", 4), METHODS[0])
    assert passes is (mutant is EmbeddingLayer), f"{mutant.__name__} passes: {passes}"


def _passes(check, case) -> bool:
    try:
        check(case)
    except (AssertionError, FloatingPointError):  # the latter where the method itself sees what cannot be
        return False
    return True
