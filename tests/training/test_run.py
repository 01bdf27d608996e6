"""`train`: what is recorded is what happened, and the same again with the same seed."""

import json
import math
import signal
import warnings

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.errors import UsageError
from kfbench.training.observer import Observer
from kfbench.training.run import train
from kfbench.updates.batches import stream_seed, training_batches
from kfbench.updates.build import build_data, build_network
from kfbench.updates.trainee import Trainee
from tests.runs import epochs, updates

SPECS = ["sgd", "adam", "adamw", "foof:T=3,S=2", "kfac:T=3", "kfac:T=2,damping_kind=standard", "kfac:ema=0,fisher=full"]
SPECS += ["kfac-tridiagonal:T=3,S=2"]
SPECS += ["ekfac:T=6", "ekfac:T=6,S=4,fisher=sampled,order=independent", "ekfac-ra:T=6,S=2"]
SPECS += ["kflr:T=3", "kflr:T=2,fisher_columns=2", "kfra:T=3"]
SPECS += ["foof-kfac-damping:T=3", "foof-centred:T=3,S=2", "foof-per-sample"]
SPECS += ["natural:T=3,lr=0.05,damping=1,fisher_data=30"]
SPECS += ["shampoo:T=3", "shampoo:T=2,graft=adam,sides=right,accumulate=sum", "soap:T=3", "muon"]
SPECS += ["natural:T=2,lr=0.1,damping=1,order=same,fisher=full,block_diagonal=true"]
SPECS += ["gn-cg:T=2,momentum=0.5,nesterov=true,lr=0.03"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("spec", ["sgd", "kfac:T=3"])
def test_same_seed_gives_bit_identical_losses(runs, spec):
    """Of every other method a run and an interrupted one are compared below."""
    first, second = (runs.train(spec, epochs=3, seeds=2)[1] for _ in range(2))
    for seed in (0, 1):
        pd.testing.assert_frame_equal(updates(first, seed), updates(second, seed))
        pd.testing.assert_frame_equal(epochs(first, seed), epochs(second, seed))
    assert not updates(first, 0)["loss"].equals(updates(first, 1)["loss"])


@pytest.mark.parametrize("spec", SPECS)
def test_every_method_trains(runs, spec):
    summary, _ = runs.train(spec, epochs=8)
    assert summary["status"] == "done"
    run = summary["runs"][0]
    first = runs.train(spec, updates=1)[0]["runs"][0]
    assert run["final_train_loss"] < 0.9 * first["final_train_loss"]


def test_sgd_is_a_plain_torch_loop(runs):
    """The same batches through torch alone give the same losses, bit for bit."""
    config = runs.config("sgd:lr=0.02", epochs=2, seed=5)
    _, folder = runs.train("sgd:lr=0.02", epochs=2, seed=5)
    data = build_data(config, CPU)
    model = build_network(config.problem, config.run, data, CPU, seed=5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    losses, batches = [], training_batches(data, 20, seed=5)
    for _ in range(10):
        x, y = next(batches)
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y, reduction="none").sum() / len(x)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert updates(folder, 5)["loss"].astype(float).tolist() == losses


def test_adamw_is_torchs(runs):
    """Our decoupled decay before an Adam step is torch's AdamW."""
    ours, _ = runs.train("adamw:lr=0.01,weight_decay=0.1", epochs=3, dtype="float64")
    torchs, _ = runs.train("torch.optim:AdamW:lr=0.01,weight_decay=0.1", epochs=3, dtype="float64")
    assert ours["runs"][0]["final_train_loss"] == pytest.approx(torchs["runs"][0]["final_train_loss"], rel=1e-10)


@pytest.mark.parametrize(
    "spec", ["sgd", "foof:T=3", "kfac:T=3,fisher=empirical", "kfac:T=2,fisher=full", "foof-per-sample"]
)
def test_micro_batches_change_nothing_but_rounding(runs, spec):
    whole, _ = runs.train(spec, epochs=3, dtype="float64")
    parts, _ = runs.train(spec, epochs=3, dtype="float64", micro_batch_size=7)
    assert parts["runs"][0]["final_train_loss"] == pytest.approx(whole["runs"][0]["final_train_loss"], rel=1e-9)


def test_records_of_a_ragged_run(runs):
    """90 samples in batches of 20: 5 updates an epoch; 12 updates end within the third."""
    summary, folder = runs.train("foof:T=4", updates=12)
    table = pd.read_csv(folder / "seed-0" / "updates.csv")
    assert table["update"].tolist() == list(range(12))
    assert table["epoch"].tolist() == [0] * 5 + [1] * 5 + [2] * 2
    assert table["samples"].tolist() == [0, 20, 40, 60, 80, 90, 110, 130, 150, 170, 180, 200]
    assert table["seconds_updates"].notna().tolist() == [u in (4, 9, 11) for u in range(12)]
    ends = pd.read_csv(folder / "seed-0" / "epochs.csv")
    assert ends["update"].tolist() == [0, 5, 10, 12]
    assert ends["seconds_updates"].is_monotonic_increasing
    run = summary["runs"][0]
    assert run["final_train_loss"] == ends["train_loss"].iloc[-1]
    assert run["best_train_loss"] == ends["train_loss"].min()
    assert run["seconds_per_update"] == pytest.approx(run["seconds_updates"] / 12)
    assert json.loads((folder / "summary.json").read_text())["runs"][0]["updates"] == 12
    assert {p.name for p in (folder / "seed-0").iterdir()} == {
        "updates.csv",
        "epochs.csv",
        "summary.json",
        "checkpoint.pt",
    }


def test_an_epoch_uses_every_sample_once(runs):
    data = build_data(runs.config("sgd"), CPU)
    marked = data.train_targets.clone()
    torch.arange(len(marked), out=marked)
    data = type(data)(data.train_inputs, marked, data.test_inputs, data.test_targets, data.outputs)
    batches = training_batches(data, 20, seed=1)
    first, second = (torch.cat([next(batches)[1] for _ in range(5)]) for _ in range(2))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(90))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("start", [0, 3, 5, 9])
