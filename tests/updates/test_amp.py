"""``--amp bfloat16``: forward and backward under autocast, everything made of them in float32."""

import json

import pandas as pd
import pytest
import torch
from torch import nn

from kfbench.config.load import dump, load_config
from kfbench.errors import UsageError
from kfbench.step_rules.contract import NoRule
from kfbench.training.checkpoint import CHECKPOINT
from kfbench.updates.build import build_data, check_amp
from kfbench.updates.evaluation import evaluate
from kfbench.updates.trainee import Trainee

CPU = torch.device("cpu")
# Steps of bfloat16 are 2^-8 of a number; an update adds up products of rounded numbers.
BFLOAT16 = 2.0**-8


def _trainee(runs, spec, amp, **flags):
    config = runs.config(spec, amp=amp, updates=5, **flags)
    return Trainee(config, build_data(config, CPU), 0, CPU)


def smooth(input_shape, outputs, width=16):
    """No unit of it switches where a number is rounded, as a ReLU does."""
    layers = [nn.Linear(784, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, outputs)]
    return nn.Sequential(nn.Flatten(), *layers)


SMOOTH = {"model": f"{__name__}:smooth"}


def _tensors(state):
    if isinstance(state, torch.Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, (list, tuple)):
        for value in state:
            yield from _tensors(value)


_EXACT_FISHER = ["foof:T=1,order=same", "kfac:T=1,order=same,fisher=full", "ekfac:T=1", "gn-cg:T=1"]
_EXACT_FISHER += ["natural:T=1,order=same,fisher=full,damping=1", "kfra:T=1"]


@pytest.mark.parametrize("spec", ["sgd", *_EXACT_FISHER])
def test_directions_are_those_of_float32_but_for_rounding(runs, spec):
    """At the same weights, update by update, with everything that the method keeps made under autocast."""
    exact, rounded = (_trainee(runs, spec, amp, **SMOOTH) for amp in ("none", "bfloat16"))
    kinds = {}
    for trainee in (exact, rounded):
        trainee.warm_up()
        kinds[trainee] = kind = set()
        for module in trainee.model.modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda module, args, output, kind=kind: kind.add(output.dtype))
    for (x, y), _ in zip(exact.batches(), range(5), strict=False):
        rounded.model.load_state_dict(exact.model.state_dict())
        for trainee in (exact, rounded):
            trainee.backward(x, y)
            trainee.form_direction()
        for p, q in zip(exact.model.parameters(), rounded.model.parameters(), strict=True):
            assert p.grad.dtype == q.grad.dtype == torch.float32
            error = float((q.grad - p.grad).norm() / p.grad.norm())
            assert 0 < error < 10 * BFLOAT16, f"{error / BFLOAT16} roundings"
        for trainee in (exact, rounded):
            trainee._move(len(x))
    assert list(kinds.values()) == [{torch.float32}, {torch.bfloat16}]
    state = rounded.preconditioning.turn.method.state_dict()
    # In float64 the natural gradient keeps what it has factorised.
    assert {t.dtype for t in _tensors(state) if t.is_floating_point()} <= {torch.float32, torch.float64}
    assert {p.dtype for p in rounded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("spec", ["foof:T=3,S=2", "natural:T=2,order=same", "gn-cg:T=2", "kfra:T=3", "adam"])
def test_training_works_and_goes_on(runs, spec):
    summary, folder = runs.train(spec, updates=25, amp="bfloat16", **SMOOTH)
    assert summary["status"] == "done"
    losses = pd.read_csv(folder / "seed-0" / "epochs.csv")["train_loss"]
    assert losses.iloc[-1] < losses.iloc[0]
    whole, _ = runs.train(spec, updates=25, **SMOOTH)
    assert summary["mean"]["final_train_loss"] != whole["mean"]["final_train_loss"], "autocast did nothing"
    assert summary["mean"]["final_train_loss"] == pytest.approx(whole["mean"]["final_train_loss"], rel=0.05)


def test_evaluations_are_in_float32(runs):
    """So that losses of runs with and without compare: they are of the weights alone."""
    summary, folder = runs.train("foof:T=3", updates=5, amp="bfloat16")
    trainee = _trainee(runs, "foof:T=3", "none")
    trainee.model.load_state_dict(torch.load(folder / "seed-0" / CHECKPOINT, weights_only=True)["trainee"]["model"])
    k, data = trainee.eval_samples, trainee.data
    loss, _ = evaluate(trainee.model, trainee.likelihood, data.train_inputs[:k], data.train_targets[:k])
    assert summary["mean"]["final_train_loss"] == loss


def test_micro_batches_and_a_closure_are_under_autocast_too(runs):
    for spec, flags in (("foof:T=3", {"micro_batch_size": 7}), ("torch.optim:LBFGS:lr=0.1,max_iter=3", {})):
        ended = [
            runs.train(spec, updates=4, amp=amp, **flags)[0]["mean"]["final_train_loss"] for amp in ("none", "bfloat16")
        ]
        assert ended[0] != ended[1] and ended[0] == pytest.approx(ended[1], rel=0.05)


def test_records_say_it_and_without_it_nothing_is_said(runs):
    _, folder = runs.train("sgd", updates=2, amp="bfloat16")
    assert json.loads((folder / "environment.json").read_text())["amp"] == "bfloat16"
    assert "amp: bfloat16" in (folder / "config.yaml").read_text()
    assert "amp" not in dump(runs.config("sgd"))["run"], "hashes of runs of before stay"
    assert runs.config("sgd", amp="none") == runs.config("sgd")


@pytest.mark.parametrize(
    ("spec", "flags", "sentence"),
    [
        ("sgd", {"dtype": "float64"}, "amp 'bfloat16' is of float32 alone, got dtype 'float64'"),
        ("foof:step=rescale", {"lr": None}, "'foof': its step rule compares losses .*, got amp 'bfloat16'"),
    ],
)
def test_what_does_not_fit_is_one_sentence(runs, spec, flags, sentence):
    with pytest.raises(UsageError, match=sentence):
        runs.train(spec, updates=2, amp="bfloat16", **flags)


def test_another_precision_is_refused():
    with pytest.raises(UsageError, match="amp should be 'none' or 'bfloat16', got 'float16'"):
        load_config(specs=["sgd"], flags={"amp": "float16"})


def test_a_device_without_it_is_refused(runs, monkeypatch):
    run = runs.config("sgd", amp="bfloat16").run
    with pytest.raises(UsageError, match="amp 'bfloat16' cannot be used on device 'cpu': RuntimeError"):
        check_amp(run, torch.device("meta"), NoRule(), "sgd")
    # One that has autocast, but not of this kind: torch warns, and goes on in float32.
    usual = torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, dtype: usual(kind, dtype, enabled=False))
    with pytest.raises(UsageError, match="cannot be used on device 'cpu': products there are in float32"):
        check_amp(run, CPU, NoRule(), "sgd")
