"""From a validated configuration to the objects that train: everything that can still fail, fails here."""

import math
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from kfbench.config.importing import import_object
from kfbench.config.problem_table import MODEL_OPTIONS, is_own
from kfbench.config.schema import Config, Method, Problem, Run
from kfbench.config.specs import check_own_points, find_method
from kfbench.errors import UsageError, described, shown
from kfbench.preconditioners.contract import Preconditioner
from kfbench.problems.datasets import Dataset, load_dataset
from kfbench.problems.likelihoods import LIKELIHOODS, Categorical, Likelihood
from kfbench.problems.locations import file_states
from kfbench.problems.models import build_model
from kfbench.problems.own.dataset import digest, load_own
from kfbench.problems.sequences.characters import check_vectors, load_characters
from kfbench.step_rules.building import with_rest
from kfbench.step_rules.contract import StepRule
from kfbench.updates.collected import FisherBatches
from kfbench.updates.evaluation import CHANGES_ITS_INPUT
from kfbench.updates.isolation import evaluating, forward_isolated
from kfbench.updates.plain_update import PlainUpdate
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.schedule import Amortisation
from kfbench.updates.shared_forward import SharedForward
from kfbench.updates.turn import Turn


def prepare_torch(run: Run) -> torch.device:
    """Threads and determinism for this process; the device, tried out. UsageError where there is none."""
    torch.set_num_threads(run.threads)
    if run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is repeatable only with it
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False
    try:
        device = torch.device(run.device)
        torch.zeros(1, device=device).item()  # a device may have a name and yet not be there
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"device {run.device!r} cannot be used: {described(error)}") from error
    return device


def check_amp(run: Run, device: torch.device, rule: StepRule, opt: str) -> None:
    """UsageError where autocast is asked for and the device has none of that kind, or the step rule cannot use it."""
    if run.amp == "none":
        return
    if rule.looks_at_batch:
        why = "its step rule compares losses to more digits than that precision has"
        raise UsageError(f"method {opt!r}: {why}, got amp {run.amp!r}")
    # Asked by a product: a device may have autocast, and not of this kind, which torch only warns of.
    try:
        ones = torch.ones(2, 2, device=device)
        with warnings.catch_warnings(), torch.autocast(device.type, getattr(torch, run.amp)):
            warnings.simplefilter("ignore")
            product = ones @ ones
        found = str(product.sum().to("cpu").dtype).removeprefix("torch.")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"amp {run.amp!r} cannot be used on device {run.device!r}: {described(error)}") from error
    if found != run.amp:
        raise UsageError(f"amp {run.amp!r} cannot be used on device {run.device!r}: products there are in {found}")


