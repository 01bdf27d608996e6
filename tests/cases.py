"""The one table of methods, and the small problems, through which every property test goes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.preconditioners.contract import FISHERS
from kfbench.preconditioners.ekfac import DAMPING_INITS, EKFAC
from kfbench.preconditioners.ekfac_ra import EKFACRA
from kfbench.preconditioners.foof import FOOF
from kfbench.preconditioners.foof_centred import CentredFOOF
from kfbench.preconditioners.foof_kfac_damping import RESCALES, FOOFWithKFACDamping
from kfbench.preconditioners.foof_per_sample import PerSampleFOOF
from kfbench.preconditioners.from_gradients.muon import Muon
from kfbench.preconditioners.from_gradients.shampoo import Shampoo
from kfbench.preconditioners.from_gradients.soap import SOAP
from kfbench.preconditioners.gn_cg import GaussNewtonCG
from kfbench.preconditioners.kfac import DAMPING_KINDS, KFAC
from kfbench.preconditioners.kfac_tridiagonal import TridiagonalKFAC
from kfbench.preconditioners.kflr import KFLR
from kfbench.preconditioners.kfra import KFRA
from kfbench.preconditioners.natural import NaturalGradient
from kfbench.problems.likelihoods import LIKELIHOODS, Categorical, Likelihood
from kfbench.problems.models import autoencoder, autoencoder_sigmoid
from kfbench.problems.sequences.transformer import transformer
from tests import dense, situations


@dataclass(frozen=True)
class MethodCase:
    """One row: how to make the method, and the dense definition of its direction from A, B, G, lambda.

    Where it is no function of one layer's factors, ``dense`` is None and ``dense_network`` defines the
    directions of all layers.
    """

    name: str
    make: Callable[..., Any]
    dense: Callable[[Tensor, Tensor, Tensor, float], Tensor] | None = None
    fisher: str = "none"
    options: dict[str, Any] = field(default_factory=dict)
    # The definition in place of ``dense`` where it needs more than these: from a ``situations.Situation``.
    dense_of: Callable[[Any], Tensor] | None = None
    # For lambda -> infinity the direction tends to G / lambda.
    limit_is_gradient: bool = True
    # The preconditioner is positive definite.
    descends: bool = True
    # A batch given twice over is the same batch.
    mean_over_samples: bool = True
    # Exact second-order method on one sample: direction = (F + lambda I)^-1 G.
    exact_on_one_sample: bool = False
    # The definition depends on signs of eigenvectors: give it the method's own factors, which the
    # other rows prove, so that LAPACK chooses the same signs.
    own_factors: bool = False
    # From (weight, batch, its vectors) of every batch observed, the gradients and lambda.
    dense_network: Callable[["Observed", dict[str, Tensor], float], dict[str, Tensor]] | None = None
    # It takes chains of layers alone.
    chain: bool = False
    # Keeps running averages; otherwise only the newest batch counts, and there is no ema.
    averages: bool = True
    # In order "independent" it draws points of its own at the current weights.
    own_points: bool = False
    # Takes chains of fully connected layers alone: ``CHAINS``.
    chains_only: bool = False
    # Models whose gradients have singular values near rounding, where float64 does not know the definition.
    unknown_on: tuple[str, ...] = ()
    # The loss after ``properties.golden_loss``; None where it is not portable.
    golden: float | None = None

    def new(self, **more: Any) -> Any:
        return self.make(**self.options, **more)

    def newest_only(self) -> Any:
        """The method, keeping only the newest batch."""
        return self.new(ema=0.0) if self.averages else self.new()


_DENSE_KFAC = {
    "heuristic": dense.kfac_heuristic,
    "standard": dense.kfac_standard,
    "standard-as-released": dense.kfac_as_released,
}
GOLDEN = {
    "foof": 1.0626185365442231,
    "kfac-heuristic-sampled": 0.9821313083674428,
    "kfac-heuristic-full": 0.9697127206724193,
    "kfac-heuristic-empirical": 1.014512542678488,
    "kfac-standard-sampled": 0.8164770002603471,
    "kfac-standard-full": 0.820762872796106,
    "kfac-standard-empirical": 0.8364140801425188,
    "kfac-tridiagonal-sampled": 1.0051558485781475,
    "kfac-tridiagonal-full": 0.9923801425104141,
    "kfac-tridiagonal-empirical": 1.0431913294039554,
    "kflr": 0.9697127206724196,
    "kflr-1-column": 0.9776857377450568,
    "kflr-5-columns": 0.9738338612770466,
    "kfra": 0.9692102282235234,
    "ekfac-plain-sampled": 0.8080781852699565,
    "ekfac-plain-full": 0.8200605582211138,
    "ekfac-plain-empirical": 0.8401390194259722,
    "ekfac-factors-empirical": 1.0694914779437628,
    "ekfac-factors-pi-empirical": 1.014564926073289,
    "ekfac-ra-empirical": 0.8692477682772137,
    "ekfac-ra-sampled": 0.8672949381100314,
    "foof-kfac-damping-lambda_B": 0.8650288668805715,
    "foof-kfac-damping-kfac-norm": 0.9780376940122498,
    "foof-centred": 1.0185665792071281,
    "foof-per-sample": 1.136500225965262,
    "natural-sampled": 0.8221602786776765,
    "natural-sampled-block": 0.8089077822253063,
    "natural-full": 0.89354581263373,
    "natural-full-block": 0.8340392566374557,
    "natural-empirical": 0.9912032242701939,
    "natural-empirical-block": 0.8752000146636683,
    "gn-cg": 0.8918588612527817,
    "gn-cg-block": 0.8345615555396976,
    "shampoo": 0.9285518081801883,
    "shampoo-sum": 0.939345379542302,
    "shampoo-squared": 0.8225276685271243,
    "shampoo-left": 0.9305289239432789,
    "shampoo-right": 0.9262797340638131,
    "shampoo-graft-sgd": 1.010211978457032,
    "shampoo-graft-adam": 0.2746448827328287,
    "muon": 0.7884796639759879,
    "muon-svd": 0.8605360529215166,
    "muon-plain": 0.7948271984531242,
}


Observed = list[tuple[float, "Problem", Tensor]]


def _dense_natural(observed: Observed, G: dict[str, Tensor], damping: float) -> dict[str, Tensor]:
    ((_, p, vectors),) = observed
    return dense.damped_solve(dense.fisher(p.model, [p.layers[name] for name in G], p.x, vectors), G, damping)


def _dense_block_natural(observed: Observed, G: dict[str, Tensor], damping: float) -> dict[str, Tensor]:
    return {name: _dense_natural(observed, {name: matrix}, damping)[name] for name, matrix in G.items()}


def _dense_tridiagonal(observed: Observed, G: dict[str, Tensor], damping: float) -> dict[str, Tensor]:
    p = observed[0][1]
    batches = [(weight, batch.x, vectors) for weight, batch, vectors in observed]
    F, _ = dense.tridiagonal(dense.kronecker_network(p.model, list(p.layers.values()), batches, damping))
    return dense.damped_solve(F, G, 0.0)


METHODS = [MethodCase("foof", FOOF, dense.foof, golden=GOLDEN["foof"])] + [
    MethodCase(
        f"kfac-{kind}-{fisher}",
        KFAC,
        _DENSE_KFAC[kind],
        fisher,
        {"damping_kind": kind, "fisher": fisher},
        limit_is_gradient=kind != "standard-as-released",
        descends=kind != "standard-as-released",
        own_factors=kind == "standard-as-released",
        exact_on_one_sample=kind == "standard" and fisher != "sampled",
        golden=GOLDEN.get(f"kfac-{kind}-{fisher}"),
    )
    for kind in DAMPING_KINDS
    for fisher in FISHERS
]
METHODS += [
    MethodCase(
        f"kfac-tridiagonal-{fisher}",
        TridiagonalKFAC,
        None,
        fisher,
        {"fisher": fisher},
        dense_network=_dense_tridiagonal,
        chain=True,
        golden=GOLDEN.get(f"kfac-tridiagonal-{fisher}"),
    )
    for fisher in FISHERS
]
METHODS += [
    MethodCase(
        f"ekfac-{init}-{fisher}",
        EKFAC,
        dense_of=situations.ekfac,
        fisher=fisher,
        options={"fisher": fisher, "damping_init": init},
        exact_on_one_sample=init == "plain",
        golden=GOLDEN[f"ekfac-{init}-{fisher}"],
    )
    for init in DAMPING_INITS
    for fisher in (FISHERS if init == "plain" else ["empirical"])
]
METHODS += [
    MethodCase(
        f"ekfac-ra-{fisher}",
        EKFACRA,
        dense_of=situations.ekfac_ra,
        fisher=fisher,
        options={"fisher": fisher, "scale_decay": 0.6},
        mean_over_samples=False,  # its scales are N times a squared mean
        golden=GOLDEN[f"ekfac-ra-{fisher}"],
    )
    for fisher in ("empirical", "sampled")
]
METHODS += [
    MethodCase(name, KFLR, dense.kfac_heuristic, fisher, options, golden=GOLDEN[name])
    for name, fisher, options in (
        ("kflr", "full", {}),
        ("kflr-1-column", "columns", {"fisher_columns": 1}),
        ("kflr-5-columns", "columns", {"fisher_columns": 5}),
    )
]
METHODS += [
    MethodCase(
        "kfra",
        KFRA,
        dense_of=situations.kfra,
        fisher="full",
        chains_only=True,
        golden=GOLDEN["kfra"],
    )
]
_DENSE_D9 = {"lambda_B": dense.foof_by_lambda_B, "kfac-norm": dense.foof_with_kfac_norm}
METHODS += [
    MethodCase(
        f"foof-kfac-damping-{rescale}",
        FOOFWithKFACDamping,
        _DENSE_D9[rescale],
        fisher="sampled",
        options={"rescale": rescale},
        golden=GOLDEN[f"foof-kfac-damping-{rescale}"],
    )
    for rescale in RESCALES
]
METHODS += [
    MethodCase(
        "foof-centred",
        CentredFOOF,
        dense_of=situations.foof_centred,
        limit_is_gradient=False,  # the bias is not damped
        golden=GOLDEN["foof-centred"],
    ),
    MethodCase(
        "foof-per-sample",
        PerSampleFOOF,
        dense_of=situations.foof_per_sample,
        descends=False,  # a reweighted mean of gradients
        averages=False,
        golden=GOLDEN["foof-per-sample"],
    ),
]

METHODS += [
    MethodCase(
        f"natural-{fisher}{'-block' * block}",
        NaturalGradient,
        None,
        fisher,
        {"fisher": fisher, "block_diagonal": block},
        dense_network=_dense_block_natural if block else _dense_natural,
        exact_on_one_sample=block and fisher != "sampled",
        averages=False,
        own_points=True,
        golden=GOLDEN.get(f"natural-{fisher}{'-block' * block}"),
    )
    for fisher in FISHERS
    for block in (False, True)
]
METHODS += [
    MethodCase(
        f"gn-cg{'-block' * block}",
        GaussNewtonCG,
        None,
        "full",
        {"block_diagonal": block, "tolerance": 1e-13, "max_iterations": 1000},
        dense_network=_dense_block_natural if block else _dense_natural,
        averages=False,
        golden=GOLDEN.get(f"gn-cg{'-block' * block}"),
    )
    for block in (False, True)
]
_SHAMPOO: dict[str, dict[str, Any]] = {
    "shampoo": {},
    "shampoo-sum": {"accumulate": "sum"},
    "shampoo-squared": {"exponent": 0.5},
    "shampoo-left": {"sides": "left"},
    "shampoo-right": {"sides": "right"},
    "shampoo-graft-sgd": {"graft": "sgd"},
    "shampoo-graft-adam": {"graft": "adam", "beta2": 0.7},
}
METHODS += [
    MethodCase(
        name,
        Shampoo,
        dense_of=situations.shampoo,
        options=options,
        limit_is_gradient=name == "shampoo-squared",  # of p = 1/4 it is G / sqrt(lambda)
        averages=name != "shampoo-sum",
        golden=GOLDEN.get(name),
    )
    for name, options in _SHAMPOO.items()
]
_SOAP: dict[str, dict[str, Any]] = {
    "soap": {"basis": "eigh"},
    "soap-power": {"basis": "power"},
    "soap-left": {"basis": "eigh", "sides": "left"},
    "soap-narrow": {"basis": "eigh", "max_dim": 5},
}
METHODS += [
    MethodCase(
        name,
        SOAP,
        dense_of=situations.soap,
        # Without a past of V; that one is held by tests/preconditioners/test_soap.py.
        options={"beta1": 0.6, "beta2": 0.0, **options},
        golden=GOLDEN.get(name),
    )
    for name, options in _SOAP.items()
]
_MUON: dict[str, dict[str, Any]] = {
    "muon": {},
    "muon-svd": {"orthogonalise": "svd", "muon_scale": "match-rms-adamw", "beta1": 0.6},
    "muon-plain": {"muon_nesterov": False, "muon_scale": "none", "beta1": 0.6},
}
METHODS += [
    MethodCase(
        name,
        Muon,
        dense_of=situations.muon,
        options=options,
        limit_is_gradient=False,
        averages=False,
        # A direction of a tiny singular value counts in full, and is known as little as that value is.
        unknown_on=("autoencoder", "autoencoder-sigmoid") if name == "muon-svd" else (),
        golden=GOLDEN.get(name),
    )
    for name, options in _MUON.items()
]


class SharedLayer(nn.Module):
    """One layer used twice: its calls join along P."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(5, 4), nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.twice(torch.tanh(self.twice(torch.tanh(self.first(x)))))))