def test_batches_can_begin_at_any_update(runs, start):
    data = build_data(runs.config("sgd"), CPU)
    whole, cut = training_batches(data, 20, seed=1), training_batches(data, 20, seed=1, first_update=start)
    for _ in range(start):
        next(whole)
    for _ in range(7):
        assert torch.equal(next(whole)[0], next(cut)[0])


def test_streams_of_random_numbers_have_different_seeds():
    seeds = [stream_seed(s, stream, i) for s in range(20) for stream in (1, 2, 3) for i in range(20)]
    assert len(set(seeds)) == len(seeds)


def test_target_loss_is_recorded_and_does_not_stop(runs):
    summary, folder = runs.train("foof:T=3", epochs=8, target_loss=1.0)
    run, table = summary["runs"][0], pd.read_csv(folder / "seed-0" / "epochs.csv")
    reached = table[table["train_loss"] <= 1.0]
    assert run["updates"] == 40
    assert run["target_update"] == reached["update"].iloc[0] < 40
    assert run["target_seconds_updates"] == pytest.approx(reached["seconds_updates"].iloc[0])
    missed = runs.train("foof:T=3", epochs=1, target_loss=1e-9)[0]["runs"][0]
    assert missed["target_update"] is None


@pytest.mark.parametrize("schedule", ["step", "cosine", "exp"])
def test_learning_rate_schedule_is_recorded(runs, schedule):
    _, folder = runs.train(f"foof:lr=0.2,lr_schedule={schedule},T=3", updates=8)
    lr = pd.read_csv(folder / "seed-0" / "updates.csv")["lr"]
    assert lr.iloc[0] == 0.2
    assert lr.is_monotonic_decreasing
    assert lr.iloc[-1] < 0.1


