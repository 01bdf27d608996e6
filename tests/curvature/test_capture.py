"""Capture against the traps of published codes: each test is one of them."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations

from kfbench.curvature.capture import capture
from kfbench.curvature.captured import CaptureError, Wanted
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.finding import find_layers
from kfbench.preconditioners.kfac import KFAC
from kfbench.problems.likelihoods import Categorical
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import MODELS, Problem, problem
from tests.curvature.networks import NETWORKS, losses_of, network
from tests.properties import assert_close, backward, gradient


class Identity:
    """The contract's smallest method: directions are the captured gradients themselves."""

    fisher = "none"
    orders = ("same",)

    def observe(self, statistics): ...
    def refresh(self, damping): ...
    def state_dict(self):
        return {}

    def load_state_dict(self, state): ...
    def apply(self, gradients):
        return {name: G.dense() for name, G in gradients.items()}


def _captured_gradients(model, x, y, method=None, likelihood=None):
    """Preconditions once; returns (what lies in .grad, autograd's gradients, the Preconditioning)."""
    likelihood = likelihood or Categorical()
    state = torch.get_rng_state()
    model.zero_grad()
    likelihood.loss(model(x), y).mean().backward()
    wanted = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    torch.set_rng_state(state)
    pre = Preconditioning(model, method or Identity(), damping=1.0, T=1)
    backward(pre, Problem(model, x, y, likelihood))
    return [p.grad for p in model.parameters()], wanted, pre


def _assert_plain_gradient(model, x, y, likelihood=None):
    got, wanted, pre = _captured_gradients(model, x, y, likelihood=likelihood)
    for mine, true in zip(got, wanted, strict=True):
        if true is None:
            assert mine is None or not mine.any()
        else:
            assert_close(mine, true, 1e-12)
    return pre


@pytest.mark.parametrize("name", MODELS)
def test_captured_gradient_is_autograds(name):
    p = problem(name, 5)
    pre = _assert_plain_gradient(p.model, p.x, p.y, p.likelihood)
    plain = {"positions", "norm", "blocks.0.norm_attention", "blocks.0.norm_mlp"} if name == "tokens" else set()
    assert set(pre.left_out) == plain


def _x(n=5, d=4):
    return torch.randn(n, d, dtype=torch.float64), torch.randint(3, (n,))


def _net(*layers):
    return nn.Sequential(*layers).double()


def test_activation_in_place_does_not_spoil_the_rows():
    """Differentiating to the output tensor after an in-place ReLU is silently wrong; to its edge it is not."""
    model = _net(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))
    x, y = _x()
    assert not _assert_plain_gradient(model, x, y).left_out


def test_activation_in_place_on_a_view_does_not_spoil_the_rows():
    """A Linear with bias returns a view for 3-D inputs; an in-place operation would rewrite its edge."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x):
            return self.b(torch.relu_(self.a(x.view(len(x), 1, 4)))).mean(1)

    assert not _assert_plain_gradient(Net(), *_x()).left_out


class _Positions(nn.Module):
    """Of [N, 1, 4]: its layers' outputs are views. The first one's is changed in place ``where`` it says so."""

    def __init__(self, where):
        super().__init__()
        self.a, self.b, self.where, self.seen = nn.Linear(4, 5).double(), nn.Linear(5, 3).double(), where, []

    def forward(self, x):
        h = self.a(x.view(len(x), 1, 4))
        self.seen.append(h._is_view())
        h = torch.relu_(h) if self.where(len(self.seen)) else torch.relu(h)
        return self.b(h).mean(1)


def _gradients(model, times):
    """Of so many updates, and whether each is autograd's."""
    x, y = _x()
    pre = Preconditioning(model, Identity(), damping=1.0)
    for _ in range(times):
        with pre.capture():
            output = model(x)
        losses = cross_entropy(output, y, reduction="none")
        expected = torch.autograd.grad(losses.mean(), [*model.parameters()], retain_graph=True)
        pre.backward(losses, output)
        for parameter, wanted in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(parameter.grad, wanted)
    assert not pre.left_out


