"""Asked methods with a step rule, and those that need not work between looks."""

import itertools
from functools import partial

import pytest
import torch

from kfbench.errors import UsageError
from tests import dense
from tests.similarity.test_run import _followed, _loss_after, _step

LAMBDA, ETA = 0.2, 0.05
RULED = f"kfac:T=1,ema=0,order=same,damping={LAMBDA},step=rescale,weight_decay={ETA},fisher=full"
RAW = f"kfac:T=1,ema=0,order=same,damping={LAMBDA},fisher=full,lr=1"


def test_an_asked_direction_is_as_long_as_the_exact_fisher_makes_it():
    """alpha = g'd / d'(F + (lambda + eta) I) d, with a dense F and the gradient of the penalty too."""
    trainee = _followed([RULED, "sgd"], "sgd", every=1, progress=True)
    trainee.warm_up()
    x, y = next(trainee.batches())
    model, likelihood = trainee.model, trainee.likelihood
    modules = [layer.module for layer in trainee.panel.layers.values()]
    F = dense.fisher(model, modules, x, likelihood.full_vectors(model(x).detach()))
    losses = likelihood.loss(model(x), y)
    # Per layer [d_out, d_in], with the bias as its last column.
    gradients = {name: dense.gradient(model, layer.module, losses) for name, layer in trainee.panel.layers.items()}
    weights = {
        name: layer.matrix([p.detach() for p in layer.parameters]) for name, layer in trainee.panel.layers.items()
    }
    g = torch.cat([(gradients[name] + ETA * weights[name]).flatten() for name in gradients])
    trainee.update(x, y)
    d = torch.cat([matrix.flatten() for matrix in trainee.panel.matrices("kfac").values()])
    C = F + (LAMBDA + ETA) * torch.eye(len(F), dtype=F.dtype)
    # Whatever its length was: the best multiple of a direction of the best length is 1.
    assert (g @ d / (d @ C @ d)).item() == pytest.approx(1.0, rel=1e-10)


def test_progress_of_a_ruled_method_is_that_of_its_own_step():
    trainee = _followed([RULED, RAW, "sgd"], "sgd", every=1, progress=True)
    trainee.warm_up()
    x, y = next(trainee.batches())
    kept = [p.detach().clone() for p in trainee.model.parameters()]
    trainee.update(x, y)
    rows = {(row["method"], row["kind"]): row for row in trainee.looks.drain()[1]}
    labels = [each.label for each in trainee.panel.asked]

    loss = partial(_loss_after, trainee, kept, x, y)
    before = loss([0.0] * len(kept))
    for label in labels[:2]:
        after = loss(list(trainee.panel.directions[label].values()))
        row = rows[label, "as-is"]
        assert row["lr"] == 1 and row["progress"] == pytest.approx((before - after) / before, rel=1e-9)
    assert rows[labels[0], "as-is"]["progress"] != rows[labels[1], "as-is"]["progress"]


@pytest.mark.parametrize(
    ("spec", "got"),
    [
        ("kfac:step=rescale-momentum", "got step 'rescale-momentum'"),
        ("kfac:step=rescale,adapt=damping", "got step 'rescale' with adapt 'damping'"),
        ("kfac:tau1=0.5", "tau1 is not accepted, got 0.5"),
    ],
)
def test_what_follows_steps_of_its_own_is_refused(spec, got):
    with pytest.raises(UsageError, match=got):
        _followed([spec, "sgd"], "sgd")


@pytest.mark.parametrize(
    "spec",
    [
        "gn-cg:warm_start=false,max_iterations=30",
        "natural:T=1,order=same,fisher=full",
        "kfac:T=1,order=same,ema=0,fisher=empirical",
    ],
)
def test_what_remembers_nothing_works_at_looks_alone(spec):
    """With the same directions there as if it had worked in every update."""
    found = {}
    for every in (1, 3):
        # FOOF stands there since warm-up batches are for somebody.
        trainee = _followed([spec, "sgd:lr=0.05", "foof"], "sgd:lr=0.05", every=every)
        trainee.warm_up()
        label = trainee.panel.asked[0].label
        turn = trainee.panel.turns[label]
        warm = turn.refreshes
        for x, y in itertools.islice(trainee.batches(), 7):
            trainee.update(x, y)
        found[every] = {name: m.clone() for name, m in trainee.panel.matrices(label).items()}
        assert turn.refreshes - warm == (7 if every == 1 else 3)
    for name, matrix in found[1].items():
        assert torch.equal(matrix, found[3][name]), name


def test_no_look_before_the_first():
    trainee = _followed(["kfac:T=1", "sgd"], "sgd", every=2, first=3)
    _step(trainee, 8)
    assert {row["update"] for row in trainee.looks.drain()[0]} == {4, 6}


@pytest.mark.parametrize("spec", ["kfac:T=1,order=same,fisher=empirical", "kfac:T=1,ema=0,fisher=empirical"])
def test_what_is_averaged_or_one_update_old_works_always(spec):
    trainee = _followed([spec, "sgd"], "sgd", every=3)
    _step(trainee, 7)
    assert trainee.panel.turns["kfac"].refreshes == 1 + 7, "that of the warm-up, and each update's"
