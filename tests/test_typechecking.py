"""The suite checks annotations of the numerical core: shapes; types where there are none, but of local functions."""

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from kfbench.curvature.linalg import damped_power, eigenbasis, pi_correction


@pytest.mark.parametrize("wrong", [torch.eye(3)[:2], torch.eye(3)[0]])
def test_a_wrong_shape_is_caught(wrong):
    with pytest.raises(TypeCheckError):
        eigenbasis(wrong)


def test_a_wrong_type_beside_a_shape_is_caught():
    with pytest.raises(TypeCheckError):
        damped_power(torch.eye(3), "much", 0.5)


def test_a_wrong_type_where_no_shapes_are_is_caught():
    with pytest.raises(BeartypeCallHintViolation):
        pi_correction(torch.ones(()), "three", torch.ones(()), 3)
