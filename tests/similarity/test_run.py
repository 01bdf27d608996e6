"""`similarity`: everybody answers for the same gradient, nobody disturbs the trajectory, numbers are the dense ones."""

import itertools
import json
import math
from functools import partial

import pandas as pd
import pytest
import torch
from torch import nn

from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.problems.likelihoods import Categorical
from kfbench.similarity.followed import FollowedTrainee
from kfbench.similarity.looks import default_every
from kfbench.similarity.loss_decrease import best_of_half_decades
from kfbench.similarity.means import PROGRESS_COLUMNS, SIMILARITY_COLUMNS, SPECTRUM_COLUMNS
from kfbench.similarity.run import similarity
from kfbench.training.observer import Observer
from kfbench.updates.build import build_data
from tests import dense
from tests.runs import SMALL, updates

CPU = torch.device("cpu")
MODEL = {"model": "tests.similarity.test_run:pooled", "width": None}
SHORT = SMALL | MODEL | {"train_samples": 60}
TINY = SHORT | {"batch_size": 10, "warmup_batches": 2, "dtype": "float64"}
KFAC = "kfac:lr=0.003,damping=0.01,T=4,S=2"
FOOF = "foof:lr=0.3,damping=1.0,T=3"
# Its step named, since the small runs that it is compared with have their own.
EKFAC = "ekfac:T=3,fisher=sampled,lr=0.001,damping=0.001"
EVERYBODY = [KFAC, FOOF, "sgd", "adam", "torch.optim:RMSprop:lr=0.001", "ekfac:T=3", "ekfac-ra:T=5", "gn-cg:T=2"]
EVERYBODY += ["natural:T=4,fisher_data=7", "natural:order=same,T=2,fisher=full", "foof-per-sample", "foof-centred:T=2"]
EVERYBODY += ["kfac:fisher=full,T=2,warmup_batches=1", "foof-kfac-damping:T=3", "ekfac:T=2,fisher=sampled,S=1"]


def pooled(input_shape, outputs):
    """49-5-10: wide first layers cost eigenbases their time."""
    layers = [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(49, 5, bias=False), nn.Tanh(), nn.Linear(5, outputs)]
    return nn.Sequential(*layers)


def _config(specs, follow, **flags):
    return load_config(specs=specs, flags=SHORT | {"follow": follow} | flags, command="similarity")


def _run(tmp_path, specs, follow, observer=None, **flags):
    folder = tmp_path / "similarity"
    folder.mkdir()
    return similarity(_config(specs, follow, **flags), folder, observer or Observer()), folder


def _followed(specs, follow, **flags):
    config = load_config(specs=specs, flags=TINY | {"follow": follow} | flags, command="similarity")
    return FollowedTrainee(config, build_data(config, CPU), 0, CPU)


def _step(trainee, count=1):
    """Warm up and update; the batch of the last."""
    trainee.warm_up()
    for x, y in itertools.islice(trainee.batches(), count):
        trainee.update(x, y)
    return x, y


@pytest.mark.parametrize("follow", [KFAC, "sgd", "adam", "natural:T=4,fisher_data=7,lr=0.03,damping=1", EKFAC])
def test_followed_trajectory_is_that_of_train_bit_for_bit(tmp_path, runs, follow):
    """Whoever else is asked, whatever is looked at."""
    others = [spec for spec in EVERYBODY if spec.split(":")[0] != follow.split(":")[0]]
    everything = {
        "progress": True,
        "progress_lr": "search" if follow == "sgd" else "given",
        "metric": "both",
        "every": 4,
        "epochs": 3,
    }
    summary, folder = _run(tmp_path, [follow, *others], follow, spectrum=["4"] if follow == KFAC else (), **everything)
    assert summary["status"] == "done"
    _, alone = runs.train(follow, epochs=3, **MODEL, train_samples=60)
    assert updates(folder)["loss"].equals(updates(alone)["loss"])


