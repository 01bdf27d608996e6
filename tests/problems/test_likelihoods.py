"""Likelihoods: losses, sampled labels and the exact square root of the output Fisher."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from kfbench.problems.likelihoods import LIKELIHOODS, Categorical, Gaussian
from tests.properties import assert_close

N, C = 3, 4


def _output():
    return torch.randn(N, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _fisher(name, f):
    """The output Fisher [N, C, C] from its definition."""
    if name == "gaussian":
        return torch.eye(C, dtype=f.dtype).expand(N, C, C)
    p = f.softmax(-1)
    gradients = p[:, None, :] - torch.eye(C, dtype=f.dtype)  # [n, label, C]
    return torch.einsum("ny,nyi,nyj->nij", p, gradients, gradients)


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


def test_losses_are_per_sample():
    f = _output()
    assert_close(Categorical().loss(f, torch.tensor([0, 1, 3])).mean(), cross_entropy(f, torch.tensor([0, 1, 3])))
    assert_close(Gaussian().loss(f, torch.zeros_like(f)), 0.5 * (f * f).sum(1), 1e-14)


def test_accuracy_counts_the_likeliest_class():
    f = torch.eye(3).double()
    assert Categorical().correct(f, torch.tensor([0, 1, 1])).tolist() == [True, True, False]
    assert Gaussian().correct(f, f) is None
