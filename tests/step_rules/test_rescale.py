"""The step of least quadratic model, against dense algebra; what it leaves in records and checkpoints."""

import copy
import csv
import json
import math

import pytest
import torch
from torch import nn

from kfbench.errors import UsageError
from kfbench.step_rules.contract import Proposed
from kfbench.step_rules.levenberg_marquardt import LevenbergMarquardt
from kfbench.step_rules.rescale import Rescaling
from kfbench.step_rules.tangents import fisher_products, tangents
from kfbench.updates.build import build_data
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.trainee import Trainee
from tests import dense
from tests.cases import METHODS, Problem, problem
from tests.properties import LAMBDA, assert_close
from tests.step_rules.test_tangents import _flat

CPU = torch.device("cpu")
ETA = 0.01


def _step(p, pre, rule):
    """One update; (gradient with eta theta, direction that was proposed, step that was taken), by parameter."""
    with pre.capture():
        output = p.model(p.x)
    losses = p.likelihood.loss(output, p.y)
    plain = torch.autograd.grad(losses.mean(), list(p.model.parameters()), retain_graph=True)
    gradient = {w: g + rule.l2 * w.detach() for w, g in zip(p.model.parameters(), plain, strict=True)}
    pre.accumulate(losses, output)
    proposals = []

    def fisher(vectors):
        output, *moved = tangents(p.model, p.x, vectors)
        return (fisher_products(p.likelihood, output, moved) / len(p.x)).detach()

    def redirect(direction, inner):
        proposals.append(direction)
        return rule.redirect(Proposed(direction, inner, 1.0, 0, fisher))

    pre.finish(redirect)
    step = {w: -w.grad for w in p.model.parameters()}
    with torch.no_grad():
        for w, delta in step.items():
            w += delta
    return gradient, proposals[0], step


def _dense_C(p, damping):
    F = dense.fisher(p.model, list(p.layers.values()), p.x, p.likelihood.full_vectors(p.model(p.x).detach()))
    return F + damping * torch.eye(len(F), dtype=F.dtype)


# One likelihood is enough for most methods.
FEW = ("foof", "kfac-heuristic-sampled", "natural-full")
PAIRS = [(case, "mlp-bias") for case in METHODS] + [
    (case, name) for case in METHODS if case.name in FEW for name in ("autoencoder", "autoencoder-sigmoid")
]


@pytest.mark.parametrize(("case", "name"), PAIRS, ids=lambda value: value if isinstance(value, str) else value.name)
def test_steps_minimise_the_quadratic_model_over_two_directions(case, name):
    """Over any method; from the second update on with the step before, as 2 x 2 dense system says."""
    p = problem(name, 7)
    pre = Preconditioning(
        p.model,
        case.new(),
        damping=LAMBDA,
        T=2,
        order="same" if "same" in case.make.orders else None,
        likelihood=p.likelihood,
    )
    pre.turn.l2 = ETA
    rule = Rescaling(list(p.model.parameters()), momentum=True, model_damping=0.3, l2=ETA)
    last = None
    for number in range(4):
        C = _dense_C(p, 0.3 + ETA)
        gradient, direction, step = _step(p, pre, rule)
        g, d = _flat(p, gradient), _flat(p, direction)
        vectors = torch.stack([-d] if last is None else [-d, last])
        weights = torch.linalg.solve(vectors @ C @ vectors.T, -(vectors @ g))
        wanted = weights @ vectors
        assert_close(_flat(p, step), wanted, 1e-8, what=f"{case.name}, update {number}")
        assert_close(rule._predicted, 0.5 * wanted @ C @ wanted + g @ wanted, 1e-8, what="M(delta)")
        last = _flat(p, step)


def test_without_momentum_alpha_alone():
    p = problem("mlp-bias", 7)
    pre = Preconditioning(p.model, "foof", damping=LAMBDA, T=1, order="same")
    rule = Rescaling(list(p.model.parameters()), momentum=False, model_damping=0.3)
    for _ in range(2):
        C = _dense_C(p, 0.3)
        gradient, direction, step = _step(p, pre, rule)
        g, d = _flat(p, gradient), _flat(p, direction)
        assert_close(_flat(p, step), -d * (g @ d) / (d @ C @ d), 1e-10, what="rescale")
        assert rule._last is None


