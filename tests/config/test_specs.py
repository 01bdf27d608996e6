"""A user's class is looked at when it is found, whatever it answers; what only an object can say, when it is built."""

import sys
from pathlib import Path

import pytest
import torch

from kfbench.config.load import load_config
from kfbench.config.specs import find_method
from kfbench.errors import UsageError
from kfbench.updates.build import build_data
from kfbench.updates.trainee import Trainee

_THINGS = Path(__file__).parents[1] / "measurements" / "odd_things.py"
_WHEN_FOUND = {
    "Sometimes": r"must name its orders, of 'independent' and 'same', got \('sometimes',\)",
    "AlsoSometimes": "must name its orders",
    "OrdersAreText": "must name its orders",
    "OrdersOfNumbers": "must name its orders",
    "NoOrders": "must name its orders",
    "ManyPoints": "own_points must be a whole number from 1, or None, got 'many'",
    "NegativePoints": "own_points must be a whole number from 1, or None, got -5",
    "NoPoints": "own_points must be",
    "HalfAPoint": "own_points must be",
    "TruePoints": "own_points must be",
    "DocIsANumber": "cannot be looked at: AttributeError",
    "Silent": "cannot be looked at: RuntimeError: no",
    "Lacks": "it lacks observe, refresh",
    "number": "is a int, expected a class",
}
# Types are checked by annotation while tests run, before ours.
_TYPE = "|cannot be put to work: TypeCheckError"
_WHEN_BUILT = {
    "PointsOfAnObject": f"own_points must be a whole number from 1, or None, got 'many'{_TYPE}",
    "PointsRaise": "cannot be put to work: RuntimeError: a",
    "CheckRaisesType": "its check raised TypeError: a",
    "CheckRaisesRuntime": "its check raised RuntimeError",
    "CheckRaisesValue": ": not today",
    "CheckExits": "its check raised SystemExit: 0",
    "CheckIsANumber": f"its check raised TypeError{_TYPE}",
    "NoFisher": "fisher of the method must be one of",
    "FisherIsAList": f"fisher of the method must be one of{_TYPE}",
    "Builds": "raised on construction with no options: 'x'",
    "BuildExits": "raised on construction with no options: SystemExit: bye",
    "OptimizerExits": "raised on construction with lr=0.1: SystemExit: 0",
}


@pytest.fixture
def odd_things(monkeypatch):
    """On the path, under its short name."""
    monkeypatch.syspath_prepend(_THINGS.parent)
    yield "odd_things"
    sys.modules.pop("odd_things", None)


@pytest.mark.parametrize("name", _WHEN_FOUND)
def test_what_a_class_cannot_mean_is_refused_when_it_is_found(odd_things, name):
    with pytest.raises(UsageError, match=_WHEN_FOUND[name]) as error:
        find_method(f"{odd_things}:{name}")
    assert str(error.value).startswith(f"method 'odd_things:{name}'")


@pytest.mark.parametrize("name", _WHEN_BUILT)
def test_what_an_object_cannot_mean_is_refused_before_the_first_update(odd_things, name):
    config = load_config(specs=[f"{odd_things}:{name}"], flags={"width": 8, "train_samples": 100, "batch_size": 20})
    device = torch.device("cpu")
    with pytest.raises(UsageError, match=_WHEN_BUILT[name]) as error:
        Trainee(config, build_data(config, device), 0, device)
    assert str(error.value).startswith(f"method 'odd_things:{name}'")


@pytest.mark.parametrize("name", ["model_exits", "forward_exits", "on_meta", "scales"])
def test_a_model_that_exits_or_cannot_be_used_is_refused_before_the_first_update(odd_things, name):
    config = load_config(specs=["sgd"], flags={"model": f"{odd_things}:{name}", "train_samples": 100})
    device = torch.device("cpu")
    with pytest.raises(UsageError, match=f"model 'odd_things:{name}'"):
        Trainee(config, build_data(config, device), 0, device)


@pytest.mark.parametrize("opt", ["foof-kfac-damping", "natural", "gn-cg"])
def test_methods_that_divide_by_the_damping_refuse_0_before_the_first_update(opt):
    config = load_config(specs=[f"{opt}:damping=0"], flags={"width": 8, "train_samples": 100, "batch_size": 20})
    device = torch.device("cpu")
    with pytest.raises(UsageError, match="must be above 0"):
        Trainee(config, build_data(config, device), 0, device)