def test_outputs_that_nobody_changes_in_place_are_copied_once():
    _gradients(model := _Positions(lambda forward: False), 3)
    assert model.seen == [False, True, True]


def test_outputs_that_are_changed_in_place_are_copied_each_time():
    _gradients(model := _Positions(lambda forward: True), 3)
    assert model.seen == [False] * 3


def test_an_output_changed_in_place_at_last_is_an_error():
    """Not silently wrong: its edge is not of the graph any more."""
    with pytest.raises(CaptureError, match="the output of layer 'a' was changed in place, which it was not"):
        _gradients(_Positions(lambda forward: forward == 3), 3)


def test_an_output_changed_in_place_after_the_forward_is_an_error():
    model, (x, y) = _Positions(lambda forward: False), _x()
    pre = Preconditioning(model, Identity(), damping=1.0)
    for times in range(2):
        with pre.capture():
            output = model.b(model.a(x.view(len(x), 1, 4)))
        output = output.mul_(2) if times else output
        losses = cross_entropy(output.mean(1), y, reduction="none")
        if times:
            with pytest.raises(CaptureError, match="the output of layer 'b'"):
                pre.backward(losses, output)
        else:
            pre.backward(losses, output)


def test_input_changed_in_place_is_an_error():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()

        def forward(self, x):
            h = self.a(x)
            x.mul_(2)
            return self.b(h)

    x, y = _x()
    pre = Preconditioning(Net(), Identity(), damping=1.0)
    with pre.capture():
        output = pre.model(x)
    with pytest.raises((CaptureError, RuntimeError), match=r"in place|inplace"):
        pre.backward(cross_entropy(output, y, reduction="none"), output)


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        h, _ = self.attention(x[:, None], x[:, None], x[:, None])
        return self.last(h[:, 0])


class _Tied(nn.Module):
    """The weight of ``a`` is used again past its own forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(4, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)) @ self.a.weight)


class _Penalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x))) * (1 + self.a.weight.square().sum())


class _TimeFirst(nn.Module):
    """The batch does not lie along the first dimension."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x.view(len(x), 2, 2).transpose(0, 1))).sum(0))


class _OwnForward(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def _shared_parameter():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 3))
    model[2].weight = model[0].weight
    return model


LEFT_OUT = {
    "attention": (_Attention, "attention.out_proj"),
    "tied": (_Tied, "a"),
    "penalty": (_Penalised, "a"),
    "time-first": (_TimeFirst, "a"),
    "own-forward": (lambda: nn.Sequential(_OwnForward(4, 5), nn.Linear(5, 3)), "0"),
    "weight-norm": (lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 3)), "0"),
    "shared-parameter": (_shared_parameter, "2"),
    "batch-norm": (lambda: nn.Sequential(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.Linear(5, 3)), "1"),
}


@pytest.mark.parametrize("which", LEFT_OUT)
def test_what_cannot_be_captured_keeps_its_plain_gradient_and_is_named(which):
    make, name = LEFT_OUT[which]
    model = make().double()
    x, y = _x()
    with pytest.warns(UserWarning, match="plain gradient") as caught:
        pre = _assert_plain_gradient(model, x, y)
    assert name in pre.left_out
    assert name in str(caught[0].message)
    assert pre.layers, "the other layers are still preconditioned"


