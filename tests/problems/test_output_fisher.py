"""Every form of the output Fisher is that of the columns of its root, whatever the likelihood can do itself."""

import pytest
import torch

from kfbench.problems.likelihoods import LIKELIHOODS, Categorical, OutputFisher
from tests.properties import assert_close

N, C = 3, 4


class Silent:
    """A user's own likelihood: only what it must have."""

    def __init__(self, likelihood):
        self.loss, self.full_vectors = likelihood.loss, likelihood.full_vectors
        self.sampled_vectors, self.correct = likelihood.sampled_vectors, likelihood.correct


def _output(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _generator():
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_root_times_is_the_weighted_sum_of_its_columns(name):
    likelihood, f, weights = LIKELIHOODS[name](), _output(N, C), torch.randn(5, N, C).double()
    columns = likelihood.full_vectors(f)
    assert_close(likelihood.root_times(f, weights), torch.einsum("jnk,knc->jnc", weights, columns), 1e-13)


@pytest.mark.parametrize("class_dim", [1, -1])
def test_root_times_of_labels_at_every_position(class_dim):
    """Columns are ordered position by position, class by class, as are the weights once classes are last."""
    f = _output(2, 3, 4)
    likelihood, weights = Categorical(class_dim), torch.randn(5, 2, 3, 4).double()
    columns = likelihood.full_vectors(f)
    flat = weights.movedim(2, -1).flatten(2) if class_dim == 1 else weights.flatten(2)
    assert_close(likelihood.root_times(f, weights), torch.einsum("jnk,kn...->jn...", flat, columns), 1e-13)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_sum_is_of_the_scaled_fishers(name):
    f, scale = _output(N, C), torch.randn(N, C).double()
    vectors = LIKELIHOODS[name]().full_vectors(f) * scale
    wanted = torch.einsum("kni,knj->ij", vectors, vectors)
    for likelihood in (LIKELIHOODS[name](), Silent(LIKELIHOODS[name]())):
        assert_close(OutputFisher(likelihood).sum(f, scale), wanted, 1e-13)


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("columns", [1, 3])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_combined_columns_square_to_the_fisher_in_the_mean(name, columns, own):
    """The same draws for likelihoods that can do it themselves and for those that cannot, and no column twice."""
    draws, f = 20_000, _output(N, C)
    likelihood = Silent(LIKELIHOODS[name]()) if own else LIKELIHOODS[name]()
    drawn = OutputFisher(likelihood, _generator(), columns).vectors(f.repeat(draws, 1), f"{columns} columns")
    assert drawn.shape == (columns, draws * N, C)
    drawn = drawn.view(columns, draws, N, C)
    exact = LIKELIHOODS[name]().full_vectors(f)
    mean = torch.einsum("kdni,kdnj->nij", drawn, drawn) / draws
    assert_close(mean, torch.einsum("kni,knj->nij", exact, exact), 0.03)
    others = torch.einsum("kdi,kdj->ij", drawn[:, :, 0], drawn[:, :, 1]) / draws
    assert float(others.abs().max()) < 0.05, "samples are drawn independently of each other"


def test_kinds():
    f, full = _output(N, C), Categorical().full_vectors(_output(N, C))
    assert torch.equal(OutputFisher(Categorical(), _generator()).vectors(f, "full"), full)
    drawn = OutputFisher(Categorical(), _generator()).vectors(f, "sampled")
    assert torch.equal(drawn, Categorical().sampled_vectors(f, _generator()))
    mixed = OutputFisher(Categorical(), _generator(), mixes=lambda: True).vectors(f, "full")
    assert torch.equal(mixed.abs(), full.abs()) and not torch.equal(mixed, full)
