"""A user's method whose curvature is looked at like ours."""

import itertools

import pandas as pd
import pytest
import torch

from kfbench.curvature.approximations import KroneckerProduct
from kfbench.preconditioners.kfac import KFAC
from kfbench.updates.batches import held_out_batch
from tests.similarity.test_run import _followed, _step


class OwnKFAC(KFAC):
    """K-FAC that knows nothing of layer 2."""

    def approximation(self, layer):
        """That of K-FAC, but for one layer."""
        return None if layer == "2" else KroneckerProduct(self.B.means[layer].clone(), self.A.means[layer].clone())


def test_a_users_approximation_is_looked_at():
    own = f"{__name__}:OwnKFAC:T=3,S=3,fisher=empirical,damping=0.01"
    trainee = _followed(["kfac:T=3,S=3,fisher=empirical,damping=0.01", own, "sgd"], "sgd", spectrum=["2", "4"], every=1)
    _step(trainee, 4)
    rows = pd.DataFrame(trainee.looks.drain()[2])
    errors = {name: own.set_index(["update", "layer"])["frobenius_error"] for name, own in rows.groupby("method")}
    assert {layer for _, layer in errors["kfac"].index} == {"2", "4"}
    (name,) = errors.keys() - {"kfac"}
    assert {layer for _, layer in errors[name].index} == {"4"}
    for place, error in errors[name].items():
        assert error == pytest.approx(errors["kfac"][place], rel=1e-12)


def _errors(specs, steps=2, **flags):
    trainee = _followed(specs, "sgd", spectrum=["2", "4"], every=1, **flags)
    _step(trainee, steps)
    return trainee, pd.DataFrame(trainee.looks.drain()[2])


def test_other_points_are_held_out():
    """Gauss-Newton is exact on the batch that it is of, and on no other."""
    specs = ["gn-cg", "ekfac:fisher=full,damping=0.01", "sgd"]
    _, own = _errors(specs)
    _, others = _errors(specs, spectrum_points="held-out")
    assert own[own["method"] == "gn-cg"]["frobenius_error"].max() < 1e-6
    assert others[others["method"] == "gn-cg"]["frobenius_error"].min() > 0.1
    assert list(own["update"]) == list(others["update"]) and list(own["layer"]) == list(others["layer"])


def test_held_out_error_is_that_of_the_dense_fisher_of_other_points():
    trainee, rows = _errors(
        ["ekfac:damping=0.01", "sgd:lr=1e-30"], steps=1, spectrum_points="held-out", dtype="float64"
    )
    x, y = held_out_batch(trainee.data, trainee.run.batch_size, trainee.seed, 0)
    assert not any(torch.equal(x, batch) for batch, _ in itertools.islice(trainee.batches(), 6))
    method = trainee.panel.turns["ekfac"].method
    for name, error in rows.set_index("layer")["frobenius_error"].items():
        parameters = list(dict(trainee.model.named_modules())[name].parameters())
        samples = []
        for one, label in zip(x, y, strict=True):
            loss = trainee.likelihood.loss(trainee.model(one[None]), label[None]).sum()
            gradients = torch.autograd.grad(loss, parameters)
            samples.append(torch.cat([gradient.view(len(gradient), -1) for gradient in gradients], dim=1).flatten())
        exact = torch.stack(samples).T @ torch.stack(samples) / len(samples)
        U = torch.kron(method.bases[name].U_B.contiguous(), method.bases[name].U_A.contiguous())
        approximate = U @ method.scales[name].flatten().diag() @ U.T
        assert error == pytest.approx(float((exact - approximate).norm() / exact.norm()), rel=1e-8)


def test_looking_at_other_points_changes_no_training():
    losses = []
    for points in ("batch", "held-out"):
        trainee, _ = _errors(["kfac:T=2,damping=0.01", "ekfac:damping=0.01", "sgd"], steps=4, spectrum_points=points)
        losses.append([parameter.clone() for parameter in trainee.model.parameters()])
    assert all(map(torch.equal, *losses))