def test_batch_norm_in_training_mode_has_an_exact_gradient():
    model = _net(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _assert_plain_gradient(model, *_x())


@pytest.mark.parametrize("frozen", ["weight", "bias", "both"])
def test_frozen_parameters_stay_out(frozen):
    model = _net(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    for name in ("weight", "bias") if frozen == "both" else (frozen,):
        getattr(model[0], name).requires_grad_(False)
    x, y = _x()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pre = _assert_plain_gradient(model, x, y)
    assert pre.layers.keys() == ({"2"} if frozen != "bias" else {"0", "2"})


def test_layer_that_the_loss_does_not_reach_has_gradient_zero():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.ignored = nn.Linear(4, 3).double(), nn.Linear(4, 2).double()

        def forward(self, x):
            self.ignored(x)
            return self.used(x)

    x, y = _x()
    pre = Preconditioning(Net(), "foof", damping=1.0, T=1)
    backward(pre, Problem(pre.model, x, y))
    assert not pre.model.ignored.weight.grad.any()
    assert pre.model.used.weight.grad.any()


def test_labels_have_their_own_generator():
    """Sampling labels changes neither dropout nor anything else that draws from torch's generator."""
    x, y = _x()
    found = {}
    for fisher in ("sampled", "full"):
        torch.manual_seed(3)
        model = _net(nn.Linear(4, 5), nn.Dropout(0.5), nn.Linear(5, 3))
        pre = Preconditioning(model, KFAC(fisher=fisher), damping=1.0, T=1)
        masks = []
        for _ in range(3):
            with pre.capture():
                output = model(x)
            masks.append(output.detach().clone())
            pre.backward(cross_entropy(output, y, reduction="none"), output)
        found[fisher] = torch.stack(masks)
    assert torch.equal(found["sampled"], found["full"])


def test_dropout_masks_are_the_same_for_labels_and_loss():
    """Label backward goes through the same graph, so its rows carry the same mask as the gradient's."""
    model = _net(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3))
    x, y = _x(1)
    pre = Preconditioning(model, KFAC(fisher="full"), damping=1.0, T=1, order="same")
    with pre.capture() as captured:
        output = model(x)
    pre.backward(cross_entropy(output, y, reduction="none"), output)
    dead = captured.inputs("2").all()[0, 0, :-1] == 0
    assert 0 < dead.sum() < 50
    B = pre.method.B.means["0"]
    assert not B[dead].any()
    assert B[~dead].any()


def test_warm_up_restores_batch_norm_and_random_state():
    model = _net(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 3))
    before, random = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    pre = Preconditioning(model, "foof", damping=1.0, T=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pre.warm_up([_x(), _x()])
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert pre.method.A.means.keys() == {"0", "3"}
    assert pre.turn.step == 0
    torch.set_rng_state(random)


def test_hooks_are_gone_after_the_block_and_after_an_error():
    p = problem("mlp-bias", 4)
    pre = Preconditioning(p.model, "foof", damping=1.0)
    with pytest.raises(RuntimeError), pre.capture():
        p.model(p.x[:, :2])
    assert not any(layer._forward_hooks for layer in p.layers.values())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduced_losses_are_refused_with_the_reason(reduction):
    p = problem("mlp-bias", 4)
    pre = Preconditioning(p.model, "foof", damping=1.0)
    with pre.capture():
        output = p.model(p.x)
    with pytest.raises(ValueError, match="reduction='none'"):
        pre.backward(cross_entropy(output, p.y, reduction=reduction), output)


def test_backward_without_a_captured_forward_is_refused():
    p = problem("mlp-bias", 4)
    pre = Preconditioning(p.model, "foof", damping=1.0)
    output = p.model(p.x)
    with pytest.raises(RuntimeError, match="inside 'with"):
        pre.backward(cross_entropy(output, p.y, reduction="none"), output)


def test_rows_of_a_convolution_are_patches_in_the_order_of_its_outputs():
    p = problem("conv", 2)
    layer = p.layers["0"]
    pre = Preconditioning(p.model, "foof", damping=1.0)
    with pre.capture() as captured:
        p.model(p.x)
    rows = captured.inputs("0").all()
    weight = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], dim=1)
    assert_close(rows @ weight.T, layer(p.x).flatten(2).transpose(1, 2), 1e-12)
    a, _ = dense.Rows(p.model, layer).one_sample(p.x[1], torch.ones(3, dtype=p.x.dtype))
    assert_close(rows[1], torch.stack(a), 1e-14)
    assert gradient(p, "0").shape == (layer.weight.shape[0], rows.shape[2])