def test_a_warm_up_is_recorded_update_by_update(runs):
    spec = "foof:lr=0.2,lr_schedule=linear-warmup-cosine,warmup_updates=4,T=3"
    _, folder = runs.train(spec, updates=8)
    lr = pd.read_csv(folder / "seed-0" / "updates.csv")["lr"]
    cosine = [0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4)]
    assert list(lr) == pytest.approx([0.2 * factor for factor in (0.25, 0.5, 0.75, 1.0, *cosine)])
    with pytest.raises(UsageError, match="warmup_updates is 4, not below the 4 updates of the run"):
        runs.train(spec, updates=4)


def test_weight_decay_is_decoupled_from_the_direction(runs):
    """p <- (1 - lr wd) p - lr direction: after one update the difference is lr wd p_0 exactly."""
    finals = {}
    for wd in (0.0, 0.5):
        _, folder = runs.train(f"foof:lr=0.1,weight_decay={wd}", updates=1, dtype="float64")
        finals[wd] = torch.load(folder / "seed-0" / "checkpoint.pt", weights_only=True)["trainee"]["model"]
    config = runs.config("foof", dtype="float64")
    start = build_network(config.problem, config.run, build_data(config, CPU), CPU, seed=0).state_dict()
    for name, p in start.items():
        torch.testing.assert_close(finals[0.0][name] - finals[0.5][name], 0.1 * 0.5 * p, rtol=1e-9, atol=1e-12)


def test_divergence_is_recorded_and_other_seeds_go_on(runs):
    summary, folder = runs.train("sgd:lr=1e5", epochs=3, seeds=2)
    assert summary["status"] == "diverged"
    assert [run["status"] for run in summary["runs"]] == ["diverged", "diverged"]
    for seed in (0, 1):
        losses = pd.read_csv(folder / f"seed-{seed}" / "updates.csv")["loss"]
        assert not math.isfinite(losses.iloc[-1])
        assert losses.iloc[:-1].map(math.isfinite).all()
    assert summary["runs"][0]["final_train_loss"] == math.inf
    assert json.loads((folder / "seed-0" / "summary.json").read_text())["final_train_loss"] == "inf"


def test_fewer_than_two_refreshes_warns(runs):
    with pytest.warns(UserWarning, match="fewer than two refreshes"):
        runs.train("foof:T=10", updates=12)


def _signal_in_update(monkeypatch, update, number):
    """This process gets a signal while that update is computed."""
    plain = Trainee.update

    def interrupted(self, *batch):
        if self.step == update:
            signal.raise_signal(number)
        return plain(self, *batch)

    monkeypatch.setattr(Trainee, "update", interrupted)


@pytest.mark.parametrize(
    ("spec", "number"), [*((spec, signal.SIGINT) for spec in SPECS), ("foof:T=3,S=2", signal.SIGTERM)]
)
def test_interrupted_run_continues_bit_for_bit(runs, spec, number, monkeypatch):
    _, whole = runs.train(spec, epochs=4, seeds=2)
    with monkeypatch.context() as patched:
        _signal_in_update(patched, 6 if number == signal.SIGINT else 9, number)
        summary, folder = runs.train(spec, epochs=4, seeds=2)
    assert summary["status"] == "interrupted"
    assert summary["runs"][0]["updates"] == (7 if number == signal.SIGINT else 10)
    again, _ = runs.train(spec, folder, resume=True, epochs=4, seeds=2)
    assert again["status"] == "done"
    for seed in (0, 1):
        pd.testing.assert_frame_equal(updates(folder, seed), updates(whole, seed))
        pd.testing.assert_frame_equal(epochs(folder, seed), epochs(whole, seed))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_finished_run_is_not_run_again(runs):
    _, folder = runs.train("sgd", epochs=1)
    before = (folder / "seed-0" / "updates.csv").stat().st_mtime_ns
    summary, _ = runs.train("sgd", folder, resume=True, epochs=1, seeds=2)
    assert (folder / "seed-0" / "updates.csv").stat().st_mtime_ns == before
    assert [run["seed"] for run in summary["runs"]] == [0, 1]