def test_micro_batches_and_clipping_follow_train_too(tmp_path, runs):
    more = {"epochs": 2, "micro_batch_size": 7, "clip_norm": 0.01}
    _, folder = _run(tmp_path, [FOOF, KFAC, "ekfac:T=3", "sgd"], FOOF, progress=True, **more)
    _, alone = runs.train(FOOF, **more, **MODEL, train_samples=60)
    assert updates(folder)["loss"].equals(updates(alone)["loss"])


@pytest.mark.parametrize("spec", [spec for spec in EVERYBODY if "adam" not in spec and "torch" not in spec])
def test_asked_direction_is_the_followed_one_at_the_same_weights(spec):
    """At the first update the weights are equal, whoever is followed."""
    specs = [*dict.fromkeys([FOOF, KFAC, spec])]
    asked, followed = (_followed(specs, who) for who in (KFAC if spec == FOOF else FOOF, spec))
    label = followed.panel.followed.label
    for trainee in (asked, followed):
        _step(trainee)
    for name, matrix in followed.panel.matrices(label).items():
        if spec == "sgd":  # torch's own backward, another order of summation
            torch.testing.assert_close(asked.panel.matrices(label)[name], matrix, rtol=1e-10, atol=1e-15)
        else:
            assert torch.equal(asked.panel.matrices(label)[name], matrix), name


@pytest.mark.parametrize(
    "spec", ["adam:lr=0.001", "torch.optim:SGD:lr=0.02,momentum=0.9", "torch.optim:RMSprop:lr=0.001"]
)
def test_shadow_takes_the_step_of_the_optimizer_it_stands_for(spec):
    """Followed itself, its shadow's direction times lr is the step that it takes."""
    trainee = _followed([spec, "sgd", FOOF], spec)
    trainee.warm_up()
    for x, y in itertools.islice(trainee.batches(), 5):
        before = [p.detach().clone() for p in trainee.model.parameters()]
        trainee.update(x, y)
        direction = trainee.panel.directions[trainee.panel.followed.label] if trainee.panel.directions else {}
        lr = trainee.lr
        for p, old in zip(trainee.model.parameters(), before, strict=True):
            torch.testing.assert_close(old - lr * direction[p], p.detach(), rtol=0, atol=1e-12)


def test_every_sampled_fisher_of_a_forward_has_the_same_labels(monkeypatch):
    drawn = []
    own = Categorical.sampled_vectors
    monkeypatch.setattr(Categorical, "sampled_vectors", lambda *args: drawn.append(1) or own(*args))
    specs = ["kfac:T=1", "ekfac:T=1,fisher=sampled", "foof-kfac-damping:T=1", "sgd"]
    trainee = _followed(specs, "sgd", spectrum=["4"], every=1)
    _step(trainee, 3)
    assert len(drawn) == 2 + 3, "once a forward: two of the warm-up, three updates"
    kfac, ekfac = (trainee.panel.turns[label].method for label in ("kfac", "ekfac"))
    for name in kfac.B.means:
        assert torch.equal(kfac.B.means[name], ekfac.B.means[name])


def _dense_problem(trainee, x, y):
    """Per layer: the module, G and the input factor, by loops."""
    losses = trainee.likelihood.loss(trainee.model(x), y)
    vectors = x.new_zeros(1, len(x), 10)
    modules = {name: layer.module for name, layer in trainee.panel.layers.items()}
    gradients = {name: dense.gradient(trainee.model, module, losses) for name, module in modules.items()}
    return modules, gradients, {n: dense.factors(trainee.model, m, x, vectors)[0] for n, m in modules.items()}


