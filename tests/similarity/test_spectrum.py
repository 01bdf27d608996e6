"""A user's method whose curvature is looked at like ours."""

import pandas as pd
import pytest

from kfbench.curvature.approximations import KroneckerProduct
from kfbench.preconditioners.kfac import KFAC
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
