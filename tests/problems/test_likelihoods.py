"""Likelihoods: losses, sampled labels and the exact square root of the output Fisher."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from kfbench.problems.likelihoods import LIKELIHOODS, Bernoulli, Categorical, Gaussian
from tests.properties import assert_close

N, C = 3, 4


def _output():
    return torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _fisher(name, f):
    """The output Fisher [N, C, C] from its definition."""
    if name == "gaussian":
        return torch.eye(C, dtype=f.dtype).expand(N, C, C)
    if name == "bernoulli":
        return _enumerated(f)
    p = f.softmax(-1)
    gradients = p[:, None, :] - torch.eye(C, dtype=f.dtype)  # [n, label, C]
    return torch.einsum("ny,nyi,nyj->nij", p, gradients, gradients)


def _enumerated(f):
    """The expectation over all 2^C labels of the outer product of the score, by autograd."""
    total = torch.zeros(N, C, C, dtype=f.dtype)
    for bits in itertools.product((0.0, 1.0), repeat=C):
        leaf, y = f.clone().requires_grad_(), torch.tensor(bits, dtype=f.dtype).expand(N, C)
        losses = -(y * leaf.sigmoid().log() + (1 - y) * (1 - leaf.sigmoid()).log()).sum(1)
        score = torch.autograd.grad(losses.sum(), leaf)[0]
        total += (-losses).exp().detach()[:, None, None] * score[:, :, None] * score[:, None, :]
    return total


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_full_vectors_square_to_the_output_fisher(name):
    f = _output()
    vectors = LIKELIHOODS[name]().full_vectors(f)
    assert_close(torch.einsum("kni,knj->nij", vectors, vectors), _fisher(name, f), 1e-12)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sampled_vectors_square_to_the_output_fisher_on_average(name):
    f, generator = _output(), torch.Generator().manual_seed(0)
    draws = 20_000
    vectors = LIKELIHOODS[name]().sampled_vectors(f.repeat(draws, 1), generator)[0].view(draws, N, C)
    mean = torch.einsum("dni,dnj->nij", vectors, vectors) / draws
    assert_close(mean, _fisher(name, f), 0.03)
    assert_close(1 + vectors.mean(0), torch.ones(N, C, dtype=f.dtype), 0.03, what="mean of the score, which is 0")


def test_sampled_categorical_vector_is_the_gradient_of_the_loss_at_the_drawn_label():
    f = _output().requires_grad_()
    vector = Categorical().sampled_vectors(f.detach(), torch.Generator().manual_seed(0))[0]
    labels = (f.detach().softmax(-1) - vector).argmax(-1)
    assert_close(vector, torch.autograd.grad(cross_entropy(f, labels, reduction="sum"), f)[0], 1e-12)


def test_sampled_bernoulli_vector_is_the_gradient_of_the_loss_at_labels_of_0_and_1():
    f = _output().requires_grad_()
    vector = Bernoulli().sampled_vectors(f.detach(), torch.Generator().manual_seed(0))[0]
    labels = f.detach().sigmoid() - vector
    assert_close(labels, labels.round(), 1e-12)
    assert 0 < labels.sum() < N * C
    assert_close(vector, torch.autograd.grad(Bernoulli().loss(f, labels.round()).sum(), f)[0], 1e-12)


def test_bernoulli_loss_is_the_cross_entropy_summed_over_units():
    f, y = _output(), torch.rand(N, C, dtype=torch.float64)
    p = f.sigmoid()
    wanted = [-sum(y[n, i] * p[n, i].log() + (1 - y[n, i]) * (1 - p[n, i]).log() for i in range(C)) for n in range(N)]
    assert_close(Bernoulli().loss(f, y), torch.stack(wanted), 1e-12)
    assert_close(Bernoulli().loss(torch.logit(y), y), torch.special.entr(y).sum(1) + torch.special.entr(1 - y).sum(1))


def test_bernoulli_keeps_its_digits_for_large_logits():
    f = torch.tensor([[-40.0, 40.0, 1000.0, -1000.0]])
    y = torch.tensor([[1.0, 0.0, 1.0, 0.0]])
    assert Bernoulli().loss(f, y).item() == pytest.approx(80.0)
    root = Bernoulli().full_vectors(f)[:, 0].diagonal()
    assert root[:2].tolist() == pytest.approx([math.exp(-20)] * 2, rel=1e-5)
    assert torch.isfinite(root).all()


def test_gaussian_losses_and_their_gradients():
    f, y = _output().requires_grad_(), torch.randn(N, C, dtype=torch.float64)
    losses = Gaussian().loss(f, y)
    wanted = [sum((f[n, i] - y[n, i]) ** 2 for i in range(C)) / 2 for n in range(N)]
    assert_close(losses.detach(), torch.stack(wanted).detach(), 1e-14)
    assert_close(torch.autograd.grad(losses.sum(), f)[0], (f - y).detach(), 1e-14)


def test_losses_are_per_sample():
    f = _output()
    assert_close(Categorical().loss(f, torch.tensor([0, 1, 3])).mean(), cross_entropy(f, torch.tensor([0, 1, 3])))
    assert_close(Gaussian().loss(f, torch.zeros_like(f)), 0.5 * (f * f).sum(1), 1e-14)


def test_accuracy_counts_the_likeliest_class():
    f = torch.eye(3).double()
    assert Categorical().correct(f, torch.tensor([0, 1, 1])).tolist() == [True, True, False]
    assert Gaussian().correct(f, f) is None and Bernoulli().correct(f, f) is None
