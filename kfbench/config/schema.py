"""The schema of the configuration: every key with its type, range, default and one line of help."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import Field

from kfbench.config.command_blocks import Compare, Similarity, Sweep, Wallclock
from kfbench.config.families.descendants import DescendantOptions
from kfbench.config.section import (
    MOST_PIXELS,
    MOST_SEEDS,
    MOST_THREADS,
    MOST_WIDE,
    Float,
    Int,
    Section,
    Seed,
    Text,
    Width,
)


class Problem(Section):
    """What is trained."""

    dataset: Text = Field(
        "fashion-mnist-1k", description="data set, see `kfbench list`; package.module:function, a .npz or a .txt file"
    )
    dataset_digest: Text | None = Field(
        None, description="digest of your own data set's content: another one is refused (default: as it is found)"
    )
    data_dir: Text | None = Field(None, description="folder with data files (default: KFBENCH_DATA, or the cache)")
    normalize: Literal["mnist", "published", "own", "unit", "none"] | None = Field(
        None,
        description="mean and deviation: MNIST's, as in the FOOF paper, those published for each channel, the data "
        "set's own, pixels from 0 to 1, or none, for your own data set (default: there none, else by likelihood, "
        "categorical mnist, or published where images have colours, gaussian own, bernoulli unit)",
    )
    train_samples: Int | None = Field(None, ge=1, description="train on the first N of a fixed shuffle (default: all)")
    eval_samples: Int | None = Field(
        None, ge=1, description="evaluate on the first N training and N test images (default: all)"
    )
    pad_to: Int | None = Field(
        None,
        ge=1,
        le=MOST_PIXELS,
        description="pad smaller images with black to this many pixels a side (default: the "
        "model's: vgg11 and resnets 32)",
    )
    augment: Literal["none", "flip", "crop", "flip-crop"] = Field(
        "none", description="vary training images: mirror half of them, cut them out of 4 black pixels around, or both"
    )
    context: Int | None = Field(
        None, ge=1, le=MOST_PIXELS, description="characters of a sample, where the data set is a text (default: 64)"
    )
    model: Text = Field("mlp", description="model, see `kfbench list`, or package.module:function")
    width: Width | None = Field(
        None,
        ge=1,
        description="width of the widest hidden layer, or channels of a convolutional model's first stage, others in "
        "proportion (default: the model's: mlp 1000, convnet 16, vgg11, resnets and transformer 64)",
    )
    depth: Int | None = Field(None, ge=1, le=MOST_PIXELS, description="blocks of a transformer (default: 2)")
    heads: Int | None = Field(None, ge=1, le=MOST_WIDE, description="heads of its attention (default: 4)")
    tied: bool | None = Field(None, description="its output has the embedding's weights (default: no)")
    bias: bool | None = Field(None, description="train biases (default: the model's, mlp and resnets no)")
    norm: Literal["batch", "batch-fixed", "none"] | None = Field(
        None, description="batch normalisation: trained, with fixed scale and shift, or none (default: resnets batch)"
    )
    init: Literal["he", "careful"] | None = Field(
        None, description="weights at the start: He, or EKFAC's appendix B (default: he; resnets without norm careful)"
    )
    likelihood: Literal["categorical", "gaussian", "bernoulli"] | None = Field(
        None,
        description="what the output means: logits of classes, or of the input reconstructed, a mean or logits of "
        "pixels (default: the model's, your own model categorical)",
    )


class MethodOptions(DescendantOptions):
    """How the gradient becomes an update. Which of these a method has, and their defaults: `kfbench list`."""

    lr: Float | None = Field(None, gt=0, description="learning rate")
    damping: Float | None = Field(None, ge=0, description="lambda, in the convention of docs/conventions.md")
    damping_kind: Literal["heuristic", "standard", "standard-as-released"] | None = Field(
        None, description="how lambda enters K-FAC"
    )
    damping_init: Literal["plain", "factors", "factors-pi"] | None = Field(
        None, description="how lambda enters EKFAC: alone, or as damping of both factors would"
    )
    fisher: Literal["sampled", "full", "empirical"] | None = Field(None, description="labels of the Fisher")
    fisher_columns: Int | None = Field(
        None, ge=1, description="random combinations of the outputs' Fisher that stand for all its columns"
    )
    fisher_data: Int | None = Field(None, ge=1, description="points of the Fisher (default: as many as a batch)")
    block_diagonal: bool | None = Field(None, description="curvature of each layer alone, not of the whole network")
    tolerance: Float | None = Field(
        None, gt=0, lt=1, description="residual at which conjugate gradient stops, of the gradient's norm"
    )
    max_iterations: Int | None = Field(None, ge=1, description="most iterations of conjugate gradient an update")
    warm_start: bool | None = Field(None, description="conjugate gradient begins at the last direction")
    T: Int | None = Field(None, ge=1, description="updates between refreshes of what is cubic (default: 100)")
    S: Int | None = Field(None, ge=1, description="updates before each refresh that feed it (default: min(T, 50))")
    ema: Float | None = Field(None, ge=0, lt=1, description="decay of the running averages (default: 0.95)")
    stat_samples: Int | None = Field(
        None, ge=1, description="samples of each batch that the factors are made from (default: all)"
    )
    early_refreshes: Int | None = Field(
        None, ge=1, description="so many first updates observe and refresh, too, whatever T (default: none)"
    )
    tau1: Float | None = Field(
        None,
        gt=0,
        le=1,
        description="part of each batch that goes through the network once more for the statistics (default: all of "
        "it, in the same pass)",
    )
    sharing: Literal["expand", "reduce"] | None = Field(
        None, description="positions one by one in the factors, or summed over each sample (default: expand)"
    )
    spatial: Literal["exact", "sua"] | None = Field(
        None, description="input factors of convolutions: exact, or alike for all taps of a kernel (default: exact)"
    )
    input_groups: Int | None = Field(
        None, ge=1, description="groups of channels that the input factors of convolutions fall into (default: 1)"
    )
    scale_decay: Float | None = Field(None, ge=0, lt=1, description="decay of the scales of EKFAC-ra (default: 0.75)")
    rescale: Literal["lambda_B", "kfac-norm"] | None = Field(
        None, description="length of the steps of foof-kfac-damping"
    )
    warmup_batches: Int | None = Field(
        None, ge=0, description="batches that fill the averages before update 0 (default: 50)"
    )
    order: Literal["independent", "same"] | None = Field(
        None, description="whether a direction may use its own batch's statistics"
    )
    momentum: Float | None = Field(None, ge=0, lt=1, description="momentum of SGD, on the direction")
    momentum_after_epoch: Int | None = Field(
        None, ge=1, description="epochs before momentum is switched on; until then it is 0 (default: on from the start)"
    )
    nesterov: bool | None = Field(None, description="Nesterov momentum")
    weight_decay: Float | None = Field(None, ge=0, description="decoupled: p *= 1 - lr * weight_decay")
    lr_schedule: Literal["constant", "step", "cosine", "exp", "linear-warmup-cosine"] | None = Field(
        None, description="how lr falls over the run, or first rises and then falls"
    )
    warmup_updates: Int | None = Field(
        None, ge=1, description="updates over which linear-warmup-cosine rises to lr (it has no default)"
    )
    lr_decay: Float | None = Field(
        None, gt=0, le=1, description="factor of step (at 1/2 and 3/4) and exp (at the end) (default: 0.1)"
    )
    lr_step_epochs: Int | None = Field(
        None, ge=1, description="epochs between the falls of step (default: fall at 1/2 and 3/4 of the run)"
    )
    step: Literal["constant", "rescale", "rescale-momentum"] | None = Field(
        None,
        description="how far: by lr, or what minimises a quadratic model with the exact Fisher, alone or with the last "
        "step (default: constant)",
    )
    adapt: Literal["none", "damping", "damping,gamma"] | None = Field(
        None,
        description="what follows how well that model predicts: lambda, and a method's own damping (default: none)",
    )
    model_damping: Float | None = Field(
        None, ge=0, description="lambda of the quadratic model at the start (default: damping)"
    )
    T1: Int | None = Field(None, ge=1, description="updates between changes of lambda (default: 5)")
    T2: Int | None = Field(None, ge=1, description="updates between trials of gamma, a multiple of T (default: 20)")
    tau2: Float | None = Field(
        None, gt=0, le=1, description="part of each batch that the quadratic model is made from (default: 1)"
    )
    average: Float | None = Field(
        None,
        gt=0,
        lt=1,
        description="decay of a running average of the weights, evaluated beside them (default: no average)",
    )
    clip_norm: Float | None = Field(
        None, gt=0, description="norm clipping: c in lr_t = min(lr, sqrt(c / gradient'direction)) (default: none)"
    )
    clip_decay: Float | None = Field(
        None, gt=0, le=1, description="factor of clip_norm at the end of an exponential fall (default: 1)"
    )


class Run(Section):
    """How long, how often, on what."""

    epochs: Int | None = Field(None, ge=1, description="passes over the data (default: 30 on *-1k data sets, else 10)")
    updates: Int | None = Field(None, ge=1, description="optimizer steps, instead of --epochs")
    batch_size: Int = Field(100, ge=1, description="samples per update")
    batch_growth: Int | None = Field(
        None,
        ge=2,
        description="updates within which batches grow exponentially from batch_size to the whole training set "
        "(default: they do not)",
    )
    micro_batch_size: Int | None = Field(None, ge=1, description="samples per forward (default: batch size)")
    target_loss: Float | None = Field(None, description="record when train_loss at an epoch's end reaches this")
    divergence_factor: Float | None = Field(
        None,
        gt=1,
        description="stop a seed, as diverged, when the median loss of the last 50 updates (20 where each is an epoch) "
        "exceeds this multiple of the untrained network's (default: never; in sweeps 10 but for full batches)",
    )
    seed: Seed = Field(0, ge=0, description="the first seed")
    seeds: Int = Field(1, ge=1, le=MOST_SEEDS, description="number of seeds: seed, seed + 1, ...")
    device: Text = Field("cpu", description="any torch device")
    threads: Int = Field(1, ge=1, le=MOST_THREADS, description="threads of the CPU")
    refresh_placement: Literal["spread", "replicated"] | None = Field(
        None,
        description="of several processes each refreshes its part and hands it on, or all refresh all (default: "
        "spread)",
    )
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of model and data")
    amp: Literal["none", "bfloat16"] = Field(
        "none",
        description="autocast of forward and backward of each update; statistics, factors, solves and evaluations stay "
        "in float32",
    )
    deterministic: bool = Field(
        False, description="torch's deterministic algorithms; the record says what was in force"
    )
    quick: bool = Field(False, description="a smoke run of 20 updates, not for comparison")


class Method(Section):
    """One resolved method: which one, what its records are called, every option it has."""

    opt: str
    label: str
    options: dict[str, Any]


class Config(Section):
    """The whole configuration of one command."""

    problem: Problem
    methods: tuple[Method, ...]
    run: Run
    wallclock: Wallclock
    sweep: Sweep = Sweep()
    compare: Compare = Compare()
    similarity: Similarity = Similarity()

    def with_methods(self, methods: Iterable[Method]) -> Config:
        """The same of other methods."""
        return self.model_copy(update={"methods": tuple(methods)})

    def with_run(self, **changes: Any) -> Config:
        """Another run; the changes are values of a validated configuration, or fit its schema."""
        return self._changed("run", changes)

    def with_sweep(self, **changes: Any) -> Config:
        """Another sweep."""
        return self._changed("sweep", changes)

    def with_wallclock(self, **changes: Any) -> Config:
        """Another way of measuring."""
        return self._changed("wallclock", changes)

    def _changed(self, name: str, changes: Mapping[str, Any]) -> Config:
        sections: dict[str, Section] = dict(self)
        return self.model_copy(update={name: sections[name].model_copy(update=changes)})  # which validates nothing


# Blocks that belong to commands; a command ignores the others' blocks.
COMMAND_BLOCKS = ("sweep", "wallclock", "similarity", "compare")
SECTIONS: dict[str, type[Section]] = {
    "problem": Problem,
    "method": MethodOptions,
    "run": Run,
    "wallclock": Wallclock,
    "sweep": Sweep,
    "compare": Compare,
    "similarity": Similarity,
}
TOP_KEYS = ("problem", "methods", "run", *COMMAND_BLOCKS)
