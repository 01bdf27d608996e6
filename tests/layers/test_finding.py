"""Every layer type: its rows, its moments, its directions, against what the module itself computes."""

import copy
import itertools
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from kfbench.layers.contract import by_parameter
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.finding import KINDS, find_layers
from kfbench.problems.likelihoods import Categorical
from kfbench.similarity.loss_decrease import rescaled
from kfbench.similarity.panel import matrices
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import Problem
from tests.properties import assert_close, backward

# name -> (module, shape of one input)
MODULES = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "linear, sequence": (lambda: nn.Linear(4, 3), (5, 4)),
    "linear, image of vectors": (lambda: nn.Linear(4, 3, bias=False), (2, 3, 4)),
    "1d": (lambda: nn.Conv1d(2, 3, 3), (2, 7)),
    "1d, stride, dilation": (lambda: nn.Conv1d(2, 3, 4, 2, 2, 2, bias=False), (2, 9)),
    "1d, same, even kernel": (lambda: nn.Conv1d(2, 3, 4, padding="same", dilation=3), (2, 9)),
    "1d, groups, circular": (lambda: nn.Conv1d(4, 6, 3, padding=2, groups=2, padding_mode="circular"), (4, 6)),
    "2d": (lambda: nn.Conv2d(2, 3, (3, 2), padding=(1, 0)), (2, 5, 4)),
    "2d, one pixel": (lambda: nn.Conv2d(2, 3, 1, stride=2), (2, 5, 4)),
    "2d, one pixel, padded": (lambda: nn.Conv2d(2, 3, 1, padding=1), (2, 3, 4)),
    "2d, valid": (lambda: nn.Conv2d(2, 3, 2, padding="valid", bias=False), (2, 5, 4)),
    "2d, same": (lambda: nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 5, 4)),
    "2d, same, even kernel": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same"), (2, 5, 6)),
    "2d, same, even kernel, reflect": (
        lambda: nn.Conv2d(2, 3, (2, 4), padding="same", padding_mode="reflect"),
        (2, 5, 6),
    ),
    "2d, circular": (lambda: nn.Conv2d(2, 3, 3, padding=(2, 1), padding_mode="circular"), (2, 5, 4)),
    "2d, reflect": (lambda: nn.Conv2d(2, 3, 3, stride=2, padding=(2, 1), padding_mode="reflect"), (2, 5, 4)),
    "2d, replicate": (lambda: nn.Conv2d(2, 3, 2, padding=(0, 3), padding_mode="replicate", bias=False), (2, 5, 4)),
    "2d, groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 4)),
    "2d, depthwise": (lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3, bias=False), (3, 5, 4)),
    "3d": (lambda: nn.Conv3d(2, 3, (2, 3, 1), padding=(1, 0, 2)), (2, 3, 4, 3)),
    "3d, stride, dilation, groups": (
        lambda: nn.Conv3d(4, 2, 2, stride=(1, 2, 1), padding=1, dilation=(2, 1, 1), groups=2),
        (4, 3, 4, 3),
    ),
    "3d, one voxel": (lambda: nn.Conv3d(2, 3, 1, stride=(2, 1, 1)), (2, 3, 4, 3)),
    "3d, replicate": (lambda: nn.Conv3d(2, 3, 3, padding=1, padding_mode="replicate", bias=False), (2, 3, 2, 3)),
    "3d, same": (lambda: nn.Conv3d(1, 2, 2, padding="same"), (1, 3, 2, 3)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(2, 3, 3), (2, 5)),
    "transposed 1d, stride": (lambda: nn.ConvTranspose1d(2, 3, 4, 3, 1, 2, bias=False, dilation=2), (2, 4)),
    "transposed 2d": (lambda: nn.ConvTranspose2d(2, 3, (3, 2)), (2, 3, 4)),
    "transposed 2d, stride": (lambda: nn.ConvTranspose2d(2, 3, 3, (2, 3), (1, 0), (1, 2)), (2, 3, 2)),
    "transposed 2d, cut off": (lambda: nn.ConvTranspose2d(2, 3, 2, 2, padding=(2, 3)), (2, 4, 5)),
    "transposed 2d, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), (4, 3, 2)),
    "transposed 2d, depthwise": (lambda: nn.ConvTranspose2d(3, 3, 3, padding=1, groups=3, bias=False), (3, 3, 4)),
    "transposed 3d": (lambda: nn.ConvTranspose3d(2, 4, 2, (2, 1, 1), 0, (1, 0, 0), groups=2), (2, 2, 3, 2)),
}


