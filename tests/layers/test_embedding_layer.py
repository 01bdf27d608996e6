"""Embeddings: their rows, their diagonal input factor, and what of a linear layer on one-hot inputs they must equal."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot

from kfbench.curvature.averages import FactorAverages, form_of, inverse_from_state
from kfbench.curvature.linalg import DiagonalInverse
from kfbench.layers.embedding_layer import Counts, EmbeddingLayer, token_rows
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.finding import find_layers
from kfbench.layers.plane import rows_from_state
from kfbench.problems.likelihoods import Categorical
from kfbench.updates.preconditioning import Preconditioning
from tests.cases import METHODS, problem
from tests.properties import LAMBDA, assert_close, equal

V, D, T = 4, 3, 5


class _Hot(nn.Module):
    """What an embedding is: a linear layer without bias on one-hot vectors."""

    def __init__(self, weight):
        super().__init__()
        self.linear = nn.Linear(V, D, bias=False).double()
        self.linear.weight = nn.Parameter(weight.detach().T.clone())

    def forward(self, x):
        return self.linear(one_hot(x, V).double())


def _pair():
    """The same network with an embedding and with a linear layer in its place."""
    torch.manual_seed(0)
    own = nn.Sequential(nn.Embedding(V, D), nn.Tanh(), nn.Linear(D, V)).double()
    return own, nn.Sequential(_Hot(own[0].weight), *copy.deepcopy(own[1:]))


def _tokens(n=6, positions=T):
    x = torch.randint(V - 1, (n, positions), generator=torch.Generator().manual_seed(2))  # the last one is never seen
    return x, (x + 1) % V


def _directions(model, case, x, y, sharing=None):
    options = {} if sharing is None else {"sharing": sharing}
    likelihood = Categorical(class_dim=-1)
    pre = Preconditioning(model, case.new(**options), damping=LAMBDA, T=1, order="same", likelihood=likelihood)
    with pre.capture():
        output = model(x)
    pre.backward(likelihood.loss(output, y), output)
    return [p.grad for p in model.parameters()]


_CASES = [case for case in METHODS if not (case.chain or case.chains_only or case.own_factors)]


@pytest.mark.parametrize("case", _CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("positions", [1, T])
def test_it_is_a_linear_layer_on_one_hot_inputs(case, positions):
    (own, hot), (x, y) = _pair(), _tokens(positions=positions)
    got, wanted = _directions(own, case, x, y), _directions(hot, case, x, y)
    assert_close(got[0], wanted[0].T, what="embedding")
    for a, b in zip(got[1:], wanted[1:], strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", ["foof", "kfac-heuristic-sampled", "kfac-standard-full", "ekfac-plain-empirical"])
def test_under_reduce_it_is_one_too(name):
    case = next(case for case in METHODS if case.name == name)
    (own, hot), (x, y) = _pair(), _tokens()
    assert_close(_directions(own, case, x, y, "reduce")[0], _directions(hot, case, x, y, "reduce")[0].T)
    assert not torch.allclose(_directions(own, case, x, y, "expand")[0], _directions(own, case, x, y, "reduce")[0])


def _layer(embedding):
    return EmbeddingLayer("embedding", embedding)


def test_the_factor_is_counts_over_samples():
    x, _ = _tokens()
    averages = FactorAverages(0.0)
    averages.add_moment("a", _layer(nn.Embedding(V, D).double()).input_moment([x], False, EXACT), len(x))
    counts = [sum(int(token == v) for row in x for token in row) for v in range(V)]
    assert averages.means.kept["a"].tolist() == [c / len(x) for c in counts] and counts[-1] == 0
    assert torch.equal(averages.means["a"], averages.means.kept["a"].diag())
    assert averages.means.trace("a") == T and averages.means.width("a") == V
    values, vectors = averages.eigenbasis("a")
    assert torch.equal(vectors, torch.eye(V).double()) and torch.equal(values, averages.means.kept["a"])
    few = _layer(nn.Embedding(V, D).double()).input_moment([x], False, Estimate(samples=2)).add_to(None, 0.0, 1.0)
    assert few.tolist() == [float((x[:2] == v).sum()) for v in range(V)]


def test_half_precision_counts_are_kept_in_float32():
    moment = _layer(nn.Embedding(V, D).to(torch.bfloat16)).input_moment(
        [torch.zeros(700, 3, dtype=torch.long)], False, EXACT
    )
    kept = moment.add_to(None, 0.0, 1.0)
    assert kept.dtype == torch.float32 and kept[0] == 2100  # bfloat16 has no such number


def test_a_token_that_is_never_seen_needs_damping():
    inverse = DiagonalInverse.of(torch.tensor([2.0, 0.0]).double(), 0.5)
    assert_close(
        inverse(torch.ones(3, 2).double()), torch.tensor([[0.4, 2.0]], dtype=torch.float64).expand(3, 2), 1e-15
    )
    without = DiagonalInverse.of(torch.tensor([2.0, 0.0]).double(), 0.0)(torch.ones(1, 2).double())
    assert torch.isfinite(without).all() and without[0, 0] == 0.5


def test_states_are_restored():
    counts = Counts(V, "float64")
    assert form_of(list(counts.describe())) == counts
    inverse = DiagonalInverse.of(torch.rand(V), 0.1)
    rows = torch.rand(2, V)
    assert torch.equal(inverse_from_state(inverse.state_dict())(rows), inverse(rows))
    x, _ = _tokens()
    own = token_rows(lambda: x, *x.shape, V, torch.float64)
    again, g, M = rows_from_state(own.state_dict()), torch.rand(*x.shape, D).double(), torch.rand(D, V).double()
    assert torch.equal(own.all(), again.all()) and torch.equal(own.all(), one_hot(x, V).double())
    assert torch.equal(own.weighted_sum(g), again.weighted_sum(g)) and torch.equal(own.times(M), again.times(M))
    assert_close(own.weighted_sum(g), g.flatten(0, 1).T @ own.all().flatten(0, 1), 1e-14)
    assert_close(own.times(M), own.all() @ M.T, 1e-14)
    first = own.first(2)
    assert torch.equal(first.all(), own.all()[:2])


@pytest.mark.parametrize(
    "options", [{"padding_idx": 0}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}]
)
def test_what_changes_weights_or_counts_on_the_way_is_left_out_by_name(options):
    layers, left_out = find_layers(nn.Sequential(nn.Embedding(V, D, **options), nn.Linear(D, 2)))
    assert set(layers) == {"1"}
    assert left_out == {"0": f"an embedding with {next(iter(options))} has no Kronecker factors here"}


@pytest.mark.parametrize(
    "case", [case for case in METHODS if not (case.chain or case.chains_only)], ids=lambda c: c.name
)
def test_a_state_with_tokens_continues_bit_for_bit(case):
    p, other = problem("tokens", 7), problem("tokens", 7, seed=1)
    options = {"damping": LAMBDA, "T": 3, "S": 2 if case.averages else None, "likelihood": p.likelihood}
    options["order"] = "independent" if "independent" in case.make.orders else "same"
    options["fisher_batches"] = lambda refresh: [(p.x[refresh % 3 :], p.y[refresh % 3 :])]

    def step(pre, batch):
        with pre.capture():
            output = p.model(batch.x)
        pre.backward(p.likelihood.loss(output, batch.y), output)
        return [q.grad.clone() for q in p.model.parameters()]

    pre = Preconditioning(p.model, case.new(), **options)
    for batch in (p, other):
        step(pre, batch)
    restored = Preconditioning(p.model, case.new(), seed=99, **options)
    restored.load_state_dict(copy.deepcopy(pre.state_dict()))
    for batch in (other, p, other):
        assert equal(step(pre, batch), step(restored, batch))
