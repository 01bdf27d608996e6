"""KFLR, Kronecker-factored low-rank: K-FAC whose B is of the exact output Hessian (Botev, Ritter & Barber 2017).

``B_l = 1/N sum_n (J_n' S_n)(J_n' S_n)'``, J_n the Jacobian of sample n's output with respect to the layer's and
``S_n S_n'`` the Hessian of its loss with respect to the output. With our likelihoods that Hessian is the output
Fisher, so that KFLR is K-FAC with the Fisher of all labels. Damping is that of the paper's appendix B.1, eq 36-38 with
the trace norm: K-FAC's heuristic one. Deviation: instead of all columns of S_n, one for every output, so many
random combinations of them (``fisher_columns``) may be backpropagated; B is then right in the mean.
"""

from kfbench.preconditioners.kfac import KFAC


class KFLR(KFAC):
    """``(B + lambda_B I)^-1 G (A + lambda_A I)^-1`` with B of the exact output Hessian, or of random columns."""

    per_sample = True  # behind batch norm B is right in the mean alone, see ``problems/output_fisher.py``

    def __init__(
        self,
        ema: float = 0.95,
        fisher_columns: int | None = None,
        stat_samples: int | None = None,
        sharing: str | None = None,
        spatial: str | None = None,
        input_groups: int | None = None,
    ) -> None:
        if fisher_columns is not None and fisher_columns < 1:
            raise ValueError(f"fisher_columns must be at least 1, got {fisher_columns}")
        super().__init__(ema, "heuristic", "full", stat_samples, sharing, spatial, input_groups)
        self.fisher_columns = fisher_columns
