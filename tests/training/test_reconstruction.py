"""Autoencoders: the likelihood reaches everything that trains and measures, and accuracy is missing everywhere."""

import json
import math
import signal

import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from kfbench.errors import UsageError
from kfbench.results.records import load
from kfbench.training.interruption import Interruption
from kfbench.training.plots import plot_losses
from kfbench.training.tables import summary_rows
from kfbench.updates.build import build_data
from kfbench.updates.trainee import Trainee
from kfbench.wallclock.memory_probe import probe_memory
from tests.properties import assert_close
from tests.runs import epochs, updates

CPU = torch.device("cpu")
GAUSSIAN, BERNOULLI = {"model": "autoencoder"}, {"model": "autoencoder-sigmoid"}
SPECS = [
    ("sgd:lr=0.001", GAUSSIAN),
    ("adam:lr=0.003", GAUSSIAN),
    ("foof:T=25,lr=0.01", GAUSSIAN),
    ("kfac:T=25", GAUSSIAN),
    ("kfac:T=25,fisher=empirical,lr=0.03,damping=1", GAUSSIAN),
    ("foof:T=3,clip_norm=1,clip_decay=0.1", GAUSSIAN),
    ("sgd:lr=0.01", BERNOULLI),
    ("foof:T=25,lr=0.1", BERNOULLI),
    ("kfac:T=3,lr=0.01,damping=1", BERNOULLI),
]


def _trainee(runs, spec, **flags):
    config = runs.config(spec, dtype="float64", **flags)
    return Trainee(config, build_data(config, CPU), 0, CPU)


@pytest.mark.parametrize(("spec", "problem"), SPECS)
def test_every_method_trains_an_autoencoder(runs, spec, problem):
    _, folder = runs.train(spec, epochs=10, **problem)
    losses = pd.read_csv(folder / "seed-0" / "epochs.csv")["train_loss"]
    assert losses.iloc[-1] < 0.95 * losses.iloc[0]


@pytest.mark.parametrize(("spec", "problem"), [SPECS[5], SPECS[8]])
def test_interrupted_run_continues_bit_for_bit(runs, spec, problem, monkeypatch):
    summary, whole = runs.train(spec, epochs=4, **problem)
    plain = Trainee.update

    def interrupted(self, *batch):
        if self.step == 7:
            signal.raise_signal(signal.SIGINT)
        return plain(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainee, "update", interrupted)
        _, folder = runs.train(spec, epochs=4, **problem)
    again, _ = runs.train(spec, folder, resume=True, epochs=4, **problem)
    pd.testing.assert_frame_equal(updates(folder), updates(whole))
    pd.testing.assert_frame_equal(epochs(folder), epochs(whole))
    assert again["runs"][0]["clipped_updates"] == summary["runs"][0]["clipped_updates"]


@pytest.mark.parametrize("problem", [GAUSSIAN, BERNOULLI], ids=lambda problem: problem["model"])
def test_accuracy_is_missing_everywhere(runs, problem):
    summary, folder = runs.train("foof:T=2,lr=0.01", epochs=1, seeds=2, **problem)
    table = epochs(folder)
    assert table["train_accuracy"].isna().all() and table["test_accuracy"].isna().all()
    assert table["train_loss"].notna().all() and table["test_loss"].notna().all()
    for found in (summary, json.loads((folder / "summary.json").read_text())):
        assert found["mean"]["test_accuracy"] is None and found["std"]["test_accuracy"] is None
        assert [run["test_accuracy"] for run in found["runs"]] == [None, None]
    assert [row["test accuracy"] for row in summary_rows(summary)] == [""] * 4
    plot_losses([load(folder)], folder / "loss.png")
    assert (folder / "loss.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("problem", "loss"),
    [
        (GAUSSIAN, lambda f, y: mse_loss(f, y, reduction="sum") / 2 / len(f)),
        (BERNOULLI, lambda f, y: binary_cross_entropy_with_logits(f, y, reduction="sum") / len(f)),
    ],
    ids=["gaussian", "bernoulli"],
)
def test_losses_are_those_of_the_inputs_themselves(runs, problem, loss):
    trainee = _trainee(runs, "foof:T=3", **problem)
    x, y = next(trainee.batches())
    assert torch.equal(y, x.flatten(1))
    k = 50  # eval_samples
    found = trainee.evaluate()
    for part, inputs in (("train", trainee.data.train_inputs[:k]), ("test", trainee.data.test_inputs[:k])):
        assert found[f"{part}_loss"] == pytest.approx(float(loss(trainee.model(inputs), inputs.flatten(1)).detach()))
    expected = float(loss(trainee.model(x), x.flatten(1)).detach())
    assert float(trainee.update(x, y)) == pytest.approx(expected)


