"""KFRA beyond its direction: B of the written-out recursion, exact for one sample, BackPACK, and what it refuses."""

import math

import pytest
import torch
from torch import nn

from kfbench.preconditioners.kfra import KFRA
from kfbench.problems.likelihoods import LIKELIHOODS
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import CHAINS, Problem, problem
from tests.preconditioners.botev import exact_B, recursive_B
from tests.preconditioners.test_kflr import backpack_factors
from tests.properties import LAMBDA, assert_close, backward, directions


def _observed(p, micro=None, **options):
    options = {"damping": LAMBDA, "T": 1, "likelihood": p.likelihood} | options
    pre = Preconditioning(p.model, KFRA(), **options)
    backward(pre, p, micro)
    return pre


def _of(model, n, likelihood="categorical", width=5, outputs=3):
    model, x = model.double(), torch.randn(n, width).double()
    y = torch.randint(outputs, (n,)) if likelihood == "categorical" else torch.rand(n, outputs).double()
    return Problem(model, x, y, LIKELIHOODS[likelihood]())


@pytest.mark.parametrize("micro", [None, 3])
@pytest.mark.parametrize("model", CHAINS)
def test_B_is_the_recursion_as_written(model, micro):
    p = problem(model, 7)
    B = _observed(p, micro).method.B.means
    for name, wanted in recursive_B(p).items():
        assert_close(B[name], wanted, what=f"B of {name}")


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_it_is_exact_for_one_sample(likelihood):
    """B is J' H J itself, and ``B (x) A`` the layer's block of the Gauss-Newton matrix."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    p = _of(model, 1, likelihood)
    method = _observed(p).method
    vectors = p.likelihood.full_vectors(p.model(p.x).detach())
    for name, layer in p.layers.items():
        assert_close(method.B.means[name], exact_B(p, layer), what=f"B of {name}")
        block = torch.kron(method.B.means[name], method.A.means[name])
        assert_close(block, dense.fisher_block(p.model, layer, p.x, vectors), what=f"block of {name}")


def test_it_is_an_approximation_for_several():
    p = problem("mlp", 7)
    B = _observed(p).method.B.means
    last, *others = reversed(list(p.layers))
    assert_close(B[last], exact_B(p, p.layers[last]), what="the last layer's is exact")
    for name in others:
        exact = exact_B(p, p.layers[name])
        assert 1e-3 < float((B[name] - exact).norm() / exact.norm()) < 0.6, name


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_functions_behind_the_last_layer_belong_to_its_hessian(likelihood):
    """Mean of the products, not product of the means: exact for the last layer, whatever the batch."""
    p = _of(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh()), 6, likelihood)
    B = _observed(p).method.B.means
    assert_close(B["2"], exact_B(p, p.layers["2"]), what="the last layer")


@pytest.mark.parametrize("n", [1, 6])
@pytest.mark.parametrize("model", ["mlp", "mlp-bias"])
def test_factors_agree_with_backpack(model, n):
    """BackPACK treats the bias apart, so its A has no column of ones."""
    p = problem(model, n)
    theirs, method = backpack_factors(problem(model, n), "KFRA"), _observed(p).method
    for name, (B, A) in theirs.items():
        d = len(A)
        assert_close(method.A.means[name][:d, :d], A, what=f"A of {name}")
        assert_close(method.B.means[name], B, what=f"B of {name}")


def test_weights_are_those_of_the_observed_update():
    """In order "independent" too: the recursion happens before the step."""
    for order in ("same", "independent"):
        p = problem("mlp-bias", 7)
        pre = Preconditioning(p.model, KFRA(ema=0.0), damping=LAMBDA, T=1, order=order)
        optimizer = torch.optim.SGD(p.model.parameters(), lr=0.5)
        for _ in range(3):
            wanted = recursive_B(p)
            backward(pre, p)
            optimizer.step()
            for name in p.layers:
                assert_close(pre.method.B.means[name], wanted[name], what=f"{order}, B of {name}")


class InPlace(nn.Module):
    """Layers registered in another order than they are called in, in-place functions, a mask drawn anew."""

    def __init__(self):
        super().__init__()
        self.last, self.first, self.middle = nn.Linear(6, 3), nn.Linear(5, 4), nn.Linear(4, 6)
        self.dropout, self.slope = nn.Dropout(0.4), nn.PReLU()

    def forward(self, x):
        h = nn.functional.relu_(self.first(x))
        return self.last(self.dropout(self.slope(self.middle(h))).view(len(x), 1, 6))[:, 0]


def test_slopes_are_those_of_the_captured_graph():
    """Dropout's very mask counts: the recursion from what a hook saw of each layer's input and output."""
    torch.manual_seed(3)
    p = _of(InPlace(), 7)
    seen = {}
    for name in ("first", "middle", "last"):
        p.layers[name].register_forward_hook(
            lambda m, a, out, name=name: seen.update({name: (a[0].clone(), out.clone())})
        )
    B = _observed(p).method.B.means
    probabilities = seen["last"][1][:, 0].softmax(-1).detach()
    H = torch.stack([q.diag() - torch.outer(q, q) for q in probabilities]).mean(0)
    before = seen["last"][0][:, 0].detach() / seen["middle"][1].detach()  # the functions pass through the origin
    W, V = p.model.last.weight.detach(), p.model.middle.weight.detach()
    wanted = {"last": H, "middle": (W.T @ H @ W) * (before.T @ before / 7)}
    # What is in place has already overwritten what the first layer returned.
    positive = (seen["middle"][0] > 0).to(H.dtype)
    wanted["first"] = (V.T @ wanted["middle"] @ V) * (positive.T @ positive / 7)
    for name, matrix in wanted.items():
        assert_close(B[name], matrix, what=f"B of {name}")
    assert (before == 0).any() and p.model.slope.weight.grad is not None


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)
        return self.third(torch.tanh(h + self.second(torch.tanh(h))))


class Parallel(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return self.one(x) + self.other(x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.again(torch.tanh(self.again(self.first(x)))))


def _between(*modules):
    return lambda: nn.Sequential(nn.Linear(5, 4), *modules, nn.Linear(4, 3))


REFUSED = {
    "skip": (Skip, "layer 'third' (Linear) is fed by 'first' and 'second', not by 'second' alone"),
    "parallel": (Parallel, "layer 'other' (Linear) is fed by no layer, not by 'one' alone"),
    "twice": (Twice, "layer 'again' (Linear) is used 2 times"),
    "batch norm": (_between(nn.BatchNorm1d(4)), "from layer '0' to layer '2' (NativeBatchNorm"),
    "layer norm": (_between(nn.Tanh(), nn.LayerNorm(4)), "from layer '0' to layer '3' (Tanh, NativeLayerNorm"),
    "softmax": (_between(nn.Softmax(-1)), "from layer '0' to layer '2' (Softmax) is not elementwise"),
    "pooled": (lambda: nn.Sequential(nn.Linear(5, 4), nn.AvgPool1d(2), nn.Linear(2, 3)), "is not elementwise"),
    "output": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.LogSoftmax(-1)),
        "from layer '2' to the output (LogSoftmax) is not elementwise",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_chain_is_refused_by_name_before_the_first_step(kind):
    make, sentence = REFUSED[kind]
    p = _of(make(), 6)
    with pytest.raises(ValueError) as refused:
        _observed(p)
    assert sentence in str(refused.value), refused.value
    assert "elementwise functions between them" in str(refused.value) and "\n" not in str(refused.value)
    assert all(q.grad is None for q in p.model.parameters())


def test_batch_norm_that_is_frozen_is_elementwise():
    model = _between(nn.BatchNorm1d(4), nn.Tanh())().double()
    model[1].running_var.uniform_(0.5, 2)
    model[1].eval()
    p = _of(model, 6)
    B = _observed(p).method.B.means
    slopes = torch.autograd.functional.jacobian(lambda h: model[2](model[1](h)).sum(0), model[0](p.x).detach())
    phi = torch.stack([slopes[j, :, j] for j in range(4)], dim=1)
    W = model[3].weight.detach()
    assert_close(B["0"], (W.T @ B["3"] @ W) * (phi.T @ phi / 6))


def test_a_model_that_stops_being_a_chain_is_refused_then():
    p = problem("mlp", 6)
    pre = _observed(p)
    extra = nn.Linear(4, 6, bias=False).double()
    p.model.add_module("extra", extra)
    p.model.forward = lambda x: p.model[4](p.model[3](p.model[2](h := p.model[1](p.model[0](x))) + extra(h)))
    with pytest.raises(ValueError, match="is fed by"):
        backward(pre, p)


class Choice(nn.Sequential):
    """Two layers or three, by the first number that it is given."""

    def __init__(self):
        super().__init__(nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3))

    def forward(self, x):
        h = torch.tanh(self[0](x))
        return self[2](h if x[0, 0] > 0 else torch.tanh(self[1](h)))


def test_a_layer_that_a_batch_skips_keeps_its_B():
    p = _of(Choice(), 6)
    p.x[0, 0] = -1
    pre = Preconditioning(p.model, KFRA(ema=0.0), damping=LAMBDA, T=1)
    backward(pre, p)
    kept = pre.method.B.means["1"].clone()
    p.x[0, 0] = 1
    backward(pre, p)
    phi = 1 - torch.tanh(p.model[0](p.x)).detach() ** 2
    W, B = p.model[2].weight.detach(), pre.method.B.means
    assert torch.equal(B["1"], kept) and not p.model[1].weight.grad.any()
    assert_close(B["0"], (W.T @ B["2"] @ W) * (phi.T @ phi / 6))


def test_micro_batches_that_go_different_ways_are_refused():
    p = _of(Choice(), 4)
    p.x[:2, 0], p.x[2:, 0] = 1, -1
    with pytest.raises(ValueError, match="micro-batches"):
        _observed(p, micro=2)


MODELS_OF_USERS = """
import math
from torch import nn
import torch

