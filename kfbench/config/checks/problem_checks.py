"""What of a problem follows from its model and data set, and what does not fit together."""

from kfbench.config.problem_table import DATASETS, DEFAULT_CONTEXT, MODEL_OPTIONS, MODELS, dataset_entry
from kfbench.config.schema import Problem
from kfbench.errors import UsageError, unknown


def spelled_out(problem: Problem) -> Problem:
    """What the model says of its output and its images, and the normalisation that follows: records say what ran."""
    # Before _check_problem, so the model may still turn out to be none.
    entry, data = MODELS.get(problem.model), dataset_entry(problem.dataset)
    likelihood = problem.likelihood or (entry.likelihood if entry else "categorical")
    if likelihood == "bernoulli" and not problem.likelihood and data and data.real:
        likelihood = "gaussian"  # real numbers are no probabilities
    if data and data.text:
        return problem.model_copy(update={"likelihood": likelihood, "context": problem.context or DEFAULT_CONTEXT})
    colours = data and data.channels
    usual = {"gaussian": "own", "bernoulli": "unit"}.get(likelihood, "published" if colours else "mnist")
    pad_to = problem.pad_to or (entry.pad_to if entry else 0) or None
    normalize = problem.normalize or usual
    return problem.model_copy(update={"likelihood": likelihood, "normalize": normalize, "pad_to": pad_to})


def check_problem(problem: Problem) -> None:
    """UsageError, one sentence, for names that are not known and for what does not fit together."""
    if dataset_entry(problem.dataset) is None:
        raise unknown("data set", problem.dataset, DATASETS, ", or the path of a .txt file")
    if problem.model in MODELS:
        accepted = MODELS[problem.model].options
        for key in MODEL_OPTIONS:
            if getattr(problem, key) is not None and key not in accepted:
                raise UsageError(f"model {problem.model!r} has no option {key!r}; it has {', '.join(accepted)}")
    elif ":" not in problem.model:  # a path is imported when the model is built: that needs torch
        raise unknown("model", problem.model, MODELS, ", or package.module:function")
    if _checked_kind(problem) == "images":  # only now: it looks the data set up
        _check_likelihood(problem)
        _check_normalize(problem)


def _checked_kind(problem: Problem) -> str:
    """Whether images or characters are trained on; UsageError for a model or an option that takes the other."""
    entry, model = dataset_entry(problem.dataset), MODELS.get(problem.model)
    is_text = entry is not None and bool(entry.text)
    kind, other = ("characters", "images") if is_text else ("images", "characters")
    if model is not None and model.sequential != is_text:
        use = "use --model transformer" if is_text else "use --dataset shakespeare, or the path of a .txt file"
        raise UsageError(f"model {problem.model!r} takes {other}, data set {problem.dataset!r} has {kind}; {use}")
    if is_text and problem.likelihood != "categorical":
        raise UsageError(f"likelihood of characters must be 'categorical', got {problem.likelihood!r}")
    unfit = ("normalize", "pad_to") if is_text else ("context",)
    for key in unfit:
        if (value := getattr(problem, key)) is not None:
            raise UsageError(f"{key} is for {other}, data set {problem.dataset!r} has {kind}, got {key} {value!r}")
    if is_text and problem.augment != "none":
        raise UsageError(f"augment is for images, data set {problem.dataset!r} has characters, got {problem.augment!r}")
    return kind


def _check_normalize(problem: Problem) -> None:
    """By what the pixels are; only "own" suits all."""
    entry = DATASETS[problem.dataset]
    images = "real-valued pixels" if entry.real else "colour images" if entry.channels else "grey images"
    accepted = ["published" if entry.channels else "mnist", "own", *([] if entry.real else ["unit"])]
    if problem.normalize not in accepted:
        *first, last = map(repr, accepted)
        takes = f"{', '.join(first)} or {last} as normalize, got {problem.normalize!r}"
        raise UsageError(f"data set {problem.dataset!r} has {images}, which take {takes}")


def _check_likelihood(problem: Problem) -> None:
    if problem.likelihood == "categorical":
        if not DATASETS[problem.dataset].classes:
            raise UsageError(
                f"data set {problem.dataset!r} has no labels for model {problem.model!r} to learn; use "
                "--model autoencoder, or another --likelihood than categorical"
            )
        if problem.model in MODELS and MODELS[problem.model].likelihood != "categorical":
            raise UsageError(f"model {problem.model!r} takes likelihood 'gaussian' or 'bernoulli', got 'categorical'")
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