def _module(which, n=3):
    make, shape = MODULES[which]
    return make().double(), torch.randn(n, *shape, dtype=torch.float64)


def _layers(module):
    layers, left_out = find_layers(module)
    assert not left_out
    return layers


def test_every_type_is_looked_at():
    looked_at = {type(make()) for make, _ in MODULES.values()}
    assert looked_at | {nn.Embedding} == set(KINDS)  # in test_embedding_layer: its inputs are whole numbers


@pytest.mark.parametrize("which", MODULES)
def test_rows_times_the_matrix_are_what_the_module_returns(which):
    module, x = _module(which)
    layers = _layers(module)
    found = []
    for layer in layers.values():
        rows = layer.input_rows(x)
        assert rows.shape == (len(x), layer.positions(tuple(x.shape)), layer.d_in)
        matrix = layer.matrix(layer.parameters).detach()
        assert matrix.shape == (layer.d_out, layer.d_in)
        found.append(rows @ matrix.T)
    output = module(x).detach()
    wanted = [layer.gradient_rows(output) for layer in layers.values()]
    assert_close(torch.cat(found, 2), torch.cat(wanted, 2), 1e-14)
    assert sum(rows.numel() for rows in wanted) == output.numel()


@pytest.mark.parametrize("which", MODULES)
def test_rows_give_the_gradient_of_every_single_sample(which):
    module, x = _module(which)
    g = torch.randn_like(module(x))
    rows = {n: (layer.gradient_rows(g), layer.input_rows(x)) for n, layer in _layers(module).items()}
    for i in range(len(x)):
        wanted = torch.autograd.grad((module(x[i : i + 1]) * g[i]).sum(), list(module.parameters()))
        got = by_parameter(_layers(module), {n: G[i].T @ a[i] for n, (G, a) in rows.items()})
        for (parameter, mine), true in zip(got, wanted, strict=True):
            assert mine.shape == parameter.shape
            assert_close(mine, true, 1e-13)


@pytest.mark.parametrize("which", MODULES)
def test_matrices_of_all_groups_make_the_parameters_again(which):
    module, _ = _module(which)
    layers = _layers(module)
    again = by_parameter(layers, {n: layer.matrix(layer.parameters) for n, layer in layers.items()})
    assert all(torch.equal(parameter, made) for parameter, made in again)


@pytest.mark.parametrize("ones", [True, False])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("which", MODULES)
def test_input_moment_is_that_of_the_rows(which, sharing, ones):
    module, x = _module(which)
    for layer in _layers(module).values():
        if layer.has_bias and not ones:
            continue
        moment = layer.input_moment([x, x.flip(0)], ones, Estimate(sharing=sharing))
        kept = moment.add_to(None, 0.0, 1.0)
        A = kept if moment.form is None else moment.form.assemble(kept)
        rows = torch.cat([layer.rows_with(ones, x), layer.rows_with(ones, x.flip(0))], dim=1)
        rows = rows.sum(1) if sharing == "reduce" else rows.flatten(0, 1)  # a layer used twice joins along P
        assert_close(A, rows.T @ rows, 1e-13, what=layer.name)


def _planes():
    return [name for name, (_, shape) in MODULES.items() if "d" in name and "3d" not in name and "linear" not in name]


@pytest.mark.parametrize("which", _planes())
def test_mean_over_taps_is_that_of_the_exact_factor(which):
    """SUA, of every padding, group and stride: the mean block of the taps, coupled to nothing; equal trace."""
    module, x = _module(which)
    for layer in _layers(module).values():
        moment = layer.input_moment([x], True, Estimate(spatial="sua"))
        got = moment.form.assemble(moment.add_to(None, 0.0, 1.0))
        rows = layer.rows_with(True, x).flatten(0, 1)
        exact, taps = (rows.T @ rows)[:-1, :-1], math.prod(layer.geometry.kernel)
        blocks = exact.unflatten(0, (-1, taps)).unflatten(2, (-1, taps))
        C = sum(blocks[:, k, :, k] for k in range(taps)) / taps
        assert_close(got[:-1, :-1], torch.kron(C, torch.eye(taps).double()), 1e-13)
        assert got[-1, -1] == len(rows) and not got[-1, :-1].any()
        assert_close(got.trace(), (rows.T @ rows).trace(), 1e-13)


