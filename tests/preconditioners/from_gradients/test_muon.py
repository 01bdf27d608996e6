"""Muon beside torch's own, and what it makes of singular values."""

import pytest
import torch

from kfbench.preconditioners.from_gradients.muon import Muon, newton_schulz, polar_factor
from tests.preconditioners.from_gradients.trajectories import LR, check_trajectory
from tests.properties import assert_close

WIDTHS = (5, 4, 6, 3)
THEIR_SCALES = {"original": "original", "match-rms-adamw": "match_rms_adamw"}


def _theirs(**options):
    return lambda parameters: torch.optim.Muon(parameters, lr=LR, weight_decay=0.0, momentum=0.9, **options)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("scale", THEIR_SCALES)
def test_a_trajectory_is_that_of_torch(nesterov, scale, monkeypatch):
    """Theirs iterates in bfloat16; in float64, as here, the weights are ours."""
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    ours = Muon(beta1=0.9, muon_nesterov=nesterov, muon_scale=scale)
    check_trajectory(ours, _theirs(nesterov=nesterov, adjust_lr_fn=THEIR_SCALES[scale]), WIDTHS, damping=0.0, T=1)


def test_in_their_precision_it_is_near():
    check_trajectory(Muon(beta1=0.9), _theirs(), WIDTHS, damping=0.0, T=1, tolerance=2e-2)


@pytest.mark.parametrize("shape", [(4, 6), (6, 4), (5, 5), (1, 7)])
def test_polar_factor_and_its_approximation(shape):
    M = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    exact = polar_factor(M)
    short = exact @ exact.T if shape[0] <= shape[1] else exact.T @ exact
    assert_close(short, torch.eye(min(shape), dtype=M.dtype), 1e-12)
    # U V' is the orthogonal matrix of the largest inner product with M: the sum of the singular values.
    assert_close((exact * M).sum(), torch.linalg.svdvals(M).sum(), 1e-12)
    values = torch.linalg.svdvals(newton_schulz(M))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25


def test_directions_that_are_not_there_are_not_made_up():
    M = torch.outer(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, -1.0]))
    assert_close(polar_factor(M), M / M.norm(), 1e-6)
    assert not polar_factor(torch.zeros(3, 4)).any() and not newton_schulz(torch.zeros(3, 4)).any()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"orthogonalise": "qr"}, "orthogonalise must be one of newton-schulz, svd, got 'qr'"),
        ({"muon_scale": "rms"}, "muon_scale must be one of original, match-rms-adamw, none, got 'rms'"),
        ({"beta1": 1.0}, r"beta1 must be in \[0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        Muon(**options)
