"""Evaluation leaves no trace in the data, and judges the weights that an optimizer defines."""

import sys

import pytest
import torch
from torch import nn

from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.problems.likelihoods import LIKELIHOODS
from kfbench.updates.build import build_data, build_network
from kfbench.updates.evaluation import evaluate
from kfbench.updates.trainee import Trainee

_MODULE = """
import torch
from torch import nn

class Scales(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(784, 10)

    def forward(self, x):
        return self.linear(x.mul_(1.5).flatten(1))

def scales(input_shape, outputs):
    return Scales()

def relu_in_place(input_shape, outputs):
    return nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(784, outputs))

class OnlyOfMany(Scales):
    def forward(self, x):
        return self.linear((x.mul_(1.5) if len(x) > 50 else x).flatten(1))

def only_of_many(input_shape, outputs):
    return OnlyOfMany()

class Averaged(torch.optim.SGD):
    "The protocol of schedule-free optimizers: step in train mode, look in eval mode."
    calls, mode = [], "train"

    def step(self, closure=None):
        assert self.mode == "train", "not in train mode"
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            s = self.state[p]
            n = s["n"] = s.get("n", 0) + 1
            s["mean"] = p.detach().clone() if n == 1 else s["mean"].lerp(p.detach(), 1 / n)

    def swap(self, mode):
        self.calls.append(mode)
        if mode != self.mode:
            self.mode = mode
            for p in self.param_groups[0]["params"]:
                if p in self.state:
                    p.data, self.state[p]["mean"] = self.state[p]["mean"], p.data

    def train(self):
        self.swap("train")

    def eval(self):
        self.swap("eval")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's, ``evaluated``."""
    (tmp_path / "evaluated.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evaluated", raising=False)
    yield
    sys.modules.pop("evaluated", None)


def _config(spec, **flags):
    flags = {"train_samples": 100, "eval_samples": 100, "batch_size": 20, "updates": 4, "width": None, **flags}
    return load_config(specs=[spec], flags=flags)


@pytest.mark.parametrize("model", ["evaluated:scales", "evaluated:relu_in_place"])
def test_a_model_that_changes_its_input_is_refused_and_the_data_stay(mine, model):
    config = _config("sgd", model=model)
    data = build_data(config, torch.device("cpu"))
    before = data.train_inputs.clone()
    with pytest.raises(UsageError, match=f"model '{model}' changes its input in place, which is the data set"):
        build_network(config.problem, config.run, data, torch.device("cpu"), 0)
    assert torch.equal(data.train_inputs, before)


def test_one_that_does_so_later_fails_its_seed_and_the_data_stay(mine):
    config = _config("sgd", model="evaluated:only_of_many")
    data = build_data(config, torch.device("cpu"))
    before = data.train_inputs.clone()
    trainee = Trainee(config, data, 0, torch.device("cpu"))
    with pytest.raises(ValueError, match="the model, a OnlyOfMany, changes its input in place"):
        trainee.evaluate()
    assert torch.equal(data.train_inputs, before)


def test_an_evaluation_is_of_the_samples_as_they_are():
    torch.manual_seed(0)
    inputs, targets = torch.randn(4500, 3), torch.randint(0, 2, (4500,))
    model = nn.Linear(3, 2)
    loss, accuracy = evaluate(model, LIKELIHOODS["categorical"](), inputs, targets)
    assert loss == pytest.approx(nn.functional.cross_entropy(model(inputs), targets).item(), rel=1e-6)
    assert accuracy == pytest.approx((model(inputs).argmax(1) == targets).double().mean().item())


def test_an_optimizer_with_modes_is_judged_at_the_weights_that_it_defines(mine):
    config = _config("evaluated:Averaged:lr=0.1", width=8)
    data = build_data(config, torch.device("cpu"))
    trainee = Trainee(config, data, 0, torch.device("cpu"))
    trainee.evaluate()
    for (x, y), _ in zip(trainee.batches(), range(4), strict=False):
        trainee.update(x, y)
    weights = [p.detach().clone() for p in trainee.model.parameters()]
    found = trainee.evaluate()
    assert trainee.optimizer.calls == ["eval", "train"] * 2 and trainee.optimizer.mode == "train"
    assert all(torch.equal(a, p) for a, p in zip(weights, trainee.model.parameters(), strict=True))
    with torch.no_grad():
        for p in trainee.model.parameters():
            p.copy_(trainee.optimizer.state[p]["mean"])
    expected = evaluate(trainee.model, trainee.likelihood, data.train_inputs[:100], data.train_targets[:100])
    assert (found["train_loss"], found["train_accuracy"]) == expected


def test_it_trains_on_though_its_evaluation_fails(mine, monkeypatch):
    trainee = Trainee(_config("evaluated:Averaged", width=8), *_data_and_device())
    monkeypatch.setattr("kfbench.updates.evaluation.evaluate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainee.evaluate()
    assert trainee.optimizer.mode == "train"


def _data_and_device():
    device = torch.device("cpu")
    return build_data(_config("sgd"), device), 0, device
