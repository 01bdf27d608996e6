"""The toy of the FOOF paper: exact numbers."""

import pytest

from kfbench.claims.toy import losses, toy_losses, updates


def test_one_step_of_each_method():
    found = updates()
    assert found["sgd"] == pytest.approx((2.0, 1.0))
    assert found["foof"] == pytest.approx((-1.0, 4.0))


def test_sgd_raises_the_second_loss_and_foof_solves_both():
    found = toy_losses()
    assert found["before"] == [0.5, 0.5]
    assert found["sgd"][1] > found["before"][1]
    assert found["foof"] == pytest.approx([0.0, 0.0], abs=1e-28)
    assert losses((-1.0, 4.0)) == [0.0, 0.0]
