"""FOOF on centred inputs: the update of natural neural networks (Desjardins et al. 2015; Benzing 2022, appendix H.2).

Natural neural networks write a layer as ``h = V U (a - c) + d``, with c the mean of its inputs and U
whitening them, ``U'U = (Sigma + lambda I)^-1``, and take gradient steps in V and d. Back in the weights W
and the bias b of an unchanged model the step is, with ``g`` the output gradients,

    Delta_W = E[g (a - c)'] (Sigma + lambda I)^-1,   Delta_b = E[g] - Delta_W c

which is FOOF with lambda on the weights' part of A alone. A layer without a bias has nothing that
could take up the mean: there only the factor is centred, ``Delta_W = G (Sigma + lambda I)^-1``, so
that the direction still comes from a positive definite matrix.
"""

from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.linalg import damped_inverses
from kfbench.curvature.statistics import Statistics
from kfbench.layers.estimate import EXACT
from kfbench.layers.sample_rows import RowMap
from kfbench.preconditioners.foof import FOOF


class CentredFOOF(FOOF):
    """FOOF whose factor is the covariance of the inputs.

    ``A`` holds the moments of inputs with a column of ones, which is appended where no bias has brought
    it: mean inputs stand in its last row. Deviations from natural neural networks: the inverse itself in
    place of a whitening reparametrisation, moments averaged as in FOOF, and the P positions of a
    convolution summed as in A.
    """

    def __init__(self, ema: float = 0.95) -> None:
        super().__init__(ema)
        self.biased: dict[str, bool] = {}
        self.centres: dict[str, tuple[Tensor, Tensor]] = {}  # mean input [d], positions P []

    def observe(self, statistics: Statistics) -> None:
        """Average in ``sum_p a a'``, ``sum_p a`` and P of every layer."""
        for name, layer in statistics.items():
            self.biased[name] = layer.has_bias
            self.A.add_moment(name, layer.input_moment(ones=True), layer.counted(EXACT))

    def refresh(self, damping: float) -> None:
        """Mean input and ``(Sigma + lambda I)^-1`` of every layer, Sigma the mean of ``sum_p (a - c)(a - c)'``."""
        self.inverses, self.centres = {}, {}  # freed first, so that no two generations are held at once
        covariances = {}
        for name, moments in self.A.means.items():
            # Cloned, since a view would follow the running average until the next refresh.
            positions, sums = moments[-1, -1].clone(), moments[-1, :-1]
            self.centres[name] = (sums / positions, positions)
            # sum_p (a - c)(a - c)' = sum_p a a' - P c c', where P c are the sums.
            covariances[name] = torch.addr(moments[:-1, :-1], sums, sums / positions, alpha=-1)
        inverses, retried = damped_inverses(covariances, dict.fromkeys(covariances, damping))
        self.inverses.update(inverses)
        self.damping_retries += len(retried)

    def apply(self, gradients: Mapping[str, LayerGradient]) -> dict[str, Tensor]:
        """Directions [d_out, d_in]."""
        directions = {}
        for name, G in gradients.items():
            right: RowMap = self.inverses[name]
            if self.biased[name]:  # else nothing could take up the mean
                right = partial(_centred, self.inverses[name], *self.centres[name])
            directions[name] = G.transform(right=right)
        return directions

    def numbers_sent(self, shape: LayerShape) -> dict[str, int]:
        """None: a covariance is inverted by every process."""
        return {}

    def forget(self, names: Collection[str]) -> None:
        """Layers that are others now start anew."""
        super().forget(names)
        self.centres = {name: centre for name, centre in self.centres.items() if name not in names}

    def state_dict(self) -> dict[str, Any]:
        """FOOF's state, the centres, and which layers have a bias."""
        centres = {name: list(centre) for name, centre in self.centres.items()}
        return super().state_dict() | {"centres": centres, "biased": self.biased}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        super().load_state_dict(state)
        self.centres = {name: (mean, positions) for name, (mean, positions) in state["centres"].items()}
        self.biased = dict(state["biased"])


def _centred(
    inverse: RowMap, mean: Float[Tensor, "d"], positions: Float[Tensor, ""], rows: Float[Tensor, "R d_in"]
) -> Float[Tensor, "R d_in"]:
    """Rows (a, b) to (x, b / P - x c), ``x = (a - b c) (Sigma + lambda I)^-1``: centred, and the bias put right."""
    a, b = rows[:, :-1], rows[:, -1:]
    weights = inverse(a - b * mean)
    return torch.cat([weights, b / positions - (weights @ mean)[:, None]], dim=1)
