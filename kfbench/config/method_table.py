"""Everything that has a name: methods, models, data sets, with one line and the paper of each.

Plain data, without torch: `kfbench list`, completion and the configuration read it. A new method
adds a row here and its file under ``preconditioners/``; the property tests read the same table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from kfbench.config.families.descendants import REST_OPTIONS, ROWS

# Options that each kind of method understands, with the defaults of that kind.
SGD_CONSTRUCTOR = ("lr", "momentum", "nesterov")
# Those that act on any torch optimizer, a user's own too; None: not in force.
STEP_OPTIONS: dict[str, Any] = {
    **{"lr_schedule": "constant", "lr_decay": 0.1},
    **dict.fromkeys(("lr_step_epochs", "warmup_updates", "clip_norm", "clip_decay", "average")),
}
COMMON_OPTIONS = {"lr": 0.1, **STEP_OPTIONS, "weight_decay": 0.0}
# Of methods whose direction is known before the step; None: not in force, or the rule's own.
RULE_OPTIONS = dict.fromkeys(("step", "adapt", "model_damping", "T1", "T2", "tau2"))
# What a rule that minimises a model decides itself, and what it is then.
FOUND_BY_STEP: Mapping[str, Any] = {
    **{"lr": 1.0, "lr_schedule": "constant", "momentum": 0.0, "nesterov": False},
    **dict.fromkeys(("lr_decay", "lr_step_epochs", "warmup_updates")),
    **dict.fromkeys(("clip_norm", "clip_decay", "momentum_after_epoch")),
}
# Updates between looks at lambda, and between trials of gamma (Martens & Grosse 2015, E.5, E.6).
DEFAULT_T1, DEFAULT_T2 = 5, 20
_MOMENTUM = {"momentum": 0.0, "momentum_after_epoch": None, "nesterov": False}
SGD_OPTIONS: dict[str, Any] = {**COMMON_OPTIONS, **RULE_OPTIONS, **_MOMENTUM}
# S where none is given is min(T, 50): beyond that the average of m = 0.95 forgets anyway (FOOF paper, D.3).
DEFAULT_S = 50
PRECONDITIONED_OPTIONS: dict[str, Any] = {
    **SGD_OPTIONS,
    **REST_OPTIONS,
    **{"damping": 1.0, "T": 100, "S": None, "ema": 0.95},
    **{"warmup_batches": 50, "order": "independent", "tau1": None, "early_refreshes": None},
}
# How the factors of convolutions and sequences are estimated; None: from all samples, expand, exact, in one group.
FACTORS = ("stat_samples", "sharing", "spatial", "input_groups")
_FACTOR_OPTIONS = dict.fromkeys(FACTORS)
# Options that came when verdicts had been committed: None is as if they were not there, so that these hold on.
_LATER = (
    *("momentum_after_epoch", "warmup_updates", "average", "tau1", "early_refreshes"),
    *("fisher_columns", "exponent", "beta2"),
)
ADDED_LATER = (*FACTORS, *REST_OPTIONS, *_LATER, *RULE_OPTIONS)
_KFAC_OPTIONS = {**PRECONDITIONED_OPTIONS, "lr": 0.003, "damping": 0.001}
_EKFAC_OPTIONS = {
    **PRECONDITIONED_OPTIONS,
    **{"lr": 3e-4, "damping": 1e-5, "order": "same"},
    "fisher": "empirical",  # true labels, as in its paper
    "damping_init": "plain",
    **_FACTOR_OPTIONS,
}
_EKFAC_CONVOLUTIONAL = {"lr": 3e-4, "damping": 0.01, "momentum": 0.9}
# Of methods that keep nothing but the newest curvature: no running average, so nothing to fill it with.
NEWEST_ONLY_OPTIONS = {
    k: v for k, v in PRECONDITIONED_OPTIONS.items() if k not in ("S", "ema", "warmup_batches", "tau1")
}


@dataclass(frozen=True)
class Variant:
    """Defaults for those who choose these options; the method's own would diverge there."""

    chosen: Mapping[str, Any]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class MethodEntry:
    """One name for ``--opt``: a preconditioner (or none) over a torch optimizer, and its defaults."""

    summary: str
    paper: str
    optimizer: str  # package.module:Class
    preconditioner: str | None  # package.module:Class
    options: Mapping[str, Any]  # option -> default
    optimizer_options: tuple[str, ...]  # those that the optimizer's constructor takes
    constructor: tuple[str, ...] = ()  # those that the preconditioner's constructor takes
    open_ended: bool = False  # a user's constructor with **kwargs takes any option
    needs_closure: bool = False  # a user's optimizer whose step evaluates the loss itself
    variants: tuple[Variant, ...] = ()  # of those that fit, the last wins
    convolutional: Mapping[str, Any] = field(default_factory=dict)  # what is another default for convolutional models
    lr_range: tuple[float, float] = (1e-5, 1.0)  # where `kfbench sweep` looks, in half decades, without a damping
    lr_follows_damping: bool = True  # for large damping directions tend to G / damping, so lr is swept relative to it

    def accepts(self, option: str) -> bool:
        """Whether this method has that option."""
        return self.open_ended or option in self.options

    def defaults(self, chosen: Mapping[str, Any], convolutional: bool = False) -> dict[str, Any]:
        """option -> default, where these options are ``chosen``, for a convolutional model or any other."""
        defaults = {**self.options, **(self.convolutional if convolutional else {})}
        for variant in self.variants:
            if variant.chosen.items() <= {**self.options, **chosen}.items():
                defaults |= variant.options
        return defaults