def test_usual_layers_of_stride_one_need_no_patches():
    """Also where padding is of another kind, and for a transposed one."""
    for which in ("1d", "2d", "2d, same, even kernel", "2d, circular", "2d, groups", "transposed 2d, depthwise"):
        module, x = _module(which)
        x = x.repeat(1, *[1] * (x.dim() - 2), 4)
        for layer in _layers(module).values():
            assert layer.form(tuple(x.shape[1:]), True, EXACT) is not None, which


# -- exact cases: a convolution that is a fully connected layer, groups that are layers of their own


@pytest.mark.parametrize("method", ["foof", "kfac"])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_of_single_pixels_is_a_linear_layer_over_them(method, bias):
    conv, linear = nn.Conv2d(3, 4, 1, bias=bias).double(), nn.Linear(3, 4, bias=bias).double()
    x, y = torch.randn(5, 3, 4, 2, dtype=torch.float64), torch.randint(4, (5,))
    _assert_same(conv, linear, x, x.flatten(2).transpose(1, 2), y, method, lambda o: o.flatten(2).mean(2), _mean)


@pytest.mark.parametrize("method", ["foof", "kfac"])
@pytest.mark.parametrize("bias", [True, False])
def test_convolution_with_one_position_is_a_linear_layer_on_the_image(method, bias):
    conv, linear = nn.Conv2d(3, 4, (4, 2), bias=bias).double(), nn.Linear(24, 4, bias=bias).double()
    x, y = torch.randn(5, 3, 4, 2, dtype=torch.float64), torch.randint(4, (5,))
    _assert_same(conv, linear, x, x.flatten(1), y, method, lambda o: o.flatten(1), lambda o: o)


def _mean(output):
    return output.mean(1)


def _assert_same(conv, linear, images, vectors, y, method, of_conv, of_linear):
    with torch.no_grad():
        linear.weight.copy_(conv.weight.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    found = []
    for module, x, end in ((conv, images, of_conv), (linear, vectors, of_linear)):
        pre = Preconditioning(module, method, damping=0.1, T=1, order="same", seed=2)
        with pre.capture():
            output = end(module(x))
        pre.backward(cross_entropy(output, y, reduction="none"), output)
        factors = [pre.method.A.means[""]] + ([pre.method.B.means[""]] if method == "kfac" else [])
        found.append([*factors, *(p.grad.flatten(1) if p.dim() > 1 else p.grad for p in module.parameters())])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-12)


class _Channels(nn.Module):
    """What a depthwise convolution is: a convolution of one channel each."""

    def __init__(self, convs):
        super().__init__()
        self.convs = nn.ModuleList(convs)

    def forward(self, x):
        return torch.cat([conv(c) for conv, c in zip(self.convs, x.split(1, dim=1), strict=True)], dim=1)


@pytest.mark.parametrize("method", ["foof", "kfac", "ekfac", "natural"])
def test_depthwise_convolution_is_a_layer_for_every_channel(method):
    depthwise = nn.Conv2d(3, 6, 3, padding=1, groups=3).double()
    singles = _Channels([nn.Conv2d(1, 2, 3, padding=1).double() for _ in range(3)])
    with torch.no_grad():
        for i, conv in enumerate(singles.convs):
            conv.weight.copy_(depthwise.weight[2 * i : 2 * i + 2])
            conv.bias.copy_(depthwise.bias[2 * i : 2 * i + 2])
    x, y = torch.randn(5, 3, 4, 3, dtype=torch.float64), torch.randint(6, (5,))
    found = []
    for module in (depthwise, singles):
        model = nn.Sequential(module, nn.Tanh(), nn.Flatten(2), _Mean())
        pre = Preconditioning(model, method, damping=0.1, T=1, order="same", seed=2)
        backward(pre, Problem(model, x, y))
        assert len(pre.layers) == 3
        weights = (
            [p.grad for p in model.parameters() if p.dim() > 1],
            [p.grad for p in model.parameters() if p.dim() == 1],
        )
        found.append([torch.cat(part) for part in weights])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-10)


