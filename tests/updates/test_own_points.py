"""Points of a method's own: which, when, at which weights - and that nothing else notices them."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.errors import UsageError
from kfbench.preconditioners.natural import NaturalGradient
from kfbench.updates.batches import fisher_batches, training_batches
from kfbench.updates.build import build_data
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.schedule import Amortisation
from kfbench.updates.trainee import Trainee
from tests.properties import equal
from tests.runs import epochs, updates

CPU = torch.device("cpu")


def _trainee(runs, spec, **flags):
    config = runs.config(spec, **flags)
    return Trainee(config, build_data(config, CPU), config.run.seed, CPU)


class Dropping(nn.Module):
    """Dropout and BatchNorm: an extra forward would move random numbers and running averages."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        d = input_shape[1] * input_shape[2]
        self.first, self.norm, self.last = nn.Linear(d, 8), nn.BatchNorm1d(8), nn.Linear(8, outputs)

    def forward(self, x):
        return self.last(nn.functional.dropout(self.norm(self.first(x.flatten(1))), 0.5, self.training))


def test_training_goes_on_as_if_there_were_no_points_of_its_own(runs):
    """Batches, dropout and BatchNorm are those of SGD: with a vanishing step both see the same losses, bit for bit."""
    flags = {"model": f"{__name__}:Dropping", "width": None, "epochs": 2}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _, plain = runs.train("sgd:lr=1e-30,momentum=0", **flags)
        _, ours = runs.train("natural:lr=1e-30,T=2,fisher_data=35", **flags)
    assert updates(plain)["loss"].tolist() == updates(ours)["loss"].tolist()
    assert epochs(plain)["train_loss"].tolist() == epochs(ours)["train_loss"].tolist()


def test_drawing_points_leaves_the_random_state_as_it_was():
    """A user's function may draw as it likes: dropout of the training forward goes on as if it had not."""
    torch.manual_seed(0)
    state = torch.get_rng_state()
    _run(NaturalGradient(), 1, fisher_batches=lambda refresh: [(torch.randn(7, 4).double(), torch.randint(2, (7,)))])
    with_randomness = torch.get_rng_state()
    torch.set_rng_state(state)
    _run(NaturalGradient(), 1, fisher_batches=_seven_points)
    assert torch.equal(with_randomness, torch.get_rng_state())


def test_points_are_drawn_apart_in_chunks_and_anew_at_every_refresh(runs):
    data = build_data(runs.config("sgd"), CPU)
    drawn = [list(fisher_batches(data, 50, 20, seed=3, refresh=r)) for r in (0, 1, 0)]
    assert [len(x) for x, _ in drawn[0]] == [20, 20, 10]
    points = [torch.cat([x for x, _ in batches]) for batches in drawn]
    assert torch.equal(points[0], points[2])
    assert not torch.equal(points[0], points[1])
    assert len(points[0].flatten(1).unique(dim=0)) == 50, "no point twice"
    assert not torch.equal(points[0][:20], next(training_batches(data, 20, seed=3))[0])
    x, y = drawn[0][0]
    for i in range(3):  # inputs keep their labels
        row = (data.train_inputs == x[i]).flatten(1).all(dim=1).nonzero()[0]
        assert data.train_targets[row] == y[i]
    whole = torch.cat([x for x, _ in fisher_batches(data, 90, 20, seed=3, refresh=5)])
    assert equal(whole.flatten(1).sum(1).sort().values, data.train_inputs.flatten(1).sum(1).sort().values)


