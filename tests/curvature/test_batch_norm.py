"""Batch norm in training mode: what stays true of the factors where samples see each other, by enumerating labels."""

import itertools

import torch
from torch import nn

from kfbench.curvature.averages import FactorAverages
from kfbench.curvature.capture import capture
from kfbench.layers.finding import find_layers
from kfbench.problems.likelihoods import Categorical
from kfbench.updates.preconditioning import Preconditioning
from tests.properties import assert_close

_N, _C = 3, 3


def _problem():
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, _C)
    return nn.Sequential(*layers).double(), torch.randn(_N, 1, 3, 3).double()


def _output_factor(model, x, vectors):
    """B of the convolution, of vectors [K, N, C] that are backpropagated."""
    layers, _ = find_layers(model)
    with capture(layers) as captured:
        output = model(x)
    losses = Categorical().loss(output, torch.zeros(_N, dtype=torch.long))
    captured.draw("sampled", output, lambda out, kind: vectors, losses)
    captured.gradients(losses)
    B = FactorAverages(0.0)
    B.add_output_gradients({"0": captured.statistics("sampled")["0"]})
    return B.means["0"].clone()


def _of_the_batch(model, x):
    """``1/(N P) sum_m sum_np J' Lambda J``: that of the batch's own Fisher, labels of different samples independent."""
    output = model(x).detach()
    roots = Categorical().full_vectors(output)
    total = 0
    for k, n in itertools.product(range(len(roots)), range(_N)):
        alone = torch.zeros_like(roots[:1])
        alone[0, n] = roots[k, n]
        total = total + _output_factor(model, x, alone)
    return total


def test_sampled_labels_are_unbiased():
    """Cross terms between samples vanish, since scores of independent labels have mean zero."""
    model, x = _problem()
    p = torch.softmax(model(x), 1).detach()
    expected = 0
    for labels in itertools.product(range(_C), repeat=_N):
        weight = torch.stack([p[n, label] for n, label in enumerate(labels)]).prod()
        scores = p - nn.functional.one_hot(torch.tensor(labels), _C)
        expected = expected + weight * _output_factor(model, x, scores[None])
    assert_close(expected, _of_the_batch(model, x), 1e-12)


def test_full_labels_are_unbiased_with_random_signs_alone():
    model, x = _problem()
    roots = Categorical().full_vectors(model(x).detach())
    wanted = _of_the_batch(model, x)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=_N))).double()
    # Column sets are independent of each other, so that each may be averaged over its own signs.
    mean = sum(_output_factor(model, x, root[None] * s[None, :, None]) for root in roots for s in signs) / len(signs)
    assert_close(mean, wanted, 1e-12)
    assert (_output_factor(model, x, roots) - wanted).norm() > 0.04 * wanted.norm()


def test_vectors_get_signs_where_samples_mix_and_nowhere_else():
    model, x = _problem()
    kfac = Preconditioning(model, "kfac", damping=1.0, fisher="full")
    output = model(x).detach()
    roots = Categorical().full_vectors(output)
    drawn = torch.stack([kfac.output_fisher.vectors(output, "full") for _ in range(20)])
    signs = (drawn / roots).nan_to_num(nan=1.0)
    assert_close(signs.abs(), torch.ones_like(signs), 1e-12)
    assert signs.unique().numel() >= 2 and (drawn[0] != drawn[1]).any()
    model.eval()
    assert torch.equal(kfac.output_fisher.vectors(output, "full"), roots)
