"""What is a chain of layers, and by which sentence everything else is refused."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from kfbench.preconditioners.kfac import KFAC
from kfbench.updates.preconditioning import Preconditioning

F64 = torch.float64


class ChainedKFAC(KFAC):
    """K-FAC, for chains alone."""

    chain = True


class Wired(nn.Module):
    """Four layers of one width (the last but its outputs), wired by ``how(self, x)``."""

    def __init__(self, how) -> None:
        super().__init__()
        self.last = nn.Linear(4, 3)  # registered first: the order of use counts
        self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def _residual(m, x):
    h = torch.tanh(m.a(x))
    return m.last(torch.tanh(m.c(torch.tanh(m.b(h))) + h))


def _branches(m, x):
    h = torch.tanh(m.a(x))
    return m.last(m.b(h) * m.c(h))


def _twice(m, x):
    return m.last(m.c(torch.tanh(m.b(torch.tanh(m.a(torch.tanh(m.a(x))))))))


def _unused(m, x):
    return m.last(m.b(torch.tanh(m.a(x))))


def _two_heads(m, x):
    h = torch.tanh(m.b(torch.tanh(m.a(x))))
    return m.last(h) + m.c(h)[:, :3]


def _detached(m, x):
    return m.last(m.c(torch.tanh(m.b(torch.tanh(m.a(x)).detach()))))


def _between(function):
    return lambda m, x: m.last(torch.tanh(m.c(relu(m.b(function(m.a(x)))))))


CHAINS = {
    "nothing between": lambda m, x: m.last(m.c(m.b(m.a(x)))),
    "in place": _between(lambda h: h.relu_()),
    "several": _between(lambda h: torch.tanh(h) * 0.3 + h.sigmoid().square() - 1),
    "dropout": _between(lambda h: torch.dropout(h, 0.5, True)),
    "reshaped and back": _between(lambda h: h.view(-1, 2, 2).clone().flatten(1)),
    "dead": _between(lambda h: relu(h - 100)),
}
_ELEMENTWISE = "between 'a' and 'b' lies more than an elementwise function"
REFUSED = {
    "residual": (_residual, "'a' and 'c' both lead straight to 'last'"),
    "branches": (_branches, "'b' and 'c' both lead straight to 'last'"),
    "twice": (_twice, "'a' is called 2 times in one forward"),
    "unused": (_unused, "'c' does not lead to the loss"),
    "two heads": (_two_heads, "'last' and 'c' both lead straight to the loss"),
    "detached": (_detached, "'a' does not lead to the loss"),
    "permuted": (_between(lambda h: h.flip(1)), _ELEMENTWISE),
    "softmax": (_between(lambda h: h.softmax(1)), _ELEMENTWISE),
    "layer norm": (_between(lambda h: nn.functional.layer_norm(h, (4,))), _ELEMENTWISE),
    "batch norm": (_between(lambda h: (h - h.mean(0)) / h.std(0)), _ELEMENTWISE),
    "frozen layer": (_between(lambda h: torch.tanh(h) @ torch.ones(4, 4, dtype=h.dtype)), _ELEMENTWISE),
    "other samples": (_between(lambda h: h.roll(1, 0)), _ELEMENTWISE),
}
ACCEPTED = (
    "but accepted is a chain alone: fully connected layers, each called once with one row a sample, and elementwise"
)


def _backward(model: nn.Module, x: Tensor, dtype: torch.dtype | None = None) -> Preconditioning:
    pre = Preconditioning(model, ChainedKFAC(), damping=0.1)
    with pre.capture(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        output = model(x)
    pre.backward(cross_entropy(output.to(x.dtype), torch.arange(len(x)) % 3, reduction="none"), output)
    return pre


@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
@pytest.mark.parametrize("wiring", CHAINS)
def test_chains_are_accepted_in_the_order_of_use(wiring, precision):
    dtype = torch.float64 if precision == "float64" else torch.float32
    pre = _backward(
        Wired(CHAINS[wiring]).to(dtype),
        torch.randn(50, 4, dtype=dtype),
        torch.bfloat16 if precision == "bfloat16" else None,
    )
    assert list(pre.method.A.means) == ["a", "b", "c", "last"]


@pytest.mark.parametrize("wiring", REFUSED)
def test_anything_else_is_one_sentence(wiring):
    how, why = REFUSED[wiring]
    for dtype in (torch.float32, F64):
        with pytest.raises(ValueError, match=ACCEPTED) as refused:
            _backward(Wired(how).to(dtype), torch.randn(7, 4, dtype=dtype))
        assert str(refused.value).startswith(why)


def test_layers_of_other_kinds_and_of_many_rows_are_named():
    images = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3)).double()
    with pytest.raises(ValueError, match=r"^'0' is a Conv2d, "):
        _backward(images, torch.randn(3, 1, 4, 4, dtype=F64))
    sequence = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(10, 3)).double()
    with pytest.raises(ValueError, match=r"^'0' has 2 rows a sample, "):
        _backward(sequence, torch.randn(3, 2, 4, dtype=F64))


def test_one_layer_is_a_chain_and_what_is_frozen_before_or_behind_is_not_looked_at():
    assert list(_backward(nn.Linear(4, 3).double(), torch.randn(3, 4, dtype=F64)).method.A.means) == [""]
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    assert list(_backward(model, torch.randn(3, 4, dtype=F64)).method.A.means) == ["2", "4"]
    model[2].requires_grad_(False)
    model[0].requires_grad_(True)
    with pytest.raises(ValueError, match=r"^between '0' and '4' lies more than an elementwise function"):
        _backward(model, torch.randn(3, 4, dtype=F64))


def test_a_layer_that_is_skipped_later_is_refused_then():
    model = Wired(CHAINS["in place"]).double()
    pre, x = _backward(model, torch.randn(7, 4, dtype=F64)), torch.randn(7, 4, dtype=F64)
    model.how = _unused
    with pytest.raises(ValueError, match=r"^'c' does not lead to the loss"), pre.capture():
        output = model(x)
        pre.backward(output.square().sum(1), output)


def test_random_streams_and_weights_are_left_alone():
    def draws(method: KFAC) -> Tensor:
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))
        pre, x = Preconditioning(model, method, damping=0.1), torch.randn(6, 4)
        for _ in range(2):
            with pre.capture():
                output = model(x)
            pre.backward(cross_entropy(output, torch.arange(6) % 3, reduction="none"), output)
        return torch.cat([torch.rand(3), *(p.grad.flatten() for p in model.parameters())])

    assert torch.equal(draws(ChainedKFAC()), draws(KFAC()))


def test_a_layer_that_is_frozen_later_makes_the_next_update_refresh():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    pre, x, y = (
        Preconditioning(model, ChainedKFAC(), damping=0.1, T=10),
        torch.randn(6, 4, dtype=F64),
        torch.arange(6) % 3,
    )

    def update() -> int:
        with pre.capture():
            output = model(x)
        pre.backward(cross_entropy(output, y, reduction="none"), output)
        return pre.turn.refreshes

    assert [update(), update()] == [1, 1]
    model[0].requires_grad_(False)
    assert [update(), update()] == [2, 2]