class Sequence(nn.Module):
    """Linear layers on [N, P, d], with and without bias, then a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(3, 4), nn.Linear(4, 2, bias=False), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.last(hidden.mean(dim=1))


def _mlp(bias: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4, bias), nn.Tanh(), nn.Linear(4, 6, bias), nn.Tanh(), nn.Linear(6, 3, bias))


def _conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 2, 2, dilation=2, bias=False),
        nn.Tanh(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )


def _images() -> nn.Module:
    """Convolutions of stride 1, whose input factors come from shifts."""
    return nn.Sequential(
        *(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 2, (2, 3), padding=(0, 1), bias=False)),
        *(nn.Tanh(), nn.Flatten(), nn.LazyLinear(3)),
    )


def _autoencoder(make: Callable[..., nn.Module]) -> Callable[[], nn.Module]:
    """6-8-4-2-1-2-4-8-6, with biases."""
    return lambda: make((1, 2, 3), width=8, bias=True)


_TOKENS, _CONTEXT = 3, 2


def _tokens() -> nn.Module:
    """One causal block, with weights large enough for each layer to matter; a label at every position."""
    model = transformer((_CONTEXT,), _TOKENS, width=4, depth=1, heads=2)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.6)
    return model


@dataclass(frozen=True)
class Problem:
    """A model of float64, a batch, its labels (or whatever the likelihood takes) and the likelihood."""

    model: nn.Module
    x: Tensor
    y: Tensor
    likelihood: Likelihood = field(default_factory=Categorical)

    @property
    def layers(self) -> dict[str, nn.Module]:
        kinds = nn.Linear | nn.Conv2d | nn.Embedding
        return {n: m for n, m in self.model.named_modules() if isinstance(m, kinds)}


# name -> (model, shape of one input); every layer has d_out != d_in, but SharedLayer's and one of the tokens'.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: _mlp(False), (5,)),
    "mlp-bias": (lambda: _mlp(True), (5,)),
    "shared": (SharedLayer, (5,)),
    "sequence": (Sequence, (2, 3)),
    "conv": (_conv, (2, 5, 4)),
    "tokens": (_tokens, (_CONTEXT,)),
    "autoencoder": (_autoencoder(autoencoder), (1, 2, 3)),
    "autoencoder-sigmoid": (_autoencoder(autoencoder_sigmoid), (1, 2, 3)),
}
CHAINS = ("mlp", "mlp-bias", "autoencoder", "autoencoder-sigmoid")
# Looked at by few methods: there is one a layer type, not one a method.
LAYER_MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "images": (_images, (2, 5, 4)),
}
# Those whose layers are a chain: fully connected, one row a sample, elementwise functions between them.
CHAINS = ("mlp", "mlp-bias", "autoencoder", "autoencoder-sigmoid")
# Those that reconstruct their input; the others are classifiers.
_RECONSTRUCT = {"autoencoder": "gaussian", "autoencoder-sigmoid": "bernoulli"}
# 7 rows lie on both sides of the widths above, so both orders of multiplication are met.
BATCHES = (1, 4, 7)


def problem(name: str, n: int, seed: int = 0) -> Problem:
    """A small problem, all of it from ``seed``."""
    make, shape = (MODELS | LAYER_MODELS)[name]
    torch.manual_seed(seed)
    with torch.random.fork_rng():
        model = make().double()
        x = torch.randn(n, *shape, dtype=torch.float64)
        if name == "tokens":
            x, y = torch.randint(_TOKENS, (2, n, *shape))
            x[0] = x[0, 0]  # a token that is there twice
            return Problem(model, x, y, Categorical(class_dim=-1))
        with torch.no_grad():
            model(x)  # lazy layers
        y = torch.randint(3, (n,))
    if name not in _RECONSTRUCT:
        return Problem(model, x, y)
    likelihood = LIKELIHOODS[_RECONSTRUCT[name]]()
    x = x if _RECONSTRUCT[name] == "gaussian" else x.sigmoid()  # pixels from 0 to 1
    return Problem(model, x, x.flatten(1), likelihood)
