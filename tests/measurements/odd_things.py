"""What a user may name by path, each wrong in its own way: copied into the working folder of ``malformed_inputs``."""

import torch
from torch import nn


class _Method:
    fisher, orders = "none", ("same",)

    def observe(self, statistics):
        """Nothing to see."""

    def refresh(self, damping):
        """Nothing to do."""

    def apply(self, gradients):
        """The gradient."""
        return {name: G.matrix for name, G in gradients.items()}

    def state_dict(self):
        """Nothing."""
        return {}

    def load_state_dict(self, state):
        """Nothing."""


def _method(name, **attributes):
    return type(name, (_Method,), attributes)


def _raises(error):
    def raising(*arguments, **options):
        raise error

    return raising


Sometimes = _method("Sometimes", orders=("sometimes",))
AlsoSometimes = _method("AlsoSometimes", orders=("same", "sometimes"))
OrdersAreText = _method("OrdersAreText", orders="same")
OrdersOfNumbers = _method("OrdersOfNumbers", orders=(1, [2]))
NoOrders = _method("NoOrders", orders=())
ManyPoints = _method("ManyPoints", own_points="many")
NegativePoints = _method("NegativePoints", own_points=-5)
NoPoints = _method("NoPoints", own_points=0)
HalfAPoint = _method("HalfAPoint", own_points=2.5)
TruePoints = _method("TruePoints", own_points=True)
PointsOfAnObject = _method("PointsOfAnObject", own_points=property(lambda self: "many"))
PointsRaise = _method("PointsRaise", own_points=property(_raises(RuntimeError("a\nb"))))
CheckRaisesType = _method("CheckRaisesType", check=_raises(TypeError("a\nb")))
CheckRaisesRuntime = _method("CheckRaisesRuntime", check=_raises(RuntimeError()))
CheckRaisesValue = _method("CheckRaisesValue", check=_raises(ValueError("not today")))
CheckExits = _method("CheckExits", check=_raises(SystemExit(0)))
CheckIsANumber = _method("CheckIsANumber", check=3)
NoFisher = _method("NoFisher", fisher="banana")
FisherIsAList = _method("FisherIsAList", fisher=["none"])
Builds = _method("Builds", __init__=_raises(KeyError("x")))
BuildExits = _method("BuildExits", __init__=_raises(SystemExit("bye")))
DocIsANumber = _method("DocIsANumber", __doc__=3)
Lacks = type("Lacks", (), {"orders": ("same",)})


class _Meta(type):
    def __getattribute__(cls, name):
        raise RuntimeError("no\nquestions")


class Silent(metaclass=_Meta):
    """Answers nothing."""


class NeedsClosure(torch.optim.SGD):
    """As LBFGS."""

    def step(self, closure):
        """Asks for a closure."""


class OptimizerExits(torch.optim.SGD):
    """Ends the process where it can."""

    def __init__(self, params, lr=0.1):
        raise SystemExit(0)


class _Scales(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.linear = nn.Linear(784, outputs)

    def forward(self, x):
        """Writes into the data set."""
        return self.linear(x.mul_(1.5).flatten(1))


def scales(input_shape, outputs):
    """Changes its input in place."""
    return _Scales(outputs)


def on_meta(input_shape, outputs):
    """Has no weights."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, outputs, device="meta"))


def model_exits(input_shape, outputs):
    """Ends the process where it can."""
    raise SystemExit(0)


class _Exits(nn.Linear):
    def forward(self, x):
        """Ends the process where it can."""
        raise SystemExit(0)


def forward_exits(input_shape, outputs):
    """In its first forward."""
    return nn.Sequential(nn.Flatten(), _Exits(784, outputs))


number = 3
