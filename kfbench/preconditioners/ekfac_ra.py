"""EKFAC-ra: EKFAC with a running average of squared batch gradients as scales (George et al. 2018, section 3.2)."""

from typing import Any

import torch
from torch import Tensor

from kfbench.curvature.counts import LayerShape
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics
from kfbench.preconditioners.ekfac import EKFAC, without_scales


class EKFACRA(EKFAC):
    """EKFAC whose scales are ``S <- decay S + (1 - decay) N (U_B' G U_A)^2``, G the gradient of N samples.

    At every update, just before S is used, in either order; at a refresh S begins anew from ``s_B s_A'``.
    The factor N (the mean of N independent gradients of mean zero has 1/N of their second moment), the
    decay of 0.75 and the new beginning are not in the paper's text but in its authors' code.
    """

    per_sample = False
    apply_remembers = True
    moments_only = True

    def __init__(
        self,
        ema: float = 0.95,
        fisher: str = "empirical",
        damping_init: str = "plain",
        scale_decay: float = 0.75,
        **factors: Any,
    ) -> None:
        if not 0 <= scale_decay < 1:
            raise ValueError(f"scale_decay must be in [0, 1), got {scale_decay}")
        super().__init__(ema, fisher, damping_init, **factors)
        self.scale_decay = scale_decay
        self.needs_rows = False  # after EKFAC has set it: the squared batch gradient needs no single samples

    def observe(self, statistics: Statistics) -> None:
        """Average in both factors."""
        # The rows are not kept, as no scale is measured on them.
        self.A.add_inputs(statistics)
        self.B.add_output_gradients(statistics)

    def refresh(self, damping: float) -> None:
        """New eigenbases, and K-FAC's eigenvalues for scales."""
        self._refresh_bases(damping)
        self.scales = {name: basis.eigenvalues() for name, basis in self.bases.items()}

    def _rotated(self, name: str, G: LayerGradient) -> Tensor:
        rotated, decay = self.bases[name].rotate(G), self.scale_decay
        # A gradient that is not finite would stay in the average; which it is stays on the device.
        finite = torch.isfinite(rotated.sum())
        counted = torch.where(finite, rotated, 0.0)
        kept = torch.where(finite, rotated.new_full((), decay), 1.0)
        self.scales[name].mul_(kept).addcmul_(counted, counted, value=(1 - decay) * G.samples)
        return rotated

    def numbers_sent(self, shape: LayerShape) -> dict[str, int]:
        """Bases alone: scales follow from the gradient."""
        return {"handed on": shape.both_bases}

    def multiply_adds(self, shape: LayerShape, vectors: int) -> dict[str, float]:
        """Those of standard K-FAC: the average has no product of its own."""
        return without_scales(shape, vectors)