def test_cosines_are_those_of_dense_directions(monkeypatch):
    """FOOF and SGD in both inner products, from loops and explicit inverses, layer by layer and together."""
    specs = ["sgd", "foof:ema=0,T=1,order=same,damping=0.5"]
    trainee = _followed(specs, "sgd", metric="both", every=1)
    trainee.warm_up()
    x, y = next(trainee.batches())
    modules, G, A = _dense_problem(trainee, x, y)  # before the weights move
    whole = {"euclidean": torch.zeros(3, dtype=x.dtype), "foof": torch.zeros(3, dtype=x.dtype)}
    trainee.update(x, y)
    rows = pd.DataFrame(trainee.looks.drain()[0]).set_index(["layer", "metric"])["cosine"]
    for name in modules:
        u, M = G[name], A[name] + 0.5 * torch.eye(len(A[name]), dtype=x.dtype)
        v = dense.foof(A[name], None, u, 0.5)
        for metric, N in (("euclidean", torch.eye(len(M), dtype=x.dtype)), ("foof", M)):
            uv, uu, vv = ((p @ N @ q.T).trace() for p, q in ((u, v), (u, u), (v, v)))
            assert rows[name, metric] == pytest.approx((uv / (uu * vv).sqrt()).item(), rel=1e-10)
            whole[metric] += torch.stack([uv, uu, vv])
    for metric, (uv, uu, vv) in whole.items():
        assert rows["*", metric] == pytest.approx((uv / (uu * vv).sqrt()).item(), rel=1e-10)


def test_foofs_inner_product_with_its_own_direction_is_that_with_the_gradient():
    """<u, FOOF direction> = tr(u G'), also with averages and order independent, where A changes right after."""
    trainee = _followed([KFAC, "foof:T=1,damping=0.3", "sgd"], KFAC, metric="foof", every=1)
    _step(trainee, 3)
    looks, panel = trainee.looks, trainee.panel
    for name, foof in panel.matrices("foof").items():
        G, u = panel.matrices("sgd")[name], panel.matrices("kfac")[name]
        times = foof @ looks._A[name] + 0.3 * foof
        assert (u * times).sum().item() == pytest.approx((u * G).sum().item(), rel=1e-9)


def _loss_after(trainee, kept, x, y, steps):
    """Of the batch, from the weights that were ``kept``."""
    with torch.no_grad():
        for p, old, step in zip(trainee.model.parameters(), kept, steps, strict=True):
            p.copy_(old - step)
        return trainee.likelihood.loss(trainee.model(x), y).mean().item()


@pytest.mark.parametrize("search", [False, True])
def test_progress_is_what_a_step_would_bring(search):
    trainee = _followed(
        [KFAC, "sgd:lr=0.05"], KFAC, progress=True, every=1, progress_lr="search" if search else "given"
    )
    trainee.warm_up()
    x, y = next(trainee.batches())
    kept = [p.detach().clone() for p in trainee.model.parameters()]
    trainee.update(x, y)
    rows = {(row["method"], row["kind"]): row for row in trainee.looks.drain()[1]}
    panel = trainee.panel

    explicit = partial(_loss_after, trainee, kept, x, y)
    before = explicit([0.0] * len(kept))
    lrs = {"kfac": 0.003, "sgd": 0.05}
    for label, lr in lrs.items():
        row, G = rows[label, "as-is"], list(panel.directions[label].values())
        if search:
            grid = [lr * 10 ** (k / 2) for k in range(-16, 17)]
            assert any(row["lr"] == pytest.approx(step) for step in grid)
            assert row["progress"] >= max((before - explicit([s * g for g in G])) / before for s in grid[12:21]) - 1e-12
        else:
            assert row["lr"] == lr
        assert row["progress"] == pytest.approx((before - explicit([row["lr"] * g for g in G])) / before, rel=1e-9)
        steps = []
        for name, layer in panel.layers.items():
            g, k = (panel.matrices(each)[name] for each in (label, "kfac"))
            steps += layer.split(0.003 * g * (k.norm() / g.norm()))
        assert rows[label, "rescaled"]["progress"] == pytest.approx((before - explicit(steps)) / before, rel=1e-9)


def test_line_search_extends_where_the_best_is_at_an_end():
    assert best_of_half_decades(lambda lr: -abs(math.log10(lr) - 4), 1.0) == pytest.approx((0, 1e4))
    assert best_of_half_decades(lambda lr: -abs(math.log10(lr) + 1), 1.0) == pytest.approx((0, 0.1))
    assert best_of_half_decades(lambda lr: math.nan if lr > 1 else lr, 1.0) == pytest.approx((1, 1))
    assert best_of_half_decades(lambda lr: lr, 1.0)[1] == pytest.approx(1e8), "it ends"
    assert math.isnan(best_of_half_decades(lambda lr: math.nan, 1.0)[0])