def test_fisher_is_that_of_the_likelihood(runs):
    """The output factor of the last layer: the identity for Gaussian, the mean of diag(p (1 - p)) for Bernoulli."""
    for problem in (GAUSSIAN, BERNOULLI):
        trainee = _trainee(runs, "kfac:fisher=full,T=1,order=same,warmup_batches=0", **problem)
        x, y = next(trainee.batches())
        p = trainee.model(x).detach().sigmoid()
        wanted = torch.eye(784).double() if problem is GAUSSIAN else torch.diag((p * (1 - p)).mean(0))
        trainee.update(x, y)
        B = list(trainee.preconditioning.method.B.means.values())[-1]
        assert_close(B, wanted, 1e-12)


def test_pixels_are_normalised_as_the_papers_do(runs):
    """FOOF D.7: zero mean, unit variance; Bernoulli: from 0 to 1."""
    data = _trainee(runs, "sgd", train_samples=None, batch_size=20, **GAUSSIAN).data
    assert abs(float(data.train_inputs.mean())) < 1e-12 and float(data.train_inputs.std()) == pytest.approx(1)
    data = _trainee(runs, "sgd", **BERNOULLI).data
    assert float(data.train_inputs.min()) == 0 and float(data.train_inputs.max()) == 1


def test_memory_is_probed_of_the_same_problem(runs):
    config, cpu = runs.config("foof:T=3,lr=0.01", **GAUSSIAN), torch.device("cpu")
    # The process that measures loads the data by itself.
    found = probe_memory(config, build_data(config, cpu), [], cpu, Interruption())
    trainee = _trainee(runs, "foof:T=3", **GAUSSIAN)
    trainee.warm_up()
    assert found["peak_memory_bytes"] > 0
    assert found["state_memory_bytes"] == pytest.approx(trainee.state_memory_bytes() / 2, rel=0.1), "float64 here"


def own_autoencoder(input_shape, outputs, width):
    """A user's model: returns what it is asked for."""
    d = math.prod(input_shape)
    assert outputs == d
    return nn.Sequential(nn.Flatten(), nn.Linear(d, width), nn.ReLU(), nn.Linear(width, d))


def own_of_images(input_shape, outputs):
    """A user's model that returns images."""
    return nn.Sequential(nn.Flatten(), nn.Linear(outputs, outputs), nn.Unflatten(1, input_shape))


@pytest.mark.parametrize(("likelihood", "lr"), [("gaussian", 0.01), ("bernoulli", 0.03)])
@pytest.mark.parametrize("model", ["mlp", f"{__name__}:own_autoencoder"])
def test_other_models_reconstruct_where_the_likelihood_says_so(runs, model, likelihood, lr):
    summary, folder = runs.train(f"foof:T=20,lr={lr}", epochs=8, model=model, likelihood=likelihood)
    losses = pd.read_csv(folder / "seed-0" / "epochs.csv")["train_loss"]
    assert summary["status"] == "done" and losses.iloc[-1] < 0.9 * losses.iloc[0]
    assert f"likelihood: {likelihood}" in (folder / "config.yaml").read_text()


def test_outputs_of_another_shape_than_the_flattened_inputs_are_refused(runs):
    flags = {"model": f"{__name__}:own_of_images", "width": None, "likelihood": "gaussian"}
    with pytest.raises(UsageError, match=r"returns shape \[2, 1, 28, 28\], expected \[2, 784\], the inputs flattened"):
        runs.train("sgd", **flags)