class _Mean(nn.Module):
    def forward(self, x):
        return x.mean(2)


# -- whole directions against the dense definition

NETWORKS = {
    "groups": (
        lambda: [nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 6, 2, groups=2), nn.Tanh()],
        (2, 4, 3),
    ),
    "depthwise": (
        lambda: [nn.Conv2d(2, 4, 3, groups=2, padding="same"), nn.Tanh(), nn.Conv2d(4, 3, 1), nn.Tanh()],
        (2, 4, 3),
    ),
    "transposed": (
        lambda: [nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, groups=2), nn.Tanh(), nn.ConvTranspose2d(4, 2, 2, bias=False)],
        (2, 2, 3),
    ),
    "1d": (
        lambda: [nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.ConvTranspose1d(3, 2, 3, 2)],
        (2, 6),
    ),
    "3d": (
        lambda: [nn.Conv3d(1, 3, 2, padding="same"), nn.Tanh(), nn.ConvTranspose3d(3, 2, 2, bias=False)],
        (1, 2, 3, 2),
    ),
}


def _problem(which, n=4):
    make, shape = NETWORKS[which]
    model = nn.Sequential(*make(), nn.Flatten(), nn.LazyLinear(3)).double()
    x, y = torch.randn(n, *shape, dtype=torch.float64), torch.randint(3, (n,))
    model(x)
    return Problem(model, x, y)