def test_looks_leave_weights_buffers_and_random_state():
    trainee = _followed([KFAC, FOOF, "sgd"], KFAC, progress=True, progress_lr="search", every=1)
    trainee.warm_up()
    x, y = next(trainee.batches())
    trainee.backward(x, y)
    state, kept = torch.get_rng_state(), [p.detach().clone() for p in trainee.model.parameters()]
    trainee.form_direction()
    assert trainee.looks.drain()[1]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, old) for p, old in zip(trainee.model.parameters(), kept, strict=True))


def _errors(trainee, count=4):
    _step(trainee, count)
    return pd.DataFrame(trainee.looks.drain()[2])


@pytest.mark.parametrize("fisher", ["empirical", "sampled", "full"])
def test_ekfac_is_never_worse_than_kfac_on_the_samples_it_was_measured_on(fisher):
    own = f"T=1,ema=0,order=same,fisher={fisher}"
    rows = _errors(_followed([f"kfac:{own}", f"ekfac:{own}", "sgd"], "sgd", spectrum=["2", "4"], every=1))
    assert len(rows) == 4 * 2 * 2 and set(rows["updates_since_refresh"]) == {0}
    by_method = rows.pivot(index=["update", "layer"], columns="method", values="frobenius_error")
    assert (by_method["ekfac"] < by_method["kfac"]).all()
    assert (rows["spectrum_distance"] <= rows["frobenius_error"] + 1e-7).all()


def test_one_sample_and_the_exact_fisher_have_no_error():
    specs = ["ekfac:T=1,ema=0,order=same", "kfac:T=1,ema=0,order=same,fisher=empirical", "gn-cg", "sgd"]
    rows = _errors(_followed(specs, "sgd", spectrum=["2", "4"], every=1, batch_size=1), 2)
    assert set(rows["method"]) == {"ekfac", "kfac", "gn-cg"}
    assert rows["frobenius_error"].max() < 1e-6 and rows["spectrum_distance"].max() < 1e-6


def test_errors_are_of_the_refresh_in_force_and_its_age_is_known():
    """Order independent: what an update used, not what it left behind; K-FAC's factors stay those of the refresh."""
    trainee = _followed(["kfac:T=3,S=3,fisher=empirical", "sgd"], "sgd", spectrum=["4"], every=1)
    trainee.warm_up()
    method, factors, ages = trainee.panel.turns["kfac"].method, [], []
    for x, y in itertools.islice(trainee.batches(), 7):
        if trainee.step % 3 == 0:
            factors.append((method.B.means["4"].clone(), method.A.means["4"].clone()))
        module, model = trainee.panel.layers["4"].module, trainee.model
        leaf = model(x).detach().requires_grad_()
        vectors = torch.autograd.grad(trainee.likelihood.loss(leaf, y).sum(), leaf)[0][None]
        F = dense.fisher_block(model, module, x, vectors)
        trainee.update(x, y)
        row = trainee.looks.drain()[2][0]
        D = torch.kron(*factors[-1])
        assert row["frobenius_error"] == pytest.approx(((F - D).norm() / F.norm()).item(), rel=1e-10)
        ages.append(row["updates_since_refresh"])
    assert ages == [0, 1, 2, 0, 1, 2, 0]


def test_age_in_order_same_and_with_points_of_its_own():
    specs = ["ekfac:T=3", "natural:T=2,fisher_data=5", "sgd"]
    rows = _errors(_followed(specs, "sgd", spectrum=["4"], every=1), 6).groupby("method")["updates_since_refresh"]
    ages = rows.apply(list).to_dict()
    # Order same refreshes in the last update of a period, and uses it there; the warm-up's is used before.
    assert ages == {"ekfac": [0, 1, 0, 1, 2, 0], "natural": [0, 1, 0, 1, 0, 1]}


