"""Outputs of more than two dimensions: a label at every position of a sample, wherever its classes lie."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.problems.likelihoods import Bernoulli, Categorical, Gaussian
from kfbench.updates.preconditioning import Preconditioning
from tests.properties import assert_close

CASES = [
    (Categorical(1), (3, 4, 5)),
    (Categorical(-1), (3, 5, 4)),
    (Categorical(2), (3, 5, 4)),
    (Categorical(1), (2, 3, 2, 4)),
    (Categorical(-1), (2, 2, 4, 3)),
    (Categorical(-1), (4, 3)),
    *[(kind(), shape) for kind in (Gaussian, Bernoulli) for shape in ((6,), (6, 5), (3, 2, 4), (2, 1, 3, 4))],
]
IDS = [f"{type(likelihood).__name__}-{list(shape)}-{i}" for i, (likelihood, shape) in enumerate(CASES)]


def _output(shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _fisher(likelihood, f):
    """[N, D, D] of the flattened output, from independent labels at every position."""
    N, D = len(f), math.prod(f.shape[1:])
    if isinstance(likelihood, Gaussian):
        return torch.eye(D, dtype=f.dtype).expand(N, D, D)
    if isinstance(likelihood, Bernoulli):
        p = f.sigmoid().reshape(N, D)
        return torch.diag_embed(p * (1 - p))
    dim = likelihood.class_dim if f.dim() > 2 else -1
    places = (
        torch.arange(D).view(f.shape[1:]).movedim(dim if dim < 0 else dim - 1, -1).reshape(-1, f.shape[dim])
    )  # [P, C]
    p, F = f.movedim(dim, -1).reshape(N, -1, f.shape[dim]).softmax(-1), torch.zeros(N, D, D, dtype=f.dtype)
    for n in range(N):
        for q, place in enumerate(places):
            F[n][place[:, None], place] = torch.diag(p[n, q]) - p[n, q][:, None] * p[n, q]
    return F


@pytest.mark.parametrize(("likelihood", "shape"), CASES, ids=IDS)
def test_full_vectors_square_to_the_output_fisher(likelihood, shape):
    f = _output(shape)
    vectors = likelihood.full_vectors(f)
    assert vectors.shape[1:] == f.shape
    flat = vectors.reshape(len(vectors), len(f), -1)
    assert_close(torch.einsum("kni,knj->nij", flat, flat), _fisher(likelihood, f), 1e-12)


@pytest.mark.parametrize(("likelihood", "shape"), CASES, ids=IDS)
def test_sampled_vectors_square_to_it_on_average(likelihood, shape):
    f, generator, draws = _output(shape), torch.Generator().manual_seed(0), 20_000
    vectors = likelihood.sampled_vectors(f.repeat(draws, *[1] * (f.dim() - 1)), generator)
    assert vectors.shape == (1, draws * len(f), *f.shape[1:])
    flat = vectors.reshape(draws, len(f), -1)
    assert_close(torch.einsum("dni,dnj->nij", flat, flat) / draws, _fisher(likelihood, f), 0.06)


@pytest.mark.parametrize(("class_dim", "shape"), [(1, (3, 4, 5)), (-1, (3, 5, 4)), (1, (2, 3, 2, 4))])
def test_loss_and_its_gradient_sum_over_positions(class_dim, shape):
    f = _output(shape).requires_grad_()
    moved = f.movedim(class_dim, 1)
    y = torch.randint(moved.shape[1], (len(f), *moved.shape[2:]), generator=torch.Generator().manual_seed(2))
    losses = Categorical(class_dim).loss(f, y)
    wanted = cross_entropy(moved, y, reduction="none").flatten(1).sum(1)
    assert_close(losses.detach(), wanted.detach(), 1e-14)
    right = Categorical(class_dim).correct(f, y)
    assert right.tolist() == (moved.argmax(1) == y).flatten(1).tolist()


def test_an_output_that_does_not_say_where_its_classes_lie_is_refused():
    for call in (lambda f: Categorical().sampled_vectors(f, None), Categorical().full_vectors):
        with pytest.raises(
            ValueError, match=r"shape \[6, 5, 3\]; with a label at every position .*class_dim=1\), or -1"
        ):
            call(torch.randn(6, 5, 3))


@pytest.mark.parametrize("fisher", ["sampled", "full"])
def test_kfac_of_token_classification_has_the_exact_output_factor(fisher):
    """The case that was silently 7 times too large: logits [N, T, C]."""
    N, T, d, C = 6, 5, 4, 3
    torch.manual_seed(0)
    model = nn.Linear(d, C).double()
    x, y = torch.randn(N, T, d, dtype=torch.float64), torch.randint(C, (N, T))
    options = {"fisher": fisher, "likelihood": Categorical(class_dim=-1)}
    kfac = Preconditioning(model, "kfac", damping=0.1, T=1, ema=0.999 if fisher == "sampled" else 0.0, **options)
    for _ in range(3000 if fisher == "sampled" else 1):
        with kfac.capture():
            output = model(x)
        kfac.accumulate(cross_entropy(output.transpose(1, 2), y, reduction="none").sum(1), output)
        kfac.finish()
    p = output.detach().softmax(-1)
    right = (torch.diag_embed(p) - p[..., :, None] * p[..., None, :]).mean((0, 1))
    assert_close(kfac.method.B.means[""], right, 0.05 if fisher == "sampled" else 1e-12)