def _directions(p, method, **options):
    pre = Preconditioning(p.model, method, **({"damping": 0.2, "T": 1, "order": "same"} | options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backward(pre, p)
    return pre


DEFINITIONS = {"foof": dense.foof, "kfac": dense.kfac_heuristic}


@pytest.mark.parametrize("method", DEFINITIONS)
@pytest.mark.parametrize("which", NETWORKS)
def test_direction_is_the_dense_one(which, method):
    p = _problem(which)
    pre = _directions(p, method, **({"fisher": "full"} if method == "kfac" else {}))
    vectors = Categorical().full_vectors(p.model(p.x).detach())
    losses = cross_entropy(p.model(p.x), p.y)
    looked_at = 0
    for name, module in p.model.named_modules():
        for group in range(getattr(module, "groups", 0)):
            part = dense.Part(p.model, module, group)
            A, B = part.factors(p.x, vectors)
            own = list(module.parameters())
            G = part.matrix(*_with_bias(torch.autograd.grad(losses, own, retain_graph=True)))
            got = part.matrix(*_with_bias([parameter.grad for parameter in own]))
            assert_close(got, DEFINITIONS[method](A, B, G, 0.2), 1e-11, what=f"{name}[{group}]")
            looked_at += 1
    assert len(pre.layers) == looked_at + 1, "all but the last, which is fully connected"


def _with_bias(tensors):
    return (*tensors, None)[:2]


@pytest.mark.parametrize("which", ["groups", "transposed", "1d", "3d"])
def test_natural_gradient_is_the_dense_one_of_all_parameters(which):
    """Its Fisher couples everything, so nothing here depends on how layers are cut into groups."""
    p = _problem(which, 3)
    _directions(p, "natural", fisher="full")
    parameters = list(p.model.parameters())
    vectors = Categorical().full_vectors(p.model(p.x).detach())
    F = dense.parameter_fisher(p.model, p.x, vectors)
    losses = cross_entropy(p.model(p.x), p.y)
    g = torch.cat([each.reshape(-1) for each in torch.autograd.grad(losses, parameters)])
    wanted = torch.linalg.solve(F + 0.2 * torch.eye(len(F), dtype=F.dtype), g)
    assert_close(torch.cat([parameter.grad.reshape(-1) for parameter in parameters]), wanted, 1e-9)


@pytest.mark.parametrize(("which", "method"), [*itertools.product(NETWORKS, ["foof", "kfac", "ekfac"])])
def test_micro_batches_are_one_batch(which, method):
    found = []
    for micro in (None, 3):
        torch.manual_seed(0)
        p = _problem(which, 5)
        pre = Preconditioning(p.model, method, damping=0.2, T=1, order="same", **_empirical(method))
        backward(pre, p, micro)
        found.append([parameter.grad for parameter in p.model.parameters()])
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-10)


def _empirical(method):
    return {} if method == "foof" else {"fisher": "empirical"}


def test_state_of_groups_restores_bit_for_bit():
    p = _problem("groups")
    pre = _directions(p, "kfac", T=2)
    state = copy.deepcopy(pre.state_dict())
    restored = Preconditioning(p.model, "kfac", damping=0.2, T=2, order="same", seed=7)
    restored.load_state_dict(state)
    found = []
    for each in (pre, restored):
        backward(each, p)
        found.append([parameter.grad.clone() for parameter in p.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_a_corrupt_batch_of_groups_is_noticed():
    p = _problem("depthwise")
    pre = _directions(p, "foof")
    p.x[0, 1, 0, 0] = math.inf  # of the second group alone
    with pytest.warns(UserWarning, match=r"statistics of layer '0\[0\]' are not finite, so they are left out"):
        backward(pre, p)


def test_directions_of_groups_are_rescaled_each_by_itself():
    p = _problem("groups")
    layers, _ = find_layers(p.model)
    some, like = ({q: torch.randn_like(q) for q in p.model.parameters()} for _ in range(2))
    got, wanted = matrices(layers, rescaled(some, like, layers)), matrices(layers, like)
    for name, own in matrices(layers, some).items():
        assert_close(got[name], own / own.norm() * wanted[name].norm(), 1e-13, what=name)


# -- what cannot be


def test_groups_of_one_module_are_left_out_together():
    """A penalty on one group's weights: a parameter is either captured or plain."""
    p = _problem("groups")
    pre = Preconditioning(p.model, "foof", damping=0.2, T=1)
    with pre.capture():
        output = p.model(p.x)
    losses = cross_entropy(output, p.y, reduction="none") + p.model[2].weight[:2].square().sum()
    wanted = torch.autograd.grad(losses.mean(), p.model[2].weight, retain_graph=True)[0]
    with pytest.warns(UserWarning, match=r"2\[0\], 2\[1\] \(its weight is used outside the layer too\)"):
        pre.backward(losses, output)
    assert_close(p.model[2].weight.grad, wanted, 1e-13)
    assert set(pre.layers) == {"0", "5"}


class _Sized(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.last, self.size = nn.ConvTranspose1d(2, 3, 3, stride=2), nn.Linear(3, 3), 9

    def forward(self, x):
        return self.last(torch.tanh(self.up(x, output_size=[self.size])).mean(2))


def test_transposed_convolution_of_another_size_is_left_out():
    model = _Sized().double()
    p = Problem(model, torch.randn(4, 2, 4, dtype=torch.float64), torch.randint(3, (4,)))
    pre = Preconditioning(model, "foof", damping=0.2, T=1)
    backward(pre, p)  # the size that its options give
    assert set(pre.layers) == {"up", "last"}
    model.size = 10
    with pytest.warns(UserWarning, match=r"up \(its output is of another size"):
        backward(pre, p)
    losses = cross_entropy(model(p.x), p.y)
    assert_close(model.up.weight.grad, torch.autograd.grad(losses, model.up.weight)[0], 1e-13)


def test_images_without_a_batch_are_no_batch():
    model = nn.Sequential(nn.Conv2d(3, 2, 2), nn.Flatten(1), nn.Linear(6, 3)).double()
    x, y = torch.randn(3, 3, 4, dtype=torch.float64), torch.randint(3, (2,))
    pre = Preconditioning(model, "foof", damping=0.2, T=1)
    with pre.capture():
        output = model(x)
    with pytest.warns(UserWarning, match=r"0 \(its batch does not lie along the first dimension"):
        pre.backward(cross_entropy(output, y, reduction="none"), output)


@pytest.mark.parametrize("which", MODULES)
def test_products_with_rows_that_are_never_made(which):
    """By convolutions, of every padding, group and stride, the products with the rows."""
    module, x = _module(which)
    for layer in _layers(module).values():
        rows = layer.input_rows(x)
        products = layer.sample_rows(lambda: x, *rows.shape[:2])
        matrix, w = torch.randn(layer.d_out, layer.d_in).double(), torch.randn(*rows.shape[:2], layer.d_out).double()
        assert_close(products.times(matrix), rows @ matrix.T, 1e-13, what=layer.name)
        assert_close(products.weighted_sum(w), w.flatten(0, 1).T @ rows.flatten(0, 1), 1e-13, what=layer.name)