class Recording(NaturalGradient):
    """Notes in which order it is called, and the size of what it observes."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen = []

    def observe(self, statistics):
        self.seen.append(next(iter(statistics.values())).inputs.shape[0])
        super().observe(statistics)

    def refresh(self, damping):
        self.seen.append("refresh")
        super().refresh(damping)

    def apply(self, gradients):
        self.seen.append("apply")
        return super().apply(gradients)


def _run(method, updates, T=3, **options):
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    pre = Preconditioning(model, method, damping=0.1, T=T, **options)
    for _ in range(updates):
        x, y = torch.randn(5, 4).double(), torch.randint(2, (5,))
        with pre.capture():
            output = model(x)
        pre.backward(cross_entropy(output, y, reduction="none"), output)
    return pre


def _seven_points(refresh):
    generator = torch.Generator().manual_seed(refresh)
    x = torch.randn(7, 4, generator=generator).double()
    return zip(x.split(4), torch.randint(2, (7,), generator=generator).split(4), strict=True)


def test_periods_begin_with_a_refresh_from_its_own_points():
    method = Recording()
    _run(method, 7, fisher_batches=_seven_points)
    period = [7, "refresh", "apply", "apply", "apply"]
    assert method.seen == [*period, *period, 7, "refresh", "apply"]


def test_in_order_same_it_observes_only_the_batch_it_refreshes_from():
    """S is 1 where only the newest batch counts; before the first refresh there is nothing to apply."""
    method = Recording()
    pre = _run(method, 6, order="same")
    period = ["apply", "apply", 5, "refresh", "apply"]
    assert method.seen == [5, "refresh", *period, *period]
    assert pre.turn.schedule == Amortisation(T=3, S=1)


def test_own_generator_of_labels_continues_bit_for_bit():
    runs = []
    for pause in (None, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
        make = {"damping": 0.1, "T": 2, "fisher_batches": _seven_points}
        pre = Preconditioning(model, "natural", **make)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for update in range(7):
            if update == pause:
                state = copy.deepcopy(pre.state_dict())
                pre = Preconditioning(model, "natural", seed=5, **make)
                pre.load_state_dict(state)
            x, y = torch.randn(5, 4).double(), torch.randint(2, (5,))
            with pre.capture():
                output = model(x)
            pre.backward(cross_entropy(output, y, reduction="none"), output)
            optimizer.step()
        runs.append([p.detach().clone() for p in model.parameters()])
    assert equal(*runs)


def test_missing_or_empty_source_of_points_is_one_sentence():
    with pytest.raises(ValueError, match="give fisher_batches, got None"):
        _run(NaturalGradient(), 1)
    with pytest.raises(ValueError, match="fisher_batches gave no batch at update 0"):
        _run(NaturalGradient(), 1, fisher_batches=lambda refresh: [])
    _run(NaturalGradient(), 1, order="same")


@pytest.mark.parametrize(
    ("spec", "flags", "sentence"),
    [
        ("natural:fisher_data=91", {}, "fisher_data is 91, above the 90 samples"),
        ("natural:fisher_data=21,order=same", {}, "fisher_data is 21, above the batch_size of 20"),
        ("natural:fisher=full,fisher_data=2000", {}, r"20000 rows, whose Gram matrix and factor take 6\.4 GB"),
        ("natural:fisher=full,fisher_data=1000", {"train_samples": None}, None),
        ("natural:damping=0", {}, "damping must be above 0 for the natural gradient, got 0"),
        ("gn-cg:damping=0", {}, "damping must be above 0 for Gauss-Newton, got 0"),
    ],
)
def test_what_cannot_be_is_refused_before_training(runs, spec, flags, sentence):
    if sentence is None:
        _trainee(runs, spec, **flags)
        return
    with pytest.raises(UsageError, match=sentence):
        _trainee(runs, spec, **flags)


def test_micro_batches_change_nothing_but_rounding(runs):
    flags = {"epochs": 2, "dtype": "float64"}
    whole, _ = runs.train("natural:T=3,fisher=full,lr=0.01", **flags)
    parts, _ = runs.train("natural:T=3,fisher=full,lr=0.01", micro_batch_size=7, **flags)
    assert parts["runs"][0]["final_train_loss"] == pytest.approx(whole["runs"][0]["final_train_loss"], rel=1e-9)


@pytest.mark.parametrize(("micro", "largest"), [(7, 7), (None, 20)])
def test_forwards_of_own_points_are_no_larger_than_those_of_training(runs, micro, largest):
    trainee = _trainee(runs, "natural:T=1,fisher_data=50", micro_batch_size=micro)
    sizes = []
    trainee.model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    trainee.update(*next(trainee.batches()))
    assert sum(sizes) == 20 + 50
    assert max(sizes) == largest


@pytest.mark.parametrize("spec", ["natural:T=1,fisher_data=10", "natural:T=1,order=same", "gn-cg"])
def test_batch_norm_is_warned_of_by_name_once(runs, spec):
    trainee = _trainee(runs, spec, model=f"{__name__}:Dropping", width=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _, (x, y) in zip(range(3), trainee.batches(), strict=False):
            trainee.update(x, y)
    mixing = [str(w.message) for w in caught if "normalise by the batch" in str(w.message)]
    assert len(mixing) == 1
    assert mixing[0].startswith("'norm' ")


def test_batch_norm_in_evaluation_mode_or_under_foof_is_not_warned_of(runs):
    for spec, evaluate in (("natural:T=1", True), ("foof:T=1", False)):
        trainee = _trainee(runs, spec, model=f"{__name__}:Dropping", width=None)
        trainee.model.norm.train(not evaluate)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainee.update(*next(trainee.batches()))
        assert not [w for w in caught if "normalise by the batch" in str(w.message)]


def test_layers_that_are_not_captured_keep_their_plain_gradient():
    """A LayerNorm's parameters are no part of the Fisher; what is captured is solved for without them."""
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2)).double()
    pre = Preconditioning(model, "natural", damping=0.1, T=1, order="same")
    x, y = torch.randn(5, 4).double(), torch.randint(2, (5,))
    with pytest.warns(UserWarning, match="not preconditioned, plain gradient instead: 1 "):
        with pre.capture():
            output = model(x)
        pre.backward(cross_entropy(output, y, reduction="none"), output)
    plain = torch.autograd.grad(cross_entropy(model(x), y), list(model[1].parameters()))
    for parameter, wanted in zip(model[1].parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, wanted)
    assert list(pre.method.newest.rows.layers) == ["0", "2"]
