"""Cases whose answer is known exactly: the toy of the FOOF paper, one sample, linear networks."""

import pytest
import torch
from torch import nn

from kfbench.preconditioners.foof import FOOF
from kfbench.preconditioners.kfac import KFAC
from kfbench.problems.likelihoods import Gaussian
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import problem
from tests.properties import assert_close


def _backward(pre, x, y):
    with pre.capture():
        output = pre.model(x)
    losses = pre.likelihood.loss(output, y)
    pre.backward(losses, output)
    return losses.detach()


def test_toy_example_of_the_foof_paper():
    """Appendix F: SGD's direction (2, 1) raises one loss; FOOF's (-1, 4) solves both in one step.

    Conventions: loss 1/2 (w x - y)^2, no bias, lambda = 0, w = 0; the paper prints minus sums.
    """
    x = torch.tensor([[3.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    model = nn.Linear(2, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    pre = Preconditioning(model, "foof", damping=0.0, T=1, order="same", likelihood="gaussian")
    before = _backward(pre, x, y)
    A = torch.tensor([[5.0, 1.5], [1.5, 0.5]], dtype=torch.float64)
    assert_close(pre.method.A.means[""], A, 1e-15)
    assert_close(model.weight.grad, torch.tensor([[1.0, -4.0]], dtype=torch.float64), 1e-13)
    G = dense.gradient(model, model, Gaussian().loss(model(x), y))
    assert_close(G * -2, torch.tensor([[2.0, 1.0]], dtype=torch.float64), 1e-15)

    with torch.no_grad():
        plain = Gaussian().loss(model(x) - 0.05 * x @ G.T, y)
    assert plain[1] > before[1], "gradient descent raises the second loss"
    torch.optim.SGD(model.parameters(), lr=1.0).step()
    assert_close(model.weight.detach(), torch.tensor([[-1.0, 4.0]], dtype=torch.float64), 1e-13)
    assert float(Gaussian().loss(model(x), y).detach().max()) < 1e-24


@pytest.mark.parametrize("fisher", ["full", "empirical", "sampled"])
def test_standard_kfac_is_exact_on_one_sample_with_one_output(fisher):
    """N = P = 1 and one backpropagated vector: B (x) A is the Fisher block itself."""
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = torch.randn(1, 4, dtype=torch.float64), torch.randn(1, 1, dtype=torch.float64)
    damping = 0.2
    method = KFAC(damping_kind="standard", fisher=fisher)
    pre = Preconditioning(model, method, damping=damping, T=1, order="same", likelihood="gaussian", seed=4)
    _backward(pre, x, y)
    drawn = Gaussian().sampled_vectors(model(x).detach(), torch.Generator().manual_seed(4))
    vectors = {
        "full": torch.ones(1, 1, 1, dtype=torch.float64),
        "empirical": (model(x) - y).detach()[None],
        "sampled": drawn,
    }[fisher]
    for index in (0, 2):
        layer = model[index]
        G = dense.gradient(model, layer, Gaussian().loss(model(x), y))
        F = dense.fisher_block(model, layer, x, vectors)
        wanted = torch.linalg.solve(F + damping * torch.eye(len(F), dtype=F.dtype), G.reshape(-1)).reshape(G.shape)
        got = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
        assert_close(got, wanted, 1e-10, what=f"layer {index}")


@pytest.mark.parametrize("n", [2, 6])
def test_full_fisher_of_a_linear_network_with_squared_loss_factorises_for_any_batch(n):
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3, bias=False)).double()
    x, y = torch.randn(n, 4, dtype=torch.float64), torch.randn(n, 3, dtype=torch.float64)
    pre = Preconditioning(model, KFAC(fisher="full"), damping=1.0, T=1, order="same", likelihood="gaussian")
    _backward(pre, x, y)
    vectors = Gaussian().full_vectors(model(x).detach())
    for name, layer in (("0", model[0]), ("1", model[1])):
        product = torch.kron(pre.method.B.means[name], pre.method.A.means[name])
        assert_close(product, dense.fisher_block(model, layer, x, vectors), 1e-12, what=f"layer {name}")


def test_foof_step_moves_outputs_along_their_gradients():
    """Eq 5 of the FOOF paper: with lambda = 0 and N <= d_in, Delta W a = eta g exactly, sample by sample."""
    p = problem("mlp", 4)
    layer = p.layers["0"]
    pre = Preconditioning(p.model, FOOF(), damping=1e-9, T=1, order="same")
    with pre.capture() as captured:
        output = p.model(p.x)
    losses = torch.nn.functional.cross_entropy(output, p.y, reduction="none")
    pre.backward(losses, output)
    rows = captured.gradients(losses)["0"]  # known by now: asking again costs nothing
    moved = rows.inputs @ layer.weight.grad.T
    assert_close(moved, rows.output_gradients, 1e-5)