class Skip(nn.Module):
    def __init__(self, d, outputs):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(d, 9), nn.Linear(9, 9), nn.Linear(9, outputs)

    def forward(self, x):
        h = self.first(x.flatten(1))
        return self.last(torch.relu(h + self.second(torch.relu(h))))

def skip(input_shape, outputs):
    return Skip(math.prod(input_shape), outputs)
"""


@pytest.mark.parametrize(
    ("model", "named"), [("convnet", "layer '0' is a Conv2d"), ("models_of_users:skip", "layer 'last' (Linear) is fed")]
)
def test_commands_refuse_it_in_one_sentence_before_anything_is_written(model, named, kfbench, tmp_path, monkeypatch):
    (tmp_path / "models_of_users.py").write_text(MODELS_OF_USERS)
    monkeypatch.syspath_prepend(tmp_path)
    for command in ("train", "similarity"):
        others = ["--opt", "sgd"] if command == "similarity" else []
        code, out, err = kfbench(command, "--opt", "kfra", *others, "--model", model, "--quick", "--out", "here")
        assert code == 2 and named in err and "Traceback" not in err + out, err
        assert err.count("\n") == 1 and "method 'kfra'" in err


@pytest.mark.parametrize("model", ["mlp", "autoencoder"])
def test_it_trains(model, runs):
    (run,) = runs.train("kfra:T=4", model=model, updates=12)[0]["runs"]
    assert run["status"] == "done" and math.isfinite(run["final_train_loss"])


def test_directions_of_order_independent_are_those_of_the_batch_before():
    old, new = problem("mlp-bias", 5, seed=1), problem("mlp-bias", 7, seed=1)
    new = Problem(old.model, new.x, new.y)
    pre = Preconditioning(old.model, KFRA(ema=0.0), damping=LAMBDA, T=1, order="independent")
    backward(pre, old)
    B = recursive_B(old)
    backward(pre, new)
    for name, layer in old.layers.items():
        A, _ = dense.factors(old.model, layer, old.x, torch.zeros(1, 5, 3).double())
        G = dense.gradient(new.model, layer, new.likelihood.loss(new.model(new.x), new.y))
        assert_close(directions(new)[name], dense.kfac_heuristic(A, B[name], G, LAMBDA), what=name)
