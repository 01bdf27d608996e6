"""A user's data set trains: classes, real targets, reconstruction; its content is part of what a run is."""

import json
import math
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from kfbench.compare.gathering import gather
from kfbench.config.identity import budget, trajectory
from kfbench.config.load import dump, load_config, undump
from kfbench.errors import UsageError
from kfbench.training.observer import Observer
from kfbench.training.run import train
from kfbench.updates.build import build_data

CPU = torch.device("cpu")
WEIGHTS = torch.tensor([[2.0, -1.0, 0.5]])


def table(targets="classes", scale=1.0, seed=0):
    """60 + 30 samples of 3 features."""
    x = torch.randn(90, 3, generator=torch.Generator().manual_seed(seed)) * scale
    real = x @ WEIGHTS.T
    y = {"classes": (real[:, 0] > 0).long(), "real": real, "one": real[:, 0], "none": None}[targets]
    cut = lambda t: (None, None) if t is None else (t[:60], t[60:])  # noqa: E731
    (x_train, x_test), (y_train, y_test) = cut(x), cut(y)
    return x_train, y_train, x_test, y_test


def classes():
    return table()


def real():
    return table("real")


def one():
    return table("one")


def unlabelled():
    return table("none")


def probabilities():
    return tuple(None if part is None else part.sigmoid() for part in table("none"))


def sequences():
    """Inputs of another shape: 7 steps of 3 features."""
    x = torch.randn(40, 7, 3, generator=torch.Generator().manual_seed(1))
    return x[:30], torch.arange(30) % 4, x[30:], torch.arange(10) % 4


calls = 0


def never_the_same():
    global calls
    calls += 1
    return table(seed=calls)


def _config(name, spec="sgd:lr=0.1", **flags):
    wanted = {"dataset": f"{__name__}:{name}", "model": "logistic", "batch_size": 20, "epochs": 5} | flags
    return load_config(specs=[spec], flags=wanted)


def _run(config, folder):
    folder.mkdir(exist_ok=True)
    return train(config, folder, Observer())


def test_nothing_is_done_to_the_numbers_unless_asked():
    data = build_data(_config("classes"), CPU)
    x, y, x_test, y_test = classes()
    assert torch.equal(data.train_inputs, x) and torch.equal(data.train_targets, y)
    assert torch.equal(data.test_inputs, x_test) and torch.equal(data.test_targets, y_test)
    assert data.outputs == 2 and data.input_shape == (3,)
    assert build_data(_config("classes", dtype="float64"), CPU).train_inputs.dtype == torch.float64


def test_own_normalisation_is_that_of_each_feature_of_the_training_samples():
    x, _, x_test, _ = classes()
    data = build_data(_config("classes", normalize="own"), CPU)
    torch.testing.assert_close(data.train_inputs, (x - x.mean(0)) / x.std(0))
    torch.testing.assert_close(data.test_inputs, (x_test - x.mean(0)) / x.std(0))
    assert torch.equal(classes()[0], x)  # the user's own are as they were
    steps = build_data(_config("sequences", normalize="own"), CPU).train_inputs
    torch.testing.assert_close(steps.mean((0, 2)), torch.zeros(7), atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["classes", "sequences"])
def test_classes_are_learnt(name, tmp_path):
    spec = "foof:T=5,warmup_batches=3,lr=0.3,damping=0.1"
    summary = _run(_config(name, spec, model="mlp", width=16), tmp_path / "run")
    assert summary["status"] == "done"
    epochs = pd.read_csv(tmp_path / "run" / "seed-0" / "epochs.csv")
    assert epochs["train_loss"].iloc[-1] < 0.7 * epochs["train_loss"].iloc[0]
    assert summary["mean"]["test_accuracy"] is not None


@pytest.mark.parametrize("name", ["real", "one"])
def test_regression_finds_the_weights_and_has_no_accuracy(name, tmp_path):
    """The targets are linear: FOOF on a linear model is Newton's method but for its damping."""
    spec = "foof:T=3,S=3,ema=0,warmup_batches=3,lr=0.5,damping=1e-6"
    summary = _run(_config(name, spec, likelihood="gaussian", epochs=20), tmp_path / "run")
    assert summary["mean"]["final_train_loss"] < 1e-6
    assert summary["mean"]["test_accuracy"] is None
    model = torch.load(tmp_path / "run" / "seed-0" / "checkpoint.pt", weights_only=True)["trainee"]["model"]
    torch.testing.assert_close(next(iter(model.values())), WEIGHTS, atol=1e-2, rtol=0)
    first = pd.read_csv(tmp_path / "run" / "seed-0" / "epochs.csv").iloc[0]
    assert math.isnan(first["train_accuracy"]) and first["test_loss"] > 0


def test_the_loss_of_regression_is_half_the_squared_error(tmp_path):
    config = _config("real", "sgd:lr=1e-12", likelihood="gaussian", epochs=1)
    summary = _run(config, tmp_path / "run")
    model = torch.load(tmp_path / "run" / "seed-0" / "checkpoint.pt", weights_only=True)["trainee"]["model"]
    x, y, _, _ = real()
    by_hand = 0.5 * (x @ next(iter(model.values())).T - y).square().sum(1).mean()
    assert summary["mean"]["final_train_loss"] == pytest.approx(float(by_hand), rel=1e-5)


@pytest.mark.parametrize("name", ["unlabelled", "classes"])
def test_an_autoencoder_reconstructs_the_inputs_with_or_without_labels(name):
    data = build_data(_config(name, model="autoencoder", width=8), CPU)
    assert torch.equal(data.train_targets, data.train_inputs) and data.outputs == 3