@pytest.mark.parametrize("method", ["foof", "kfac"])
def test_on_a_fixed_quadratic_momentum_is_preconditioned_conjugate_gradient(method):
    """Martens & Grosse, appendix F: ten steps with one preconditioner in linear regression."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 4, bias=True)).double()
    x, target = torch.randn(30, 5, dtype=torch.float64), torch.randn(30, 4, dtype=torch.float64)
    x = x * torch.tensor([5.0, 2.0, 1.0, 0.5, 0.1], dtype=torch.float64)
    p = Problem(model, x, target, problem("autoencoder", 3).likelihood)
    pre = Preconditioning(p.model, method, damping=0.5, T=1000, order="same", likelihood=p.likelihood, seed=1)
    rule = Rescaling(list(p.model.parameters()), momentum=True, model_damping=0.0, l2=ETA)
    pre.turn.l2 = ETA
    C = _dense_C(p, ETA)
    theta = {w: w.detach().clone() for w in p.model.parameters()}
    t, residual, conjugate, old = _flat(p, theta), None, None, 1.0
    for number in range(10):
        gradient, direction, _ = _step(p, pre, rule)
        # By hand: z is the preconditioned residual, the conjugate direction is made of it and the one before.
        g, z = _flat(p, gradient), _flat(p, direction)
        if residual is None:
            conjugate, start = z, g.norm()
        elif residual.norm() < 1e-9 * start:  # FOOF's preconditioner is exact but for the penalty: it has arrived
            break
        else:
            assert_close(g, residual, 1e-6, what=f"gradient of update {number}")
            conjugate = z + (g @ z) / old * conjugate
        alpha = (g @ z) / (conjugate @ C @ conjugate)
        t, old = t - alpha * conjugate, g @ z
        residual = g - alpha * C @ conjugate
        assert_close(_flat(p, {w: w.detach() for w in p.model.parameters()}), t, 1e-8, what=f"update {number}")
    assert number >= 4


def test_a_direction_of_length_zero_leads_nowhere():
    w = nn.Parameter(torch.ones(2))
    rule = Rescaling([w], momentum=True, model_damping=1.0)
    zero = {w: torch.zeros(2)}
    proposed = Proposed(
        zero, lambda v: torch.tensor(0.0), 1.0, 0, lambda vectors: torch.zeros(len(vectors), len(vectors))
    )
    for _ in range(2):
        assert torch.equal(rule.redirect(proposed)[w], torch.zeros(2))


def test_parallel_directions_leave_mu_zero():
    """Their 2 x 2 system is singular; alpha alone is taken."""
    w = nn.Parameter(torch.ones(2, dtype=torch.float64))
    d = torch.tensor([1.0, 2.0], dtype=torch.float64)
    rule = Rescaling([w], momentum=True, model_damping=1.0)

    def proposed(direction):
        def fisher(vectors):
            return torch.stack([torch.stack([(u[w] * v[w]).sum() for v in vectors]) for u in vectors])

        return Proposed({w: direction}, lambda v: (d * (direction if v is None else v[w])).sum(), 1.0, 0, fisher)

    rule.redirect(proposed(d))
    step = rule.redirect(proposed(3 * d))[w]
    assert_close(step, d / 2, 1e-12, what="alpha of d alone: 1 / (1 + lambda)")
    assert rule.figures()["mu"] == 0


@pytest.mark.parametrize("case", [c for c in METHODS if c.name != "foof-per-sample"], ids=lambda case: case.name)
def test_the_penalty_is_part_of_what_is_preconditioned(case):
    """eta theta joins the gradient before the method sees it: the direction is linear in it."""

    def direction(eta):
        p = problem("mlp-bias", 7)
        pre = Preconditioning(p.model, case.newest_only(), damping=LAMBDA, T=1, order="same", seed=5)
        pre.turn.l2 = eta
        with pre.capture():
            output = p.model(p.x)
        pre.backward(p.likelihood.loss(output, p.y), output)
        return torch.cat([w.grad.flatten() for w in p.model.parameters()])

    one, two, none = direction(0.1), direction(0.2), direction(0.0)
    # Nor is a direction linear whose scales, or whose length, are those of the very gradient.
    if not case.name.startswith(("ekfac-ra", "shampoo", "soap", "muon")) and not case.name.endswith("kfac-norm"):
        assert_close(two - one, one - none, 1e-7, what=case.name)
    assert float((one - none).norm()) > 1e-6


def _trainee(runs, spec, **flags):
    config = runs.config(spec, lr=None, **flags)
    return Trainee(config, build_data(config, CPU), 0, CPU)


RULED = "kfac:T=4,order=same,step=rescale-momentum,adapt=damping,gamma,T1=2,T2=4,damping=0.5,weight_decay=1e-3"


def test_the_best_of_three_dampings_stays(runs):
    trainee = _trainee(runs, RULED, dtype="float64")
    trainee.warm_up()
    batches = trainee.batches()
    for _ in range(3):
        trainee.update(*next(batches))
    others = {}
    for damping in (0.5, 0.5 * 0.95**4, 0.5 / 0.95**4):
        other = _trainee(runs, RULED, dtype="float64")
        other.load_state_dict(copy.deepcopy(trainee.state_dict()))
        other.preconditioning.turn.redamp(damping)
        other.rule.gamma_rule = None
        other.update(*trainee_batch(trainee))
        others[damping] = float(other.rule._predicted)
    trainee.update(*next(batches))
    best = min(others, key=others.get)
    assert trainee.damping == best and len(set(others.values())) == 3
    assert float(trainee.rule._predicted) == pytest.approx(others[best], rel=1e-9)


def trainee_batch(trainee):
    """The batch of its coming update."""
    return next(trainee.batches())


def test_a_candidate_that_is_no_number_is_not_chosen():
    p = problem("mlp", 7)
    pre = Preconditioning(p.model, "foof", damping=1.0, T=1, order="same")
    with pre.capture():
        output = p.model(p.x)
    pre.accumulate(p.likelihood.loss(output, p.y), output)
    values = iter([math.nan, math.inf, -1.0])
    pre.finish(None, (2.0, 3.0), lambda direction, inner: torch.tensor(next(values)))
    assert pre.damping == 3.0
    found = {w: w.grad.clone() for w in p.model.parameters()}
    other = Preconditioning(copy.deepcopy(p.model), "foof", damping=3.0, T=1, order="same")
    with other.capture():
        output = other.model(p.x)
    other.backward(p.likelihood.loss(output, p.y), output)
    for g, twin in zip(found.values(), other.model.parameters(), strict=True):
        assert_close(g, twin.grad, 1e-12, what="the direction is that of the damping that stays")


def test_a_candidate_that_its_refresh_refuses_is_not_chosen(monkeypatch):
    p = problem("mlp", 7)
    pre = Preconditioning(p.model, "foof", damping=1.0, T=1, order="same")
    own = pre.turn.method.refresh

    def refuses(damping):
        if damping == 0.5:
            raise FloatingPointError("raise --damping")
        own(damping)

    monkeypatch.setattr(pre.turn.method, "refresh", refuses)
    with pre.capture():
        output = p.model(p.x)
    pre.accumulate(p.likelihood.loss(output, p.y), output)
    values = iter([3.0, 2.0])
    pre.finish(None, (0.5, 2.0), lambda direction, inner: torch.tensor(next(values)))
    assert pre.damping == 2.0 and all(w.grad.isfinite().all() for w in p.model.parameters())


class WithDropout(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 10))

    def forward(self, x):
        return self.layers(x)


def with_dropout(input_shape, outputs):
    return WithDropout(input_shape, outputs)


@pytest.mark.parametrize("spec", ["sgd:step=rescale,adapt=damping,T1=1,model_damping=1", RULED])
def test_reduction_ratio_is_of_the_same_batch_and_masks(runs, spec):
    """Its parts measured by hand, with the random state from before the forward."""
    name = f"{__name__}:with_dropout"
    trainee = _trainee(runs, spec, dtype="float64", model=name, width=None)
    trainee.warm_up()
    for x, y in [next(trainee.batches())] * 2:
        before, state = {w: w.detach().clone() for w in trainee.model.parameters()}, torch.get_rng_state()
        loss = trainee.update(x, y)
        after_state = torch.get_rng_state()
        torch.set_rng_state(state)
        with torch.no_grad():
            after = trainee.likelihood.loss(trainee.model(x), y).mean()
        assert torch.equal(torch.get_rng_state(), after_state), "looking at the step draws nothing"
        eta = trainee.rule.l2
        penalty = sum(float(w.detach().square().sum() - old.square().sum()) for w, old in before.items()) * eta / 2
        ratio = (float(after - loss) + penalty) / float(trainee.rule._predicted)
    assert trainee.rule.figures()["reduction_ratio"] == pytest.approx(ratio, rel=1e-6)


def test_damping_follows_lambda_in_proportion(runs):
    trainee = _trainee(runs, "foof:T=1,order=same,step=rescale,adapt=damping,T1=1,model_damping=2,damping=0.1")
    for _, batch in zip(range(4), trainee.batches(), strict=False):
        trainee.update(*batch)
        assert trainee.damping == pytest.approx(0.1 * trainee.rule.model_damping / 2)
    assert trainee.rule.model_damping != 2


def test_records_and_summary(runs):
    summary, folder = runs.train(RULED, lr=None, updates=12)
    assert summary["runs"][0]["status"] == "done"
    with open(folder / "seed-0" / "updates.csv") as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["reduction_ratio"]) for row in rows] == [False, True] * 6
    assert all(float(row["alpha"]) > 0 and row["lr"] == "1.0" for row in rows)
    assert len({row["damping"] for row in rows}) > 1 and len({row["model_damping"] for row in rows}) > 1
    written = json.loads((folder / "seed-0" / "summary.json").read_text())
    assert written["steps_looked_at"] == 6 and "steps_that_raised_loss" in written


def test_a_step_that_raises_the_loss_is_told(runs):
    """With hardly any damping on 20 samples a step is too long now and then."""
    spec = "natural:T=1,order=same,step=rescale-momentum,adapt=damping,T1=1,damping=1e-9"
    _, folder = runs.train(spec, lr=None, updates=40, dtype="float64")
    with open(folder / "seed-0" / "updates.csv") as file:
        ratios = [float(row["reduction_ratio"]) for row in csv.DictReader(file) if row["reduction_ratio"]]
    raised = sum(ratio < 0 for ratio in ratios)
    assert json.loads((folder / "seed-0" / "summary.json").read_text())["steps_that_raised_loss"] == raised
    assert raised > 0


def test_a_part_of_the_batch_makes_the_model(runs):
    spec = "foof:T=1,order=same,step=rescale,damping=0.1,tau2=0.25"
    trainee = _trainee(runs, spec, dtype="float64")
    x, y = next(trainee.batches())
    trainee.backward(x, y)
    vector = {w: torch.randn_like(w) for w in trainee.model.parameters()}
    output, moved = tangents(trainee.model, x[:5], [vector])
    wanted = fisher_products(trainee.likelihood, output, [moved]) / 5
    assert_close(trainee._seen.fisher([vector], 0.25), wanted.detach(), 1e-12, what="5 of 20 samples")


@pytest.mark.parametrize(
    ("change", "predicted", "damping", "ratio"),
    [
        (-0.9, -1.0, 1.9, 0.9),
        (-0.5, -1.0, 2.0, 0.5),
        (-0.1, -1.0, 2 / 0.95, 0.1),
        (0.1, -1.0, 2 / 0.95, -0.1),
        (math.nan, -1.0, 2 / 0.95, math.nan),
        (math.inf, -1.0, 2 / 0.95, math.nan),
        (0.0, 0.0, 2.0, None),
        (-1.0, math.nan, 2.0, None),
    ],
)
def test_both_branches_of_levenberg_marquardt(change, predicted, damping, ratio):
    rule = LevenbergMarquardt(1)
    got = rule.adjusted(2.0, change, predicted)
    assert got[0] == pytest.approx(damping)
    assert got[1] == pytest.approx(ratio, nan_ok=True) if ratio is not None else got[1] is None
    assert rule.summary()["steps_that_raised_loss"] == (not change <= 0)


def test_lambda_moves_every_so_many_updates():
    rule = LevenbergMarquardt(5)
    assert [step for step in range(12) if rule.is_due(step)] == [4, 9]
    assert rule.adjusted(1.0, -1.0, -1.0)[0] == pytest.approx(0.95**5)


@pytest.mark.parametrize(
    ("spec", "flags", "words"),
    [
        ("foof:step=rescale,lr=0.1", {}, "step 'rescale' finds lr itself, got lr 0.1"),
        ("foof:step=rescale", {"momentum": "0.9"}, "finds momentum itself"),
        ("sgd:step=rescale,nesterov=true", {}, "finds nesterov itself"),
        ("foof:step=rescale,clip_norm=1", {}, "finds clip_norm itself"),
        ("adam:step=rescale", {}, "unknown option of 'adam' 'step'"),
        ("foof:adapt=damping", {}, "adapt needs step 'rescale' or"),
        ("foof:step=constant,tau2=0.5", {}, "tau2 needs step"),
        ("sgd:step=rescale,adapt=damping", {}, "adapt needs a model_damping above 0"),
        ("sgd:step=rescale,adapt=damping,gamma,model_damping=1", {}, "no damping of its own"),
        ("foof:T=7,step=rescale,adapt=damping,gamma", {}, "T2 must be a multiple of T = 7, got 20"),
        ("foof:step=rescale,T2=20", {}, "T2 needs adapt with 'gamma', got adapt None"),
        ("foof-per-sample:step=rescale,weight_decay=0.1", {}, "makes directions of single samples"),
        ("foof:step=far", {}, "step should be"),
        ("foof:step=rescale,adapt=gamma", {}, "adapt should be"),
    ],
)
def test_what_does_not_fit_is_one_sentence(runs, spec, flags, words):
    with pytest.raises(UsageError, match=words) as raised:
        _trainee(runs, spec, **{"damping": None, **flags})
    assert "\n" not in str(raised.value)


def test_a_constant_step_is_the_method_as_it_is(runs):
    usual, constant = runs.config("foof"), runs.config("foof:step=constant,adapt=none")
    assert usual.methods == constant.methods