def test_records(tmp_path):
    summary, folder = _run(
        tmp_path, [KFAC, FOOF, "sgd"], KFAC, updates=12, seeds=2, every=5, progress=True, spectrum=["4"], metric="both"
    )
    tables = {name: pd.read_csv(folder / f"{name}.csv") for name in ("similarity", "progress", "spectrum")}
    assert tuple(tables["similarity"].columns) == SIMILARITY_COLUMNS
    assert tuple(tables["progress"].columns) == PROGRESS_COLUMNS
    assert tuple(tables["spectrum"].columns) == SPECTRUM_COLUMNS
    assert set(tables["similarity"]["update"]) == {0, 5, 10}
    assert len(tables["similarity"]) == 2 * 3 * 2 * 3 * 3  # seeds, looks, metrics, pairs, layers and the network
    assert len(tables["progress"]) == 2 * 3 * 3 * 2 and len(tables["spectrum"]) == 2 * 3
    assert json.loads((folder / "summary.json").read_text())["cosines"] == summary["cosines"]
    own = tables["similarity"]
    for entry in summary["cosines"]:
        same = (own[list(entry)[:5]].astype(str) == pd.Series({k: str(entry[k]) for k in list(entry)[:5]})).all(axis=1)
        assert entry["mean"] == pytest.approx(own[same]["cosine"].mean()) and entry["looks"] == 3
        assert entry["last"] == own[same]["cosine"].iloc[-1]
    assert {p.name for p in (folder / "seed-1").iterdir()} == {"updates.csv", "epochs.csv", "summary.json"}
    config = load_config(folder / "config.yaml", command="similarity")
    assert config.similarity.follow == summary["follow"] == "kfac"


def test_against_leaves_only_pairs_with_it(tmp_path):
    summary, _ = _run(tmp_path, [KFAC, FOOF, "sgd"], KFAC, updates=3, against="sgd")
    pairs = {(e["method_a"], e["method_b"]) for e in summary["cosines"]}
    assert pairs == {("kfac", "sgd"), ("foof", "sgd")}


def test_a_trajectory_that_diverges_keeps_its_records(tmp_path):
    summary, folder = _run(tmp_path, ["sgd:lr=1e38", FOOF], "sgd:lr=1e38", updates=10, every=1, seeds=2)
    assert summary["status"] == "diverged" and len(summary["runs"]) == 2
    table = pd.read_csv(folder / "similarity.csv")
    assert len(table) and set(table["seed"]) == {0, 1} and table["update"].max() < 9


def test_a_method_that_fails_when_asked_is_named(tmp_path):
    summary, folder = _run(tmp_path, ["sgd", "tests.similarity.test_run:Refuses:T=2"], "sgd", updates=4)
    assert summary["status"] == "failed" and "Refuses, which is only asked, failed" in summary["runs"][0]["reason"]
    assert len(pd.read_csv(folder / "similarity.csv"))


class Refuses:
    """Its second refresh fails."""

    fisher, orders, count = "none", ("independent",), 0

    def observe(self, statistics):
        pass

    def refresh(self, damping):
        self.count += 1
        if self.count == 2:
            raise FloatingPointError("no such luck")

    def apply(self, gradients):
        return {name: G.dense() for name, G in gradients.items()}

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    ("specs", "flags", "sentence"),
    [
        ([KFAC, "sgd"], {"spectrum": ["no"]}, "no such layer is captured; there are 2, 4"),
        ([FOOF, "sgd"], {"spectrum": ["4"]}, "such as kfac, ekfac, natural, gn-cg, got foof, sgd"),
        (
            ["gn-cg", "sgd"],
            {"spectrum": ["4"], "train_samples": 500, "batch_size": 500, "warmup_batches": None},
            "takes 0.2 GB; at most 4000 rows",
        ),
        (
            ["natural:fisher=full,fisher_data=401", "sgd"],
            {"spectrum": ["4"], "train_samples": 500, "warmup_batches": None},
            "the Fisher has 4010 rows",
        ),
    ],
)
def test_what_does_not_fit_fails_before_anything_is_written(tmp_path, specs, flags, sentence):
    with pytest.raises(UsageError, match=sentence):
        _run(tmp_path, specs, specs[0], **flags)
    assert not list((tmp_path / "similarity").iterdir())


def test_default_looks_share_no_factor_with_any_period():
    assert default_every(5000, [100, 50]) == 101
    assert default_every(30, [10]) == 1
    assert default_every(300, [7, 5]) == 6