def test_interruption_between_seeds_is_an_interruption(runs, monkeypatch):
    """Seeds that never began are missing: the run is not done, and goes on where it stopped."""
    with monkeypatch.context() as patched:
        _signal_in_update(patched, 4, signal.SIGINT)
        summary, folder = runs.train("sgd", epochs=1, seeds=3)
    assert summary["status"] == "interrupted"
    assert [run["status"] for run in summary["runs"]] == ["done"]
    again, _ = runs.train("sgd", folder, resume=True, epochs=1, seeds=3)
    assert again["status"] == "done"
    assert [run["seed"] for run in again["runs"]] == [0, 1, 2]


@pytest.mark.parametrize(("spec", "more"), [("adam", {}), ("foof:T=3", {"epochs": 2}), ("foof:T=4", {})])
def test_finished_run_of_another_configuration_is_not_continued(runs, spec, more):
    _, folder = runs.train("foof:T=3", epochs=1)
    before = (folder / "config.yaml").read_text()
    with pytest.raises(UsageError, match="another configuration; differing: "):
        runs.train(spec, folder, resume=True, **({"epochs": 1} | more))
    assert (folder / "config.yaml").read_text() == before


def test_first_row_that_is_not_finite_is_there_even_if_the_step_fails(runs):
    """With T = 1 the refresh of the very update raises; its loss was measured before."""
    _, folder = runs.train("foof:T=1,lr=1e20", epochs=2)
    losses = pd.read_csv(folder / "seed-0" / "updates.csv")["loss"]
    assert not math.isfinite(losses.iloc[-1])
    assert losses.iloc[:-1].map(math.isfinite).all()


def test_blow_up_in_the_last_update_is_a_divergence(runs):
    summary, _ = runs.train("sgd:lr=1e30", updates=1)
    assert summary["status"] == "diverged"
    assert summary["runs"][0]["final_train_loss"] == math.inf


class Failing(nn.Module):
    """Fails in its fourth training forward."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        self.flatten, self.layer, self.calls = nn.Flatten(), nn.Linear(math.prod(input_shape), outputs), 0

    def forward(self, x):
        self.calls += self.training
        if self.calls > 3:
            raise KeyError
        return self.layer(self.flatten(x))


def test_failing_model_is_a_status_and_other_seeds_go_on(runs):
    more = {"model": f"{__name__}:Failing", "width": None, "seeds": 2}
    for spec, updates_done in (("sgd", 3), ("foof:T=2", 0)):
        summary, folder = runs.train(spec, epochs=1, **more)
        assert summary["status"] == "failed"
        assert [run["reason"] for run in summary["runs"]] == ["KeyError", "KeyError"]
        assert [run["updates"] for run in summary["runs"]] == [updates_done] * 2
        assert len(updates(folder)) == updates_done


class Frozen(nn.Module):
    """A frozen layer, and a BatchNorm that its author put into evaluation mode."""

    def __init__(self, input_shape, outputs):
        super().__init__()
        d = math.prod(input_shape)
        self.flatten, self.norm, self.frozen = nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(d, 8)
        self.frozen.requires_grad_(False)
        self.last = nn.Linear(8, outputs)
        self.norm.eval()

    def forward(self, x):
        return self.last(self.norm(self.frozen(self.flatten(x))))


def test_frozen_parameters_and_modes_stay_as_the_author_set_them(runs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = runs.config("foof:weight_decay=1,lr=0.1,T=2", model=f"{__name__}:Frozen", width=None)
        data = build_data(config, CPU)
        trainee = Trainee(config, data, 0, CPU)
        before = trainee.model.frozen.weight.clone()
        trainee.warm_up()
        for _, (x, y) in zip(range(3), trainee.batches(), strict=False):
            trainee.update(x, y)
        trainee.evaluate()
    assert torch.equal(trainee.model.frozen.weight, before)
    assert trainee.model.training
    assert not trainee.model.norm.training


class NoLearningRate(torch.optim.Optimizer):
    """Steps without an lr."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=0.01)