_SGD, _ADAM = "torch.optim:SGD", "torch.optim:Adam"
BENZING = "Benzing 2022, Gradient Descent on Neurons and its Link to Approximate Second-Order Optimization, ICML"

_MARTENS = (
    "Martens & Grosse 2015, Optimizing Neural Networks with Kronecker-factored Approximate Curvature, ICML; "
    "Grosse & Martens 2016, A Kronecker-factored approximate Fisher matrix for convolution layers, ICML"
)

_BOTEV = "Botev, Ritter & Barber 2017, Practical Gauss-Newton Optimisation for Deep Learning, ICML"
GEORGE = (
    "George, Laurent, Bouthillier, Ballas & Vincent 2018, Fast Approximate Natural Gradient Descent in a Kronecker-"
    "factored Eigenbasis, NeurIPS"
)


def _preconditioned(
    summary: str,
    paper: str,
    path: str,
    options: Mapping[str, Any],
    constructor: tuple[str, ...] = (),
    variants: tuple[Variant, ...] = (),
    convolutional: Mapping[str, Any] | None = None,
) -> MethodEntry:
    """A method of ours, ``path`` below ``kfbench.preconditioners``, whose direction SGD steps along."""
    path = f"kfbench.preconditioners.{path}"
    entry = MethodEntry(summary, paper, _SGD, path, options, SGD_CONSTRUCTOR, constructor, variants=variants)
    return replace(entry, convolutional=convolutional or {})


def _of_gradients(row: Mapping[str, Any]) -> MethodEntry:
    """One that learns from mean gradients alone; its lr is no multiple of a damping."""
    variants = tuple(Variant(*variant) for variant in row.get("variants", ()))
    entry = _preconditioned(**{**row, "options": {**COMMON_OPTIONS, **row["options"]}, "variants": variants})
    return replace(entry, lr_range=(1e-4, 0.1), lr_follows_damping=False)


