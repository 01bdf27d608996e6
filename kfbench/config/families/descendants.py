"""Shampoo, SOAP and Muon, which learn from mean gradients alone; and who moves what a method does not precondition."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from kfbench.config.section import Float, Int, Section

# Of every method with a direction; None: its own optimizer moves what is not preconditioned, along the plain gradient.
REST_OPTIONS: dict[str, Any] = {"rest": None, "rest_lr": None}


class DescendantOptions(Section):
    """Their options, and those of the rest."""

    rest: Literal["plain", "adamw", "sgd"] | None = Field(
        None,
        description="what moves parameters that the method does not precondition: its own optimizer along their plain "
        "gradient, or a second one (default: plain; shampoo, soap, muon adamw)",
    )
    rest_lr: Float | None = Field(None, gt=0, description="learning rate of --rest (default: that of its --opt)")
    beta1: Float | None = Field(None, ge=0, lt=1, description="decay of the running mean of gradients (default: 0.95)")
    beta2: Float | None = Field(
        None, ge=0, lt=1, description="decay of the second moments of SOAP and --graft adam (default: 0.95, 0.999)"
    )
    sides: Literal["both", "left", "right"] | None = Field(
        None, description="factors of Shampoo and SOAP: of outputs and inputs, of outputs, of inputs (default: both)"
    )
    exponent: Float | None = Field(
        None, gt=0, le=1, description="p in L^-p G R^-p of Shampoo (default: 1/4, of one side 1/2)"
    )
    accumulate: Literal["ema", "sum"] | None = Field(
        None, description="Shampoo's factors: running averages, or sums since the beginning (default: ema)"
    )
    graft: Literal["none", "sgd", "adam"] | None = Field(
        None, description="whose length Shampoo's direction takes, layer by layer (default: none)"
    )
    basis: Literal["power", "eigh"] | None = Field(
        None, description="SOAP's basis at a refresh: one step of power iteration, or eigenvectors (default: power)"
    )
    max_dim: Int | None = Field(
        None, ge=1, description="widest side of a layer that SOAP rotates (default: 10000, as in its paper's code)"
    )
    orthogonalise: Literal["newton-schulz", "svd"] | None = Field(
        None, description="Muon: five Newton-Schulz steps, or exactly (default: newton-schulz)"
    )
    muon_scale: Literal["original", "match-rms-adamw", "none"] | None = Field(
        None,
        description="Muon's length: sqrt(max(1, d_out / d_in)), 0.2 sqrt(max(d_out, d_in)), or 1 (default: original)",
    )
    muon_nesterov: bool | None = Field(None, description="Nesterov momentum inside Muon (default: on)")


_REST = {**REST_OPTIONS, "rest": "adamw"}  # as their papers move biases, norms and embeddings
_SCHEDULED = {"T": 10, "ema": 0.95, "sides": "both"}

# name -> the arguments of its entry; to ``options`` come those that every optimizer has. ``variants``: who chooses
# these options has those defaults.
ROWS: Mapping[str, Mapping[str, Any]] = {
    "shampoo": {
        "summary": "roots of second moments of gradients on both sides: L^-p G R^-p",
        "paper": "Gupta, Koren & Singer 2018, Shampoo: Preconditioned Stochastic Tensor Optimization, ICML, "
        "Algorithm 1; Anil, Gupta, Koren, Regan & Singer 2020, Scalable Second Order Optimization for Deep Learning",
        "path": "from_gradients.shampoo:Shampoo",
        "options": {
            **{"lr": 0.001, "damping": 1e-6, "order": "same", "warmup_batches": 0},
            **{"momentum": 0.9, "momentum_after_epoch": None, "nesterov": False},
            **_SCHEDULED,
            **{"exponent": None, "accumulate": "ema", "graft": "none", "beta2": None},
            **_REST,
        },
        "constructor": ("ema", "accumulate", "exponent", "sides", "graft", "beta2"),
        # As long as steps of these.
        "variants": (({"graft": "sgd"}, {"lr": 0.012}), ({"graft": "adam"}, {"lr": 3e-4})),
    },
    # Momentum is theirs, so the outer one, which would be a second, is no option of theirs.
    "soap": {
        "summary": "Adam in the eigenbasis of Shampoo's factors",
        "paper": "Vyas, Morwani, Zhao, Shapira, Brandfonbrener, Janson & Kakade 2024, SOAP: Improving and Stabilizing "
        "Shampoo using Adam, Algorithm 3",
        "path": "from_gradients.soap:SOAP",
        "options": {
            **{"lr": 0.003, "damping": 1e-8, "order": "independent", "warmup_batches": 1},
            **_SCHEDULED,
            **{"beta1": 0.95, "beta2": 0.95, "basis": "power", "max_dim": 10_000},
            **_REST,
        },
        "constructor": ("ema", "beta1", "beta2", "basis", "sides", "max_dim"),
    },
    "muon": {
        "summary": "momentum, orthogonalised: U V' of its singular value decomposition",
        "paper": "Jordan, Jin, Boza, You, Cesista, Newhouse & Bernstein 2024, Muon: An optimizer for hidden layers in "
        "neural networks; Liu et al. 2025, Muon is Scalable for LLM Training",
        "path": "from_gradients.muon:Muon",
        "options": {
            **{"lr": 0.01, "beta1": 0.95, "muon_nesterov": True},
            **{"orthogonalise": "newton-schulz", "muon_scale": "original"},
            **_REST,
        },
        "constructor": ("beta1", "muon_nesterov", "orthogonalise", "muon_scale"),
        "variants": (({"muon_scale": "match-rms-adamw"}, {"lr": 0.003}),),
    },
}