def test_probabilities_are_reconstructed_by_the_bernoulli_likelihood():
    data = build_data(_config("probabilities", model="autoencoder-sigmoid", width=8), CPU)
    assert torch.equal(data.test_targets, probabilities()[2])


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        (
            "real",
            {},
            "has real numbers as targets, likelihood 'categorical' takes class indices; .*--likelihood gaussian",
        ),
        ("unlabelled", {}, "has no targets, likelihood 'categorical' takes class indices"),
        (
            "classes",
            {"likelihood": "gaussian"},
            "has class indices as targets, likelihood 'gaussian' takes real numbers",
        ),
        ("real", {"likelihood": "bernoulli"}, "likelihood 'bernoulli' takes targets from 0 to 1; .*go from -"),
        ("classes", {"normalize": "mnist"}, "comes as it is to be used: normalize takes 'none' or 'own', got 'mnist'"),
        ("classes", {"augment": "flip"}, "augment is for the data sets of `kfbench list`, got 'flip'"),
        ("classes", {"pad_to": 32}, "pad_to is for the data sets of `kfbench list`, got 32"),
        ("classes", {"data_dir": "x"}, "data_dir is for the data sets of `kfbench list`, got 'x'"),
        ("classes", {"likelihood": "bernoulli", "normalize": "own"}, "normalize must be 'none', got 'own'"),
        ("classes", {"model": "convnet"}, "model 'convnet' could not be built"),
        ("classes", {"train_samples": 61}, "train_samples is 61, the data set has 60"),
        ("classes", {"batch_size": 61}, "batch_size is 61, above the 60 training samples"),
        (
            "classes",
            {"model": "autoencoder", "likelihood": "categorical"},
            "takes likelihood 'gaussian' or 'bernoulli'",
        ),
        ("real", {"model": "autoencoder"}, r"model 'autoencoder' returns shape \[2, 3\], expected \[2, 1\]$"),
        ("missing", {}, "has no attribute 'missing'"),
        ("classes", {"dataset_digest": "0" * 16}, "holds other numbers than were asked for: digest .*, not 0000"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name, flags, sentence, tmp_path):
    with pytest.raises(UsageError, match=sentence):
        _run(_config(name, **flags), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_feature_that_never_changes_cannot_be_normalised(monkeypatch):
    def constant():
        x, *rest = table()
        return torch.cat([x[:, :2], torch.ones(60, 1)], 1), *rest

    monkeypatch.setattr(sys.modules[__name__], "constant", constant, raising=False)
    with pytest.raises(UsageError, match="cannot be normalised: feature 2 of x_train has the same value everywhere"):
        build_data(_config("constant", normalize="own"), CPU)


def test_names_of_neither_kind_are_told_what_is_accepted():
    with pytest.raises(UsageError, match=r"unknown data set 'table.csv'.*package.module:function, or a file .npz, "):
        load_config(specs=["sgd"], flags={"dataset": "table.csv"})
    with pytest.raises(UsageError, match="dataset_digest is of a data set of your own, got 'x' with 'mnist'"):
        load_config(specs=["sgd"], flags={"dataset": "mnist", "dataset_digest": "x"})
    with pytest.raises(UsageError, match="or 'unit' as normalize, got 'none'"):
        load_config(specs=["sgd"], flags={"normalize": "none"})


def _saved(path, **changes):
    x, y, x_test, y_test = (part.numpy() for part in table(**changes))
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return {"dataset": str(path), "model": "logistic", "batch_size": 20, "epochs": 2}


def test_identity_is_by_content(tmp_path):
    """Equal numbers from a function and a file have one digest; other numbers under the same name are another run."""
    flags = _saved(tmp_path / "data.npz")
    before = load_config(specs=["sgd"], flags=flags)
    assert before.problem.dataset_digest == _config("classes").problem.dataset_digest
    assert undump(dump(before)) == before
    _saved(tmp_path / "data.npz", scale=2.0)
    after = load_config(specs=["sgd"], flags=flags)
    assert budget(before) != budget(after) and trajectory(before) != trajectory(after)
    with pytest.raises(UsageError, match="holds other numbers than were asked for"):
        build_data(before, CPU)


def test_a_run_does_not_go_on_with_other_numbers(tmp_path):
    flags, folder = _saved(tmp_path / "data.npz"), tmp_path / "run"
    _run(load_config(specs=["sgd"], flags=flags), folder)
    _saved(tmp_path / "data.npz", seed=5)
    with pytest.raises(UsageError, match=r"of another configuration; differing: problem\.dataset_digest"):
        train(load_config(specs=["sgd"], flags=flags), folder, Observer(), resume=True)


def test_records_are_compared_where_the_file_is_gone(tmp_path):
    flags = _saved(tmp_path / "data.npz")
    for name in ("sgd", "adam"):
        _run(load_config(specs=[name], flags=flags), tmp_path / name)
    (tmp_path / "data.npz").unlink()
    comparison = gather([tmp_path / "sgd", tmp_path / "adam"])
    assert not comparison.damaged and len(comparison.methods) == 2
    assert comparison.problem["dataset_digest"] == json.loads(json.dumps(comparison.problem))["dataset_digest"]


def test_a_function_that_draws_anew_is_called_once_a_process(tmp_path):
    config = _config("never_the_same")
    assert _run(config, tmp_path / "run")["status"] == "done"
    build_data(_config("classes"), CPU)  # another data set takes its place: the next is drawn anew
    with pytest.raises(UsageError, match="a function must return the same each time"):
        build_data(config, CPU)