# Learning rates and dampings are those of committed sweeps: docs/defaults.md, docs/methods.md, docs/convolutions.md.
METHODS: Mapping[str, MethodEntry] = MappingProxyType(
    {
        "sgd": MethodEntry(
            summary="stochastic gradient descent with momentum",
            paper="Polyak 1964, Some methods of speeding up the convergence of iteration methods",
            optimizer=_SGD,
            optimizer_options=SGD_CONSTRUCTOR,
            preconditioner=None,
            options={**SGD_OPTIONS, "lr": 0.012, "momentum": 0.9},
            convolutional={"lr": 0.02},
            lr_range=(1e-3, 1.0),
        ),
        "adam": MethodEntry(
            summary="Adam",
            paper="Kingma & Ba 2015, Adam: A Method for Stochastic Optimization, ICLR",
            optimizer=_ADAM,
            optimizer_options=("lr",),
            preconditioner=None,
            options={**COMMON_OPTIONS, "lr": 3.4e-4},
            convolutional={"lr": 2e-3},
            lr_range=(1e-5, 1e-2),
        ),
        "adamw": MethodEntry(
            summary="Adam with decoupled weight decay",
            paper="Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, ICLR",
            optimizer=_ADAM,  # not torch's AdamW: weight decay is ours, decoupled for every method
            optimizer_options=("lr",),
            preconditioner=None,
            options={**COMMON_OPTIONS, "lr": 3.4e-4, "weight_decay": 0.01},
            convolutional={"lr": 2e-3},
            lr_range=(1e-5, 1e-2),
        ),
        "foof": _preconditioned(
            summary="gradient descent on neurons: G (A + lambda I)^-1",
            paper=f"{BENZING}, eq 6, Algorithm 1",
            path="foof:FOOF",
            # Not its best cell, lr 0.1, damping 0.01, with which one seed of the default comparison diverges.
            options={**PRECONDITIONED_OPTIONS, "lr": 0.3, "damping": 0.1, **_FACTOR_OPTIONS},
            convolutional={"lr": 0.1, "damping": 1.0, "momentum": 0.9},
            constructor=("ema", *FACTORS),
        ),
        "kfac": _preconditioned(
            summary="Kronecker-factored Fisher: (B + lambda_B I)^-1 G (A + lambda_A I)^-1",
            paper=_MARTENS,
            path="kfac:KFAC",
            options={**_KFAC_OPTIONS, "damping_kind": "heuristic", "fisher": "sampled", **_FACTOR_OPTIONS},
            constructor=("ema", "damping_kind", "fisher", *FACTORS),
            convolutional={"lr": 0.001, "damping": 0.01, "momentum": 0.9},
            # Of the swept ones those that did not diverge at width 1000 either (docs/defaults.md).
            variants=(
                Variant({"damping_kind": "standard"}, {"lr": 0.003, "damping": 0.01}),
                Variant({"damping_kind": "standard", "fisher": "empirical"}, {"lr": 0.001, "damping": 0.01}),
                Variant({"damping_kind": "standard-as-released"}, {"lr": 0.001, "damping": 0.01}),
            ),
        ),
        "kfac-tridiagonal": _preconditioned(
            summary="K-FAC whose inverse couples neighbouring layers of a chain",
            paper=f"{_MARTENS.partition(';')[0]}, section 3.3, appendices C, E.3, I, K",
            path="kfac_tridiagonal:TridiagonalKFAC",
            options={**_KFAC_OPTIONS, "fisher": "sampled"},
            constructor=("ema", "fisher"),
        ),
        "kflr": _preconditioned(
            summary="K-FAC with the exact output Hessian, or random columns of it",
            paper=f"{_BOTEV}, appendix B.1",
            path="kflr:KFLR",
            options={**_KFAC_OPTIONS, "fisher_columns": None, **_FACTOR_OPTIONS},
            constructor=("ema", "fisher_columns", *FACTORS),
            convolutional={"lr": 0.001, "damping": 0.01, "momentum": 0.9},
        ),
        "kfra": _preconditioned(
            summary="K-FAC whose B goes from layer to layer: (W' B W) o (phi' phi / N)",
            paper=f"{_BOTEV}, Algorithm 1, appendix B.1",
            path="kfra:KFRA",
            options={**_KFAC_OPTIONS, "order": "same"},
            constructor=("ema",),
        ),
        "ekfac": _preconditioned(
            summary="K-FAC's eigenbasis with second moments measured in it, on each batch",
            paper=f"{GEORGE}, Algorithm 1",
            path="ekfac:EKFAC",
            options=_EKFAC_OPTIONS,
            convolutional=_EKFAC_CONVOLUTIONAL,
            constructor=("ema", "fisher", "damping_init", *FACTORS),
            variants=tuple(
                Variant({"fisher": fisher, "damping_init": "plain"}, {"lr": 3e-4, "damping": 1e-3})
                for fisher in ("sampled", "full")
            ),
        ),
        "ekfac-ra": _preconditioned(
            summary="EKFAC with a running average of squared mini-batch gradients",
            paper=f"{GEORGE}, section 3.2",
            path="ekfac_ra:EKFACRA",
            options={**_EKFAC_OPTIONS, "scale_decay": 0.75},
            convolutional=_EKFAC_CONVOLUTIONAL,
            constructor=("ema", "fisher", "damping_init", "scale_decay", *FACTORS),
        ),
        "foof-kfac-damping": _preconditioned(
            summary="FOOF with lambda_A of K-FAC: G (A + lambda_A I)^-1, rescaled",
            paper=f"{BENZING}, appendix D.9",
            path="foof_kfac_damping:FOOFWithKFACDamping",
            # Less damping does better at width 250 and diverges at width 1000.
            options={
                **PRECONDITIONED_OPTIONS,
                "lr": 0.001,
                "damping": 0.001,
                "fisher": "sampled",
                "rescale": "lambda_B",
            },
            constructor=("ema", "fisher", "rescale"),
        ),
        "foof-centred": _preconditioned(
            summary="FOOF on centred inputs, the update of natural neural networks",
            paper=f"Desjardins, Simonyan, Pascanu & Kavukcuoglu 2015, Natural Neural Networks, NeurIPS; {BENZING}, "
            "appendix H.2",
            path="foof_centred:CentredFOOF",
            # The second best cell of its sweep: the best, lr 0.11, damping 0.038, diverges at width 1000.
            options={**PRECONDITIONED_OPTIONS, "lr": 0.3, "damping": 1.0},
            constructor=("ema",),
        ),
        "foof-per-sample": _preconditioned(
            summary="FOOF applied to each sample alone, then averaged",
            paper=f"{BENZING}, appendix F",
            path="foof_per_sample:PerSampleFOOF",
            options={**SGD_OPTIONS, **REST_OPTIONS, "lr": 47.0, "damping": 190.0},  # nothing is averaged: no schedule
        ),
        "natural": _preconditioned(
            summary="exact natural gradient of a sub-sampled Fisher: (F + lambda I)^-1 grad",
            paper=f"{BENZING}, appendix I, eq 19-23",
            path="natural:NaturalGradient",
            options={
                **NEWEST_ONLY_OPTIONS,
                "lr": 1e-5,
                "damping": 1e-4,
                "fisher": "sampled",
                "fisher_data": None,
                "block_diagonal": False,
            },
            constructor=("fisher", "fisher_data", "block_diagonal"),
        ),
        "gn-cg": _preconditioned(
            summary="Gauss-Newton by conjugate gradient: (G + lambda I)^-1 grad",
            paper="Martens 2010, Deep learning via Hessian-free optimization, ICML, section 4",
            path="gn_cg:GaussNewtonCG",
            options={
                **NEWEST_ONLY_OPTIONS,
                "lr": 0.012,
                "damping": 8.5e-4,
                "T": 1,
                **{"order": "same", "block_diagonal": False},  # the only order it knows
                **{"tolerance": 1e-3, "max_iterations": 10, "warm_start": True},
            },
            constructor=("block_diagonal", "tolerance", "max_iterations", "warm_start"),
        ),
    }
    | {name: _of_gradients(row) for name, row in ROWS.items()}
)
