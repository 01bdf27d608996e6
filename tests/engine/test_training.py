"""`train`: what is recorded is what happened, and the same again with the same seed."""

import json
import math
import signal

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from kfbench.engine.batches import stream_seed, training_batches
from kfbench.engine.build import build_data, build_network
from kfbench.engine.trainee import Trainee
from tests.engine.conftest import epochs, updates

SPECS = ["sgd", "adam", "adamw", "foof:T=3,S=2", "kfac:T=3", "kfac:T=2,damping_kind=standard", "kfac:ema=0,fisher=full"]
CPU = torch.device("cpu")


@pytest.mark.parametrize("spec", SPECS)
def test_same_seed_gives_bit_identical_losses(runs, spec):
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


@pytest.mark.parametrize("spec", ["sgd", "foof:T=3", "kfac:T=3,fisher=empirical", "kfac:T=2,fisher=full"])
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

    def interrupted(self, x, y):
        if self.step == update:
            signal.raise_signal(number)
        return plain(self, x, y)

    monkeypatch.setattr(Trainee, "update", interrupted)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("spec", SPECS)
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
