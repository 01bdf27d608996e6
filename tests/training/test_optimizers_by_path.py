"""Optimizers of others by import path: with closures, with modes of their own, of other packages."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.compare.comparison import summarise
from kfbench.compare.gathering import gather
from kfbench.training.tables import summary_rows
from kfbench.updates.batches import training_batches
from kfbench.updates.build import build_data, build_network
from kfbench.updates.trainee import Trainee

CPU = torch.device("cpu")
LBFGS = "torch.optim:LBFGS:lr=0.5,max_iter=4,history_size=3"


def _by_hand(config, updates):
    """The same in torch's own loop: (losses before each step, closure calls of each, model)."""
    data = build_data(config, CPU)
    model = build_network(config.problem, config.run, data, CPU, seed=0)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4, history_size=3)
    batches, losses, calls = training_batches(data, config.run.batch_size, 0), [], []
    for _ in range(updates):
        x, y = next(batches)
        calls.append(0)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = cross_entropy(model(x), y)
            loss.backward()
            calls[-1] += 1
            return loss

        losses.append(float(optimizer.step(closure).detach()))
    return losses, calls, model


def test_lbfgs_is_that_of_a_torch_loop(runs):
    summary, folder = runs.train(LBFGS, updates=6, dtype="float64")
    losses, calls, model = _by_hand(runs.config(LBFGS, updates=6, dtype="float64"), 6)
    table = pd.read_csv(folder / "seed-0" / "updates.csv")
    assert list(table["loss"]) == pytest.approx(losses, rel=1e-12)
    assert list(table["closure_calls"]) == calls and max(calls) > 1
    trained = torch.load(folder / "seed-0" / "checkpoint.pt", weights_only=True)["trainee"]["model"]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained[name], value, rtol=1e-9, atol=1e-12)
    run = summary["runs"][0]
    assert (run["closure_calls"], run["closure_calls_per_update"]) == (sum(calls), pytest.approx(sum(calls) / 6))
    assert summary_rows(summary)[0]["closure calls/update"] == f"{sum(calls) / 6:.4g}"
    note = f"an update of torch.optim.LBFGS evaluates loss and gradient {sum(calls) / 6:.3g} times"
    assert any(note in said for said in summarise(gather([folder]))["notes"])


def test_micro_batches_are_evaluated_as_one_batch(runs):
    tables = []
    for size in (None, 7):
        _, folder = runs.train(LBFGS, updates=4, dtype="float64", micro_batch_size=size)
        tables.append(pd.read_csv(folder / "seed-0" / "updates.csv"))
    assert list(tables[0]["loss"]) == pytest.approx(list(tables[1]["loss"]), rel=1e-9)
    assert list(tables[0]["closure_calls"]) == list(tables[1]["closure_calls"])


def noisy_model(input_shape, outputs):
    """Dropout, and buffers that forwards change."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, outputs))


class Asks(torch.optim.SGD):
    """Evaluates its batch ``times`` times, and steps along the last gradient."""

    losses: list[list[float]]

    def __init__(self, params, lr=0.1, times=3):
        super().__init__(params, lr=lr)
        self.times, self.losses = times, []

    def step(self, closure):
        """Takes the same gradient again and again."""
        self.losses.append([float(closure().detach()) for _ in range(self.times)])
        super().step()


def test_evaluations_meet_the_same_masks_and_leave_one_trace_of_a_forward(runs):
    """However often a batch is evaluated: its loss, later masks and the averages of batch norm are the same."""
    models = []
    for times in (1, 3):
        spec, model = f"{__name__}:Asks:times={times}", f"{__name__}:noisy_model"
        config = runs.config(spec, updates=5, model=model, width=None)
        trainee = Trainee(config, build_data(config, CPU), 0, CPU)
        batches = trainee.batches()
        torch.manual_seed(1)
        for _ in range(5):
            trainee.update(*next(batches))
        assert all(len(set(losses)) == 1 for losses in trainee.optimizer.losses)
        assert len({losses[0] for losses in trainee.optimizer.losses}) == 5
        models.append(trainee.model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert float(models[0]["2.num_batches_tracked"]) == 5


class NeverAsks(torch.optim.SGD):
    """Takes a closure, and leaves it."""

    def step(self, closure):
        """Nothing."""


def test_a_closure_that_is_never_called_is_said(runs):
    summary, _ = runs.train(f"{__name__}:NeverAsks:lr=0.1", updates=3)
    assert summary["status"] == "failed"
    assert "NeverAsks never called the closure that its step takes" in summary["runs"][0]["reason"]


def test_lbfgs_that_diverges_is_recorded(runs):
    summary, _ = runs.train("torch.optim:LBFGS:lr=1e30", updates=10)
    assert summary["status"] == "diverged"


def test_lbfgs_follows_a_learning_rate_schedule(runs):
    spec = "torch.optim:LBFGS:lr=0.4,max_iter=2,lr_schedule=linear-warmup-cosine,warmup_updates=2"
    _, folder = runs.train(spec, updates=4)
    lr = pd.read_csv(folder / "seed-0" / "updates.csv")["lr"]
    assert list(lr) == pytest.approx([0.2, 0.4, 0.4, 0.2])


def _schedule_free_by_hand(config, updates):
    schedulefree = pytest.importorskip("schedulefree")
    data = build_data(config, CPU)
    model = build_network(config.problem, config.run, data, CPU, seed=0)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.01, warmup_steps=3)
    batches = training_batches(data, config.run.batch_size, 0)
    optimizer.train()
    for _ in range(updates):
        x, y = next(batches)
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    optimizer.eval()
    k = config.problem.eval_samples
    with torch.no_grad():
        loss = cross_entropy(model(data.train_inputs[:k]), data.train_targets[:k])
    return float(loss), model.state_dict()


def test_schedule_free_is_judged_and_kept_at_its_own_weights(runs):
    """Against its package's own loop: evaluated at the average x, where the model that is kept is too."""
    spec = "schedulefree:AdamWScheduleFree:lr=0.01,warmup_steps=3"
    pytest.importorskip("schedulefree")
    summary, folder = runs.train(spec, updates=12, dtype="float64")
    loss, weights = _schedule_free_by_hand(runs.config(spec, updates=12, dtype="float64"), 12)
    assert summary["mean"]["final_train_loss"] == pytest.approx(loss, rel=1e-9)
    kept = torch.load(folder / "seed-0" / "checkpoint.pt", weights_only=True)["trainee"]["model"]
    for name, value in weights.items():
        torch.testing.assert_close(kept[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("name", "lr"), [("SOAP", 0.003), ("Shampoo", 0.003)])
def test_soap_and_shampoo_of_another_package_run(runs, name, lr):
    pytest.importorskip("pytorch_optimizer")
    summary, folder = runs.train(f"pytorch_optimizer:{name}:lr={lr}", updates=30)
    losses = pd.read_csv(folder / "seed-0" / "epochs.csv")["train_loss"]
    assert summary["status"] == "done", summary["runs"][0]["reason"]
    assert losses.iloc[-1] < losses.iloc[0]
