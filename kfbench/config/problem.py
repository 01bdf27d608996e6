"""What is trained, spelled out and checked: likelihood, images, normalisation that fit the model and the data set."""

from __future__ import annotations

from kfbench.config.importing import import_object
from kfbench.config.problem_table import (
    DATASETS,
    DEFAULT_CONTEXT,
    MODEL_OPTIONS,
    MODELS,
    OWN_FILES,
    dataset_entry,
    is_own,
    is_own_text,
)
from kfbench.config.schema import Problem
from kfbench.errors import UsageError, unknown

# Of a user's data set; as text, since it needs torch, and is asked for these alone.
_DIGEST, _DIGEST_OF_TEXT = "kfbench.problems.own.dataset:digest", "kfbench.problems.sequences.characters:digest"


def spelled_out(problem: Problem) -> Problem:
    """What the model says of its output and its images, and the normalisation that follows: records say what ran."""
    # Before ``checked``, so the model may still turn out to be none.
    entry, data = MODELS.get(problem.model), dataset_entry(problem.dataset)
    likelihood = problem.likelihood or (entry.likelihood if entry else "categorical")
    if is_own(problem.dataset):  # it comes as it is to be used
        return problem.model_copy(update={"likelihood": likelihood, "normalize": problem.normalize or "none"})
    if data and data.text:
        return problem.model_copy(update={"likelihood": likelihood, "context": problem.context or DEFAULT_CONTEXT})
    if likelihood == "bernoulli" and not problem.likelihood and data and data.real:
        likelihood = "gaussian"  # real numbers are no probabilities
    colours = data and data.channels
    usual = {"gaussian": "own", "bernoulli": "unit"}.get(likelihood, "published" if colours else "mnist")
    pad_to = problem.pad_to or (entry.pad_to if entry else 0) or None
    normalize = problem.normalize or usual
    return problem.model_copy(update={"likelihood": likelihood, "normalize": normalize, "pad_to": pad_to})


def checked(problem: Problem) -> Problem:
    """The same; UsageError for what does not fit together."""
    if dataset_entry(problem.dataset) is None and not is_own(problem.dataset):
        hint = f", package.module:function, or a file {', '.join(OWN_FILES)} or .txt"
        raise unknown("data set", problem.dataset, DATASETS, hint)
    if problem.model in MODELS:
        accepted = MODELS[problem.model].options
        for key in MODEL_OPTIONS:
            if getattr(problem, key) is not None and key not in accepted:
                raise UsageError(f"model {problem.model!r} has no option {key!r}; it has {', '.join(accepted)}")
    elif ":" not in problem.model:  # a path is imported when the model is built: that needs torch
        raise unknown("model", problem.model, MODELS, ", or package.module:function")
    entry = MODELS.get(problem.model)
    if problem.likelihood == "categorical" and entry and entry.likelihood != "categorical":
        raise UsageError(f"model {problem.model!r} takes likelihood 'gaussian' or 'bernoulli', got 'categorical'")
    _check_kind(problem)
    if is_own(problem.dataset):
        _check_own(problem)
        return problem
    if problem.context is None:
        _check_likelihood(problem)
        _check_normalize(problem)
    if not is_own_text(problem.dataset) and problem.dataset_digest is not None:
        got = f"got {problem.dataset_digest!r} with {problem.dataset!r}"
        raise UsageError(f"dataset_digest is of a data set of your own, {got}")
    return problem


def with_digest(problem: Problem) -> Problem:
    """A user's data set with the digest of its content, where none is given: runs on other numbers are other runs.

    UsageError where the data set cannot be had.
    """
    is_text = is_own_text(problem.dataset)
    if not (is_text or is_own(problem.dataset)) or problem.dataset_digest is not None:
        return problem
    digest = import_object(_DIGEST_OF_TEXT if is_text else _DIGEST, "data set")(problem.dataset)
    return problem.model_copy(update={"dataset_digest": digest})


def _check_kind(problem: Problem) -> None:
    """UsageError for a model or an option that takes characters where there are none, or else where there are."""
    entry, model, got = dataset_entry(problem.dataset), MODELS.get(problem.model), f"data set {problem.dataset!r} has"
    is_text = entry is not None and bool(entry.text)
    if model is not None and model.sequential and not is_text:
        use = "use --dataset shakespeare, or the path of a .txt file"
        raise UsageError(f"model {problem.model!r} takes characters, {got} none; {use}")
    if problem.context is not None and not is_text:
        raise UsageError(f"context is of characters, {got} none, got context {problem.context!r}")
    if not is_text:
        return
    if model is not None and not model.sequential:
        raise UsageError(f"model {problem.model!r} takes images, {got} characters; use --model transformer")
    if problem.likelihood != "categorical":
        raise UsageError(f"likelihood of characters must be 'categorical', got {problem.likelihood!r}")
    for key, unset in (("normalize", None), ("pad_to", None), ("augment", "none")):
        if (value := getattr(problem, key)) != unset:
            raise UsageError(f"{key} is for images, {got} characters, got {key} {value!r}")


def _check_own(problem: Problem) -> None:
    """Nothing is known of it here but that it need not be images of bytes."""
    got = f"data set {problem.dataset!r} is your own and comes as it is to be used"
    for key, unset in (("pad_to", None), ("augment", "none"), ("data_dir", None)):
        value = getattr(problem, key)
        if value != unset:
            raise UsageError(f"{got}: {key} is for the data sets of `kfbench list`, got {value!r}")
    if problem.normalize not in ("none", "own"):
        raise UsageError(f"{got}: normalize takes 'none' or 'own', got {problem.normalize!r}")
    if problem.likelihood == "bernoulli" and problem.normalize != "none":
        raise UsageError("likelihood 'bernoulli' takes targets from 0 to 1, so normalize must be 'none', got 'own'")


def _check_likelihood(problem: Problem) -> None:
    if problem.likelihood == "categorical":
        if not DATASETS[problem.dataset].classes:
            raise UsageError(
                f"data set {problem.dataset!r} has no labels for model {problem.model!r} to learn; use "
                "--model autoencoder, or another --likelihood than categorical"
            )
    elif problem.augment != "none":
        raise UsageError(
            f"augment {problem.augment!r} varies images that have labels; with likelihood {problem.likelihood!r} they "
            "are targets too"
        )
    if problem.likelihood == "bernoulli" and DATASETS[problem.dataset].real:
        raise UsageError(
            f"likelihood 'bernoulli' takes pixels from 0 to 1 as targets, data set {problem.dataset!r} has real-valued "
            "ones, which take 'gaussian'"
        )
    if problem.likelihood == "bernoulli" and problem.normalize != "unit":
        raise UsageError(
            f"likelihood 'bernoulli' takes pixels from 0 to 1 as targets, so normalize must be 'unit', "
            f"got {problem.normalize!r}"
        )


def _check_normalize(problem: Problem) -> None:
    """By what the pixels are; only "own" suits all."""
    entry = DATASETS[problem.dataset]
    images = "real-valued pixels" if entry.real else "colour images" if entry.channels else "grey images"
    accepted = ["published" if entry.channels else "mnist", "own", *([] if entry.real else ["unit"])]
    if problem.normalize not in accepted:
        *first, last = map(repr, accepted)
        takes = f"{', '.join(first)} or {last} as normalize, got {problem.normalize!r}"
        raise UsageError(f"data set {problem.dataset!r} has {images}, which take {takes}")