def test_optimizer_without_learning_rate_leaves_its_cells_empty(runs):
    _, folder = runs.train(f"{__name__}:NoLearningRate", epochs=1)
    assert updates(folder)["lr"].isna().all()
    with pytest.raises(UsageError, match="has no learning rate"):
        runs.train(f"{__name__}:NoLearningRate:lr_schedule=cosine", epochs=1)


def test_ours_can_be_named_by_path(runs):
    by_name, _ = runs.train("kfac:T=3,lr=0.01,damping=0.1", epochs=1)
    by_path, _ = runs.train("kfbench.preconditioners.kfac:KFAC:T=3,lr=0.01,damping=0.1", epochs=1, warmup_batches=3)
    assert by_path["runs"][0]["final_train_loss"] == by_name["runs"][0]["final_train_loss"]


def test_seed_that_has_left_for_good_is_stopped(runs):
    spec = "tests.sweep.faulty:Ascending:lr=1.0"
    summary, folder = runs.train(spec, updates=400, divergence_factor=3)
    (run,) = summary["runs"]
    assert run["status"] == "diverged" and run["final_train_loss"] == math.inf
    assert 50 <= run["updates"] < 400 and "of the 50 updates before" in run["reason"]
    assert "more than 3 times that of the untrained network" in run["reason"]
    assert len(updates(folder)) == run["updates"]


@pytest.mark.parametrize("full_batch", [False, True])
def test_one_terrible_update_stops_nobody(runs, full_batch):
    """Nor where an update is an epoch, after which the run is looked at: it may end lower than any other."""
    spec = "tests.sweep.faulty:Spiking:lr=0.01"
    batch = {"train_samples": 100, "batch_size": 100} if full_batch else {}
    summary, folder = runs.train(spec, updates=40, divergence_factor=3, **batch)
    losses = updates(folder)["loss"].astype(float)
    assert losses.max() > 30 * losses[0] and summary["status"] == "done"


def test_of_full_batches_twenty_updates_tell(runs):
    spec = "tests.sweep.faulty:Ascending:lr=30.0"
    summary, _ = runs.train(spec, updates=60, divergence_factor=3, train_samples=100, batch_size=100)
    (run,) = summary["runs"]
    assert run["status"] == "diverged" and run["updates"] == 20 and "of the 20 updates before" in run["reason"]


def test_a_short_run_is_never_stopped_by_its_median(runs):
    summary, folder = runs.train("tests.sweep.faulty:Ascending:lr=30.0", updates=49, divergence_factor=3)
    losses = updates(folder)["loss"].astype(float)
    assert losses.median() > 3 * losses[0] and summary["status"] == "done"


@pytest.mark.parametrize("full_batch", [False, True])
def test_a_continued_run_is_stopped_where_the_whole_one_is(runs, monkeypatch, full_batch):
    """What it is judged by goes with the checkpoint, and interruptions move no look."""
    spec, options = "tests.sweep.faulty:Ascending:lr=1.0", {"updates": 400, "divergence_factor": 3}
    options |= {"train_samples": 100, "batch_size": 100} if full_batch else {}
    (whole,) = runs.train(spec, **options)[0]["runs"]
    with monkeypatch.context() as patched:
        _signal_in_update(patched, whole["updates"] - 8, signal.SIGINT)
        interrupted, folder = runs.train(spec, **options)
    assert interrupted["status"] == "interrupted"
    (again,) = runs.train(spec, folder, resume=True, **options)[0]["runs"]
    assert (again["updates"], again["reason"]) == (whole["updates"], whole["reason"])


def test_no_weights_are_kept_where_only_records_are_wanted(runs):
    config = runs.config("foof", updates=6)
    folder = runs.path / "records"
    folder.mkdir()
    summary = train(config, folder, Observer(), keep_weights=False)
    assert summary["status"] == "done" and not list(folder.rglob("checkpoint*"))
    again = train(config, folder, Observer(), resume=True, keep_weights=False)
    assert again == summary