def test_penalty_is_found_although_the_warm_up_saw_none():
    """The warm-up's losses are the likelihood's; a penalty comes with the user's own."""
    p = problem("mlp", 5)
    layer = p.layers["0"]
    pre = Preconditioning(p.model, Identity(), damping=1.0, T=1)
    pre.warm_up([(p.x, p.y)])
    assert not pre.left_out
    with pre.capture():
        output = p.model(p.x)
    losses = cross_entropy(output, p.y, reduction="none") + 0.1 * layer.weight.square().sum()
    wanted = torch.autograd.grad(losses.mean(), layer.weight, retain_graph=True)[0]
    with pytest.warns(UserWarning, match="0 \\(its weight is used outside the layer too\\)"):
        pre.backward(losses, output)
    assert_close(layer.weight.grad, wanted, 1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"likelihood": "bernouli"}, "likelihood must be one of"),
        ({"T": 0}, "T must be"),
        ({"damping": -1.0}, "damping"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Preconditioning(problem("mlp", 2).model, "foof", **({"damping": 1.0} | options))


def _forward(name, seed=0, dtype=torch.float64, captured=True, n=5):
    """(captured, losses, output, model, y) of one of the networks."""
    torch.manual_seed(seed)
    model, x, y = network(name, n)
    model, x = model.to(dtype), x.to(dtype)
    layers, _ = find_layers(model)
    covered = {id(p) for layer in layers.values() for p in layer.parameters}
    block = capture(layers, [p for p in model.parameters() if id(p) not in covered])
    with block if captured else nullcontext():
        output = model(x)
    return block.captured, losses_of(model, output, y), output, model, y


def _vectors(output, fisher):
    likelihood = Categorical()
    if fisher == "full":
        return likelihood.full_vectors(output)
    return likelihood.sampled_vectors(output, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_from_autograd_is_the_one_from_rows(name):
    by_autograd, losses, *_ = _forward(name)
    dense_gradients = by_autograd.gradients(losses)
    by_rows, losses, *_ = _forward(name)
    by_rows.wanted = Wanted(rows=True, matrices=False)
    rows = by_rows.gradients(losses)
    assert dense_gradients.keys() == rows.keys()
    assert any(not G.rows for G in dense_gradients.values()), "no layer's gradient came from autograd"
    for layer, G in rows.items():
        assert G.rows
        assert_close(dense_gradients[layer].dense(), G.dense(), 1e-14, what=layer)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("fisher", ["sampled", "full", "empirical"])
@pytest.mark.parametrize("name", NETWORKS)
def test_output_factor_with_rows_given_up_at_once_is_the_one_from_rows(name, fisher, sharing):
    found, estimate = {}, Estimate(sharing=sharing)
    for moments in (frozenset([estimate]), frozenset()):
        captured, losses, output, *_ = _forward(name)
        captured.reach(losses)
        captured.wanted = Wanted(rows=not moments, moments=moments)
        captured.draw(fisher, output, _vectors, losses, moments)
        captured.gradients(losses)
        found[bool(moments)] = captured.statistics(fisher)
    kept, rows = found[True], found[False]
    assert kept.keys() == rows.keys()
    given_up = 0
    for layer, statistics in rows.items():
        g = statistics.output_gradients
        g = g.sum(2).flatten(0, 1) if sharing == "reduce" else g.flatten(0, 2)
        B = kept[layer].output_moment(estimate).add_to(None, 0.0, 1.0)
        assert_close(B + 1, g.T @ g + 1, 1e-13, what=layer)
        given_up += kept[layer]._output_moments is not None
    assert given_up >= 1 + (sharing == "expand"), "rows were kept all the same"


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_several_estimates_of_one_output_factor_are_summed_up_once(fisher):
    """SUA changes the input factor alone: beside the exact estimate it asks for the same output factor."""
    found = []
    for moments in (frozenset([EXACT]), frozenset([EXACT, Estimate(spatial="sua"), Estimate(groups=2)])):
        captured, losses, output, *_ = _forward("residual")
        captured.reach(losses)
        captured.wanted = Wanted(moments=moments)
        captured.draw(fisher, output, _vectors, losses, moments)
        captured.gradients(losses)
        found.append(captured.statistics(fisher))
    for layer, statistics in found[0].items():
        one, several = (s.output_moment().add_to(None, 0.0, 1.0) for s in (statistics, found[1][layer]))
        assert_close(several, one, 1e-15, what=layer)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_that_is_observed_changes_a_bit_of_training(name, dtype):
    """Hooks or none, labels or none, moments or rows: losses, gradients and buffers are bitwise the same."""
    _, losses, _, model, _ = _forward(name, dtype=dtype, captured=False)
    parameters = list(model.parameters())
    plain = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
    wanted = [losses.detach(), *model.buffers(), *(g / len(losses) for g in plain if g is not None)]
    ways = [("none", frozenset(), False), ("none", frozenset(), True)]
    ways += [(fisher, moments, True) for fisher in ("sampled", "full") for moments in (frozenset([EXACT]), frozenset())]
    ways += [("empirical", frozenset([EXACT]), True)]
    small = {}
    for fisher, moments, inputs in ways:
        captured, losses, output, model, _ = _forward(name, dtype=dtype)
        captured.reach(losses)
        captured.wanted = Wanted(moments=moments if fisher == "empirical" else frozenset(), inputs=inputs)
        captured.draw(fisher, output, _vectors, losses, moments)
        gradients, others = captured.gradients(losses), captured.plain_gradients(losses)
        got = dict(zip((id(p) for p in captured.plain), others, strict=True))
        for layer, G in gradients.items():
            own = captured.layers[layer]
            got |= zip((id(p) for p in own.parameters), own.split(G.dense()), strict=True)
            if G.rows:  # its products are added in another order than autograd's; but in one order always
                assert torch.equal(small.setdefault(layer, G.dense()), G.dense()), f"{layer}, {fisher}, {moments}"
        rows = {id(p) for layer in small for p in captured.layers[layer].parameters}
        found = [losses.detach(), *model.buffers()]
        found += [got[id(p)] for p, g in zip(model.parameters(), plain, strict=True) if g is not None]
        exact = [True] * (1 + len(list(model.buffers())))
        exact += [id(p) not in rows for p, g in zip(model.parameters(), plain, strict=True) if g is not None]
        assert sum(exact) > len(exact) / 2
        for mine, true, bitwise in zip(found, wanted, exact, strict=True):
            assert not bitwise or torch.equal(mine, true), f"{fisher}, {moments}, inputs {inputs}"


def test_inputs_are_let_go_where_nobody_observes():
    captured, losses, *_ = _forward("residual")
    captured.wanted = Wanted(inputs=False)
    captured.gradients(losses)
    held = {name for name, calls in captured.calls.items() if any(len(call.input) for call in calls)}
    assert held == {"last"}, "inputs of a layer on rows are needed, no others"


@pytest.mark.parametrize("fisher", ["sampled", "empirical"])
def test_a_layer_that_a_micro_batch_skips_has_a_gradient_of_its_share(fisher):
    """Its gradient is autograd's where it is used, and has no row where it is not."""

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.extra, self.last = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2, 3)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            h = self.extra(h) + h if len(x) > 3 else h
            return self.last(torch.tanh(h).mean((2, 3)))

    model = Sometimes().double()
    x, y = torch.randn(7, 1, 5, 4, dtype=torch.float64), torch.randint(3, (7,))
    pre = Preconditioning(model, KFAC(fisher=fisher), damping=1e12, T=1, order="same")
    backward(pre, Problem(model, x, y), micro=4)
    losses = torch.cat(
        [
            cross_entropy(model(part), labels, reduction="none")
            for part, labels in zip(x.split(4), y.split(4), strict=True)
        ]
    )
    wanted = torch.autograd.grad(losses.mean(), list(model.parameters()))
    for p, g in zip(model.parameters(), wanted, strict=True):
        assert_close(p.grad * 1e12, g, 1e-4)