def training_forward(run: Run, device: torch.device) -> Callable[[nn.Module, Tensor], Tensor]:
    """The forward of an update, under autocast where ``amp`` says so; its output is in the precision of the run."""
    if run.amp == "none":
        return lambda model, x: model(x)

    def forward(model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(device.type, getattr(torch, run.amp)):
            output = model(x)
        return output.to(getattr(torch, run.dtype))

    return forward


# What the last data set was made from, and that data set: commands ask for the same one again and again.
_last: tuple[tuple[Any, ...], Dataset] | None = None
_MADE_FROM = ("dataset", "data_dir", "normalize", "likelihood", "train_samples", "pad_to", "augment", "context")


def build_data(config: Config, device: torch.device) -> Dataset:
    """The data set on the device, cut to ``train_samples``, checked against the batch size.

    Its targets are class indices for the categorical likelihood, else the inputs, flattened, or a user's own. The
    last one made in this process is remembered, until its files change.
    """
    global _last
    problem, run = config.problem, config.run
    # Without the device: what was preloaded on the CPU is the same data, and is moved.
    key = (*(getattr(problem, name) for name in _MADE_FROM), run.dtype, _content(problem))
    if _last is None or _last[0] != key:
        _last = None  # freed first, so that no two are held at once
        data = _loaded(problem, device, getattr(torch, run.dtype))
        # Asked again: a synthetic data set has only now been generated.
        _last = ((*key[:-1], _content(problem)), data)
    data = _last[1].to(device)
    _last = (_last[0], data)  # where it is now, so that it moves once
    check_sizes(config, data)
    return data


def _loaded(problem: Problem, device: torch.device, dtype: torch.dtype) -> Dataset:
    if is_own(problem.dataset):
        return load_own(problem, device, dtype).first(problem.train_samples)
    if problem.context is not None:
        return load_characters(problem, device).first(problem.train_samples)
    assert problem.normalize is not None
    data = load_dataset(problem.dataset, problem.data_dir, problem.normalize, device, dtype, pad_to=problem.pad_to or 0)
    data = replace(data.first(problem.train_samples), augment=problem.augment)
    return data if problem.likelihood == "categorical" else data.reconstruction()


def _content(problem: Problem) -> Any:
    """What changes with the content of a data set."""
    if is_own(problem.dataset):
        return digest(problem.dataset), problem.dataset_digest, problem.model
    return file_states(problem.dataset, problem.data_dir), problem.dataset_digest


def build_likelihood(problem: Problem) -> Likelihood:
    """What the model's output means; of characters classes are the last axis, behind positions."""
    assert problem.likelihood is not None
    if problem.context is not None:
        return Categorical(class_dim=-1)
    return LIKELIHOODS[problem.likelihood]()


def check_sizes(config: Config, data: Dataset) -> None:
    """UsageError where a batch or an evaluation asks for more samples than there are."""
    problem, run = config.problem, config.run
    if run.batch_size > len(data.train_inputs):
        raise UsageError(f"batch_size is {run.batch_size}, above the {len(data.train_inputs)} training samples")
    k = problem.eval_samples
    if k is not None and k > min(len(data.train_inputs), len(data.test_inputs)):
        sizes = f"{len(data.train_inputs)} training and {len(data.test_inputs)} test samples"
        raise UsageError(f"eval_samples is {k}, above what there is: {sizes}")


def build_network(problem: Problem, run: Run, data: Dataset, device: torch.device, seed: int) -> nn.Module:
    """The model, initialised from ``seed`` on the CPU so that devices start equal."""
    torch.manual_seed(seed)  # right before: whatever drew in between would change the weights
    options = {key: value for key in MODEL_OPTIONS if (value := getattr(problem, key)) is not None}
    model = build_model(problem.model, data.input_shape, data.outputs, **options)
    inputs = data.train_inputs[:2].clone()  # what a model does to them, it does not to the data set
    before = inputs._version
    try:
        model = model.to(device, getattr(torch, run.dtype))
        with torch.no_grad(), evaluating(model):
            shape = model(inputs).shape
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's model may fail in any way
        raise UsageError(f"model {problem.model!r} fails on a batch: {type(error).__name__}: {error}") from error
    if inputs._version != before:
        raise UsageError(f"model {problem.model!r} {CHANGES_ITS_INPUT}")
    if shape != (min(2, len(data.train_inputs)), *data.output_shape):
        reconstructs = problem.likelihood != "categorical" and data.outputs == math.prod(data.input_shape)
        what = ", the inputs flattened" if reconstructs else ""
        raise UsageError(
            f"model {problem.model!r} returns shape {list(shape)}, expected {[2, *data.output_shape]}{what}"
        )
    return model


def build_method(
    method: Method, model: nn.Module, seed: int, likelihood: Likelihood, fisher_batches: FisherBatches
) -> tuple[torch.optim.Optimizer, Preconditioning | PlainUpdate, float]:
    """The torch optimizer, what makes its directions, and the weight decay that is ours."""
    entry, options = find_method(method.opt), method.options
    # A user's constructor with **kwargs takes options that its entry does not know.
    names = set(entry.optimizer_options) | (set(options) - set(entry.options) if not entry.preconditioner else set())
    arguments = {name: options[name] for name in names if options.get(name) is not None}
    update: Preconditioning | PlainUpdate = PlainUpdate(model)
    if entry.preconditioner:
        preconditioner = _build_preconditioner(method, entry.constructor, entry.preconditioner)
        update = _build_preconditioning(method, preconditioner, model, seed, likelihood, fisher_batches)
    optimizer = _construct(method.opt, entry.optimizer, arguments, list(model.parameters()))
    if entry.preconditioner:
        optimizer = with_rest(optimizer, options, list(model.parameters()), update.plain_parameters)
    # An optimizer that takes weight_decay itself decays in its own way.
    # With a step rule it is a part of the gradient.
    theirs = "weight_decay" in names or options.get("step") is not None
    decay = 0.0 if theirs else float(options.get("weight_decay") or 0.0)
    return optimizer, update, decay


def _build_preconditioner(method: Method, constructor: tuple[str, ...], path: str) -> Preconditioner:
    options = method.options
    # What the entry does not know came through **kwargs; the rest of the options is for the schedule and the step.
    extra = set(options) - set(find_method(method.opt).options)
    arguments = {name: options[name] for name in {*constructor, *extra} if options.get(name) is not None}
    preconditioner: Preconditioner = _construct(method.opt, path, arguments)
    return preconditioner


def _build_preconditioning(
    method: Method,
    preconditioner: Preconditioner,
    model: nn.Module,
    seed: int,
    likelihood: Likelihood,
    fisher_batches: FisherBatches,
) -> Preconditioning:
    try:
        preconditioning = Preconditioning(
            model,
            preconditioner,
            damping=method.options.get("damping", 0.0),  # Muon has none
            T=method.options.get("T", 1),  # a method that averages nothing has no schedule
            S=method.options.get("S"),
            order=method.options.get("order"),
            likelihood=likelihood,
            seed=seed,
            fisher_batches=fisher_batches,
        )
        turn, early = preconditioning.turn, method.options.get("early_refreshes")
        if early is not None:
            if turn.has_own_points:
                raise ValueError(f"early_refreshes needs order 'same' where points are drawn anew, got {early}")
            turn.reschedule(Amortisation(preconditioning.T, preconditioning.S, early))
        return preconditioning
    except ValueError as error:
        raise UsageError(f"method {method.opt!r}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's class may answer what it is asked in any way
        raise UsageError(f"method {method.opt!r} cannot be put to work: {described(error)}") from error


def check_turn(method: Method, turn: Turn, run: Run, data: Dataset) -> None:
    """UsageError where the points and vectors of a refresh are not to be had, or too many for the method."""
    if turn.l2 and not turn.traits.takes_penalty:
        got = f"got weight_decay {method.options['weight_decay']} with step {method.options['step']!r}"
        raise UsageError(f"method {method.opt!r} makes directions of single samples, and a penalty is of none: {got}")
    check_own_points(method.opt, turn.traits.own_points)
    points = turn.points_of_a_refresh(run.batch_size)
    own = turn.traits.own_points or 0
    if own > points:
        raise UsageError(
            f"method {method.opt!r}: fisher_data is {own}, above the batch_size of {run.batch_size}, from which order "
            "'same' takes them; use order 'independent'"
        )
    try:
        turn.traits.check(turn.damping, points, turn.traits.vectors(math.prod(data.output_shape)))
    except ValueError as error:
        raise UsageError(f"method {method.opt!r}: {error}") from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's check may fail in any way
        raise UsageError(f"method {method.opt!r}: its check raised {described(error)}") from error
    check_vectors(method.opt, data, turn.traits.vectors, min(points, run.micro_batch_size or run.batch_size))
    if points > len(data.train_inputs):
        raise UsageError(f"method {method.opt!r}: fisher_data is {points}, above the {len(data.train_inputs)} samples")


def check_chain(method: Method, update: Preconditioning | PlainUpdate, data: Dataset) -> None:
    """UsageError where the method knows chains of layers alone and the model is none; its forward leaves no trace."""
    if not (isinstance(update, Preconditioning) and update.turn.traits.knows_chains_alone):
        return
    try:
        with warnings.catch_warnings(), forward_isolated(update.model):
            warnings.simplefilter("ignore")  # what is left out is said where training begins, by its own forward
            forward = SharedForward(update.model, update.likelihood)
            forward.join(update.turn)
            forward.of_batch(data.train_inputs[:2].clone(), data.train_targets[:2])
    except ValueError as error:
        raise UsageError(f"method {method.opt!r}: {error}") from error


def _construct(opt: str, path: str, arguments: Mapping[str, Any], *positional: Any) -> Any:
    try:
        return import_object(path, "method")(*positional, **arguments)
    except (UsageError, KeyboardInterrupt):  # the import's names the method already
        raise
    except BaseException as error:  # a user's class may fail in any way
        given = ", ".join(f"{k}={shown(v)}" for k, v in sorted(arguments.items())) or "no options"
        what = str(error) if isinstance(error, Exception) else described(error)
        raise UsageError(f"method {opt!r} raised on construction with {given}: {what}") from error


def on_device(state: Any, device: torch.device) -> Any:
    """Nested tensors on the device; where they are there already, the same ones."""
    if isinstance(state, Tensor):
        return state.to(device)
    if isinstance(state, dict):
        return {key: on_device(value, device) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [on_device(value, device) for value in state]
    return state
