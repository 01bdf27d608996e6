"""Norm clipping: lr_t = min(lr, sqrt(c / grad'direction)) exactly, for whatever makes the direction."""

import copy
import math

import pytest
import torch
from torch import nn

from kfbench.errors import UsageError
from kfbench.preconditioners.foof import FOOF
from kfbench.step_rules.clipping import NormClipping
from kfbench.step_rules.contract import Proposed
from kfbench.updates.build import build_data
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.trainee import Trainee
from tests.cases import METHODS, MODELS, Problem, problem
from tests.properties import LAMBDA, assert_close

CPU = torch.device("cpu")
LR = 0.3


def _clipping(c, decay=1.0, total=10):
    return NormClipping(c, decay, total, CPU)


def _flat(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def _directions(method, p, c=None, micro=None):
    """What lies in ``.grad`` after one update on ``p``, all of it in one vector."""
    pre = Preconditioning(p.model, method, damping=LAMBDA, T=1, order="same", likelihood=p.likelihood)
    for x, y in zip(p.x.split(micro or len(p.x)), p.y.split(micro or len(p.x)), strict=True):
        with pre.capture():
            output = p.model(x)
        pre.accumulate(p.likelihood.loss(output, y), output)
    pre.finish(None if c is None else lambda d, inner: _clipping(c).redirect(Proposed(d, inner, LR, 0)))
    return _flat(p.model)


def _gradient(p):
    loss = p.likelihood.loss(p.model(p.x), p.y).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(p.model.parameters()))])


def _with_layer_norm():
    """A model some of whose parameters keep their plain gradient."""
    p = problem("mlp", 7)
    model = nn.Sequential(nn.LayerNorm(5).double(), *p.model)
    nn.init.normal_(model[0].weight)
    return Problem(model, p.x, p.y)


PROBLEMS = {name: lambda name=name: problem(name, 7) for name in MODELS} | {"plain too": _with_layer_norm}


@pytest.mark.filterwarnings("ignore:not preconditioned")
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("case", [METHODS[0], METHODS[1]], ids=lambda case: case.name)
@pytest.mark.parametrize("micro", [None, 3])
def test_direction_is_scaled_by_the_formula(case, name, micro):
    p = PROBLEMS[name]()
    d = _directions(case.new(), p, micro=micro)
    product = float(_gradient(p) @ d)
    assert product > 0
    c = LR**2 * product / 4
    clipped = _directions(case.new(), p, c, micro)
    assert_close(clipped, d / 2, 1e-10, what=f"{case.name}, {name}")
    assert torch.equal(_directions(case.new(), p, LR**2 * product * 1.01, micro), d), "long enough: left as it is"


@pytest.mark.parametrize(
    ("product", "factor"), [(4.0, 0.5), (1.0, 1.0), (0.25, 1.0), (0.0, 1.0), (-1.0, 1.0), (math.inf, 0.0)]
)
def test_factor(product, factor):
    clipping = _clipping(c=LR**2)
    proposed = Proposed({}, lambda vector: torch.tensor(product, dtype=torch.float64), LR, 0)
    assert clipping.factor(proposed).item() == pytest.approx(factor)
    assert clipping.acted == (factor < 1)


def test_a_product_that_is_not_a_number_is_not_hidden():
    assert math.isnan(_clipping(1.0).factor(Proposed({}, lambda vector: torch.tensor(math.nan), LR, 0)))


class Keeping(FOOF):
    """Holds on to what it returned, as a method with a momentum of its own would."""

    def apply(self, gradients):
        self.kept = super().apply(gradients)
        self.copies = {name: kept.clone() for name, kept in self.kept.items()}
        return self.kept


def test_what_a_method_returned_stays_as_it_is():
    method = Keeping()
    _directions(method, problem("mlp-bias", 7), c=1e-6)
    for name, kept in method.kept.items():
        assert torch.equal(kept, method.copies[name])


def _steps(runs, spec, count, **flags):
    """The squared lengths of the first steps of a run, and its trainee."""
    config = runs.config(spec, dtype="float64", **flags)
    trainee = Trainee(config, build_data(config, CPU), 0, CPU)
    trainee.warm_up()
    lengths, batches = [], trainee.batches()
    for _ in range(count):
        before = copy.deepcopy(trainee.model.state_dict())
        trainee.update(*next(batches))
        lengths.append(sum(float((p - before[n]).square().sum()) for n, p in trainee.model.state_dict().items()))
    return lengths, trainee


@pytest.mark.parametrize("spec", ["sgd:momentum=0,lr=1", "torch.optim:SGD:lr=1"])
@pytest.mark.parametrize("micro", [None, 7])
def test_step_of_gradient_descent_has_the_norm_asked_for(runs, spec, micro):
    lengths, trainee = _steps(runs, f"{spec},clip_norm=1e-4", 3, micro_batch_size=micro)
    assert lengths == pytest.approx([1e-4] * 3, rel=1e-9)
    assert trainee.rule.acted == 3


def test_norm_falls_exponentially(runs):
    """c = c_0 gamma^t, with c_0 times clip_decay at the end of 10 updates."""
    lengths, _ = _steps(runs, "sgd:momentum=0,lr=1,clip_norm=1e-4,clip_decay=0.01", 5, updates=10)
    assert lengths == pytest.approx([1e-4 * 0.01 ** (t / 10) for t in range(5)], rel=1e-9)


def test_the_scheduled_learning_rate_is_the_largest(runs):
    """Far below the norm, lr_t = lr, also where a schedule has lowered it."""
    schedule = "sgd:momentum=0,lr=0.1,lr_schedule=step,lr_step_epochs=1,lr_decay=0.5"
    plain, _ = _steps(runs, schedule, 12, epochs=3)
    clipped, trainee = _steps(runs, f"{schedule},clip_norm=100", 12, epochs=3)
    assert clipped == plain and trainee.rule.acted == 0
    assert trainee.lr == pytest.approx(0.1 / 4), "5 updates an epoch"


def test_summary_says_how_often_it_acted(runs):
    always, _ = runs.train("foof:T=3,clip_norm=1e-9", epochs=1)
    assert always["runs"][0]["clipped_updates"] == always["runs"][0]["updates"] == 5
    never, _ = runs.train("foof:T=3", epochs=1)
    assert never["runs"][0]["clipped_updates"] is None


class OwnClipping(torch.optim.SGD):
    """Has a clip_norm of its own, which kfbench must leave to it."""

    def __init__(self, params, lr=0.1, clip_norm=3.0):
        super().__init__(params, lr)
        self.seen = clip_norm


def test_clip_norm_of_a_users_optimizer_is_its_own(runs):
    _, trainee = _steps(runs, f"{__name__}:OwnClipping:clip_norm=2.5", 1)
    assert trainee.optimizer.seen == 2.5 and trainee.rule.acted is None


def test_an_optimizer_without_learning_rate_cannot_be_clipped(runs):
    with pytest.raises(UsageError, match=r"has no learning rate for clip_norm 1\.0 to change"):
        _steps(runs, "tests.training.test_run:NoLearningRate:clip_norm=1", 1)
