"""Configuration: YAML + flags -> one validated, frozen object, for all commands.

Keys of the YAML, options of a SPEC and flags are the same names (underscores, dashes). Later wins:
defaults, ``--config FILE``, flags, ``--set a.b=c``. A value inside a SPEC wins over a flag.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from kfbench.errors import UsageError, shown, unknown
from kfbench.methods import find_method, parse_spec
from kfbench.registry import DATASETS, METHODS, MODELS, MethodEntry


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _no_bool_text(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be text, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Text = Annotated[str, BeforeValidator(_no_bool_text)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Problem(Section):
    """What is trained."""

    dataset: Text = Field("fashion-mnist-1k", description="data set, see `kfbench list`")
    data_dir: Text | None = Field(None, description="folder with data files (default: KFBENCH_DATA, or the cache)")
    normalize: Literal["mnist", "own"] = Field(
        "mnist", description="mean and deviation: MNIST's, as in the FOOF paper, or the data set's own"
    )
    train_samples: Int | None = Field(None, ge=1, description="train on the first N of a fixed shuffle (default: all)")
    eval_samples: Int | None = Field(
        None, ge=1, description="evaluate on the first N training and N test images (default: all)"
    )
    model: Text = Field("mlp", description="model, see `kfbench list`, or package.module:function")
    width: Int | None = Field(None, ge=1, description="width of the hidden layers (default: the model's, mlp 1000)")
    bias: bool | None = Field(None, description="train biases (default: the model's, mlp no)")


class MethodOptions(Section):
    """How the gradient becomes an update. Which of these a method has, and their defaults: `kfbench list`."""

    lr: Float | None = Field(None, gt=0, description="learning rate")
    damping: Float | None = Field(None, ge=0, description="lambda, in the convention of docs/conventions.md")
    damping_kind: Literal["heuristic", "standard", "standard-as-released"] | None = Field(
        None, description="how lambda enters K-FAC"
    )
    fisher: Literal["sampled", "full", "empirical"] | None = Field(None, description="labels of the Fisher")
    T: Int | None = Field(None, ge=1, description="updates between refreshes of what is cubic (default: 100)")
    S: Int | None = Field(None, ge=1, description="updates before each refresh that feed it (default: min(T, 50))")
    ema: Float | None = Field(None, ge=0, lt=1, description="decay of the running averages (default: 0.95)")
    warmup_batches: Int | None = Field(
        None, ge=0, description="batches that fill the averages before update 0 (default: 50)"
    )
    order: Literal["independent", "same"] | None = Field(
        None, description="whether a direction may use its own batch's statistics"
    )
    momentum: Float | None = Field(None, ge=0, lt=1, description="momentum of SGD, on the direction")
    nesterov: bool | None = Field(None, description="Nesterov momentum")
    weight_decay: Float | None = Field(None, ge=0, description="decoupled: p *= 1 - lr * weight_decay")
    lr_schedule: Literal["constant", "step", "cosine", "exp"] | None = Field(
        None, description="how lr falls over the run"
    )
    lr_decay: Float | None = Field(
        None, gt=0, le=1, description="factor of step (at 1/2 and 3/4) and exp (at the end) (default: 0.1)"
    )


class Run(Section):
    """How long, how often, on what."""

    epochs: Int | None = Field(None, ge=1, description="passes over the data (default: 30 on *-1k data sets, else 10)")
    updates: Int | None = Field(None, ge=1, description="optimizer steps, instead of --epochs")
    batch_size: Int = Field(100, ge=1, description="samples per update")
    micro_batch_size: Int | None = Field(None, ge=1, description="samples per forward (default: batch size)")
    target_loss: Float | None = Field(None, description="record when train_loss at an epoch's end reaches this")
    seed: Int = Field(0, ge=0, le=2**32 - 1, description="the first seed")
    seeds: Int = Field(1, ge=1, description="number of seeds: seed, seed + 1, ...")
    device: Text = Field("cpu", description="any torch device")
    threads: Int = Field(1, ge=1, description="threads of the CPU")
    dtype: Literal["float32", "float64"] = Field("float32", description="precision of model and data")
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


# Blocks that belong to commands; a command ignores the others' blocks.
COMMAND_BLOCKS = ("train", "sweep", "wallclock", "similarity", "compare")
SECTIONS: dict[str, type[Section]] = {"problem": Problem, "method": MethodOptions, "run": Run}
_TOP_KEYS = ("problem", "methods", "run", *COMMAND_BLOCKS)


def load_config(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    specs: Sequence[str] = (),
    assignments: Sequence[str] = (),
) -> Config:
    """Merge and validate; UsageError, one sentence, for whatever does not fit.

    ``flags`` are values by key, as text or typed; ``specs`` replace the file's methods;
    ``assignments`` are "a.b=c".
    """
    tree = read_yaml(file) if file else {}
    flags = {key: value for key, value in (flags or {}).items() if value is not None}
    for name, section in (("problem", Problem), ("run", Run)):
        tree[name] = {**_given(tree, name), **{k: v for k, v in flags.items() if k in section.model_fields}}
    _keep_budget(tree["run"], flags)
    if specs:
        tree["methods"] = list(specs)
    for assignment in assignments:
        _assign(tree, assignment)
    _keep_budget(_given(tree, "run"), [assignment.partition("=")[0].removeprefix("run.") for assignment in assignments])
    for key in tree:
        if key not in _TOP_KEYS:
            raise unknown("key", key, _TOP_KEYS)
    problem = _section(Problem, _given(tree, "problem"))
    run = _with_budget(_section(Run, _given(tree, "run")), problem)
    method_flags = {key: value for key, value in flags.items() if key in MethodOptions.model_fields}
    methods = _methods(tree.get("methods"), method_flags)
    _check_problem(problem)
    return Config(problem=problem, methods=methods, run=run)


def read_yaml(file: Path) -> dict[str, Any]:
    """A YAML mapping; 1e-3 is a number, a key given twice is an error. UsageError for anything else."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise UsageError(f"config {file} cannot be read: {error}") from error
    tree = _parse_yaml(text, f"config {file}")
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UsageError(f"config {file} must be a mapping of sections ({', '.join(_TOP_KEYS)})")
    return tree


class _Loader(yaml.SafeLoader):
    """YAML 1.1 but for floats such as 1e-3, and for duplicate keys."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)  # here, before "<<" merges other mappings into it
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for i, key in enumerate(keys):
            if any(key.value == other.value for other in keys[:i]):
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} is given twice", key.start_mark)
        return node


def _parse_yaml(text: str, what: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{what} cannot be read: {error}") from error
    except Exception as error:  # a tag on the wrong value makes PyYAML fail in many ways: !!timestamp x
        raise UsageError(f"{what} cannot be read: {type(error).__name__}: {error}") from error


_SCIENTIFIC = re.compile(r"^[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _SCIENTIFIC, list("-+0123456789."))


def _assign(tree: dict[str, Any], assignment: str) -> None:
    path, separator, text = assignment.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise UsageError(f"--set takes a.b=c, got {shown(assignment)}")
    value = _parse_yaml(text, f"--set {shown(assignment)}")
    inner: Any = tree
    for key in keys[:-1]:
        inner = _inner(inner, key)
    if not isinstance(inner, dict):
        raise UsageError(f"--set {shown(assignment)}: {shown('.'.join(keys[:-1]))} is no section")
    inner[keys[-1]] = value


def _inner(outer: Any, key: str) -> Any:
    """What lies at ``key`` of a mapping (made where there is nothing) or of a list; None for anything else."""
    if isinstance(outer, dict):
        if outer.get(key) is None:
            outer[key] = {}
        return outer[key]
    if not isinstance(outer, list) or key not in map(str, range(len(outer))):
        return None
    if isinstance(outer[int(key)], str):  # a SPEC, opened up so that its options can be set
        opt, options = parse_spec(outer[int(key)])
        outer[int(key)] = {"opt": opt, **options}
    return outer[int(key)]


def _given(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = tree.get(name)
    if given is not None and not isinstance(given, dict):
        raise UsageError(f"section {name!r} must be a mapping, got {shown(given)}")
    return given or {}


def _keep_budget(run: dict[str, Any], later: Collection[str]) -> None:
    """Where the later source gives epochs or updates, the other one of an earlier source is void."""
    for key, other in (("epochs", "updates"), ("updates", "epochs")):
        if key in later and other not in later and run.get(key) is not None:
            run.pop(other, None)


_S = TypeVar("_S", bound=Section)


def _section(section: type[_S], values: Mapping[str, Any], where: str = "") -> _S:
    """Validate, or say in one sentence what does not fit."""
    for key in values:
        if key not in section.model_fields:
            raise unknown("key" if not where else f"option of {where}", str(key), section.model_fields)
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        raise UsageError(_sentence(error, where)) from None


def _sentence(error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    key = ".".join(str(part) for part in first["loc"][:1])
    return f"{where + ': ' if where else ''}{key} {message}, got {shown(first['input'])}"


def _with_budget(run: Run, problem: Problem) -> Run:
    if run.epochs is not None and run.updates is not None:
        raise UsageError(f"give epochs or updates, not both: got epochs {run.epochs} and updates {run.updates}")
    if run.micro_batch_size is not None and run.micro_batch_size > run.batch_size:
        raise UsageError(f"micro_batch_size is {run.micro_batch_size}, above the batch_size of {run.batch_size}")
    if run.quick:
        return run.model_copy(update={"epochs": None, "updates": 20})
    if run.epochs is None and run.updates is None:
        return run.model_copy(update={"epochs": 30 if problem.dataset.endswith("-1k") else 10})
    return run


def _check_problem(problem: Problem) -> None:
    if problem.dataset not in DATASETS:
        raise unknown("data set", problem.dataset, DATASETS)
    if problem.model in MODELS:
        accepted = MODELS[problem.model].options
        for key in ("width", "bias"):
            if getattr(problem, key) is not None and key not in accepted:
                raise UsageError(f"model {problem.model!r} has no option {key!r}; it has {', '.join(accepted)}")
    elif ":" not in problem.model:
        raise unknown("model", problem.model, MODELS, ", or package.module:function")


def _methods(entries: Any, flags: Mapping[str, Any]) -> tuple[Method, ...]:
    if entries is None:
        raise UsageError(f"no method given: use --opt, with one of {', '.join(METHODS)} or package.module:Class")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"methods must be a list of SPECs, got {shown(entries)}")
    parsed = [parse_spec(entry) for entry in entries]
    found = [find_method(opt) for opt, _ in parsed]
    for flag in flags:
        if not any(entry.accepts(flag) for entry in found):
            opts = " or ".join(repr(opt) for opt, _ in parsed)
            accepted = ", ".join(sorted({option for entry in found for option in entry.options}))
            raise UsageError(
                f"{opts} has no option {flag!r}, as --{flag.replace('_', '-')} was given; it has {accepted}"
            )
    resolved = [(opt, _options(opt, entry, given, flags)) for (opt, given), entry in zip(parsed, found, strict=True)]
    named = labels(resolved)
    for i, label in enumerate(named):
        if label in named[:i]:
            raise UsageError(f"method {label!r} is given twice with the same options")
    return tuple(
        Method(opt=opt, label=label, options=options) for (opt, options), label in zip(resolved, named, strict=True)
    )


def _options(opt: str, entry: MethodEntry, given: Mapping[str, Any], flags: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of the method: its default, a flag, or what the SPEC says; none there means the default."""
    given = {key: value for key, value in given.items() if value is not None}
    for option in given:
        if not entry.accepts(option):
            raise unknown(f"option of {opt!r}", option, entry.options)
    wanted = {**entry.options, **{k: v for k, v in flags.items() if entry.accepts(k)}, **given}
    wanted = {k: _with_tuples(v) for k, v in wanted.items()}
    ours = {k: v for k, v in wanted.items() if k in MethodOptions.model_fields and v is not None}
    # A default is not checked: Adagrad has an lr_decay of its own, 0, which ours may not be.
    to_check = {k: v for k, v in ours.items() if (type(v), v) != (type(entry.options.get(k)), entry.options.get(k))}
    checked = {**ours, **_section(MethodOptions, to_check, repr(opt)).model_dump(exclude_unset=True)}
    options = {k: checked.get(k, v) if v is not None else None for k, v in wanted.items()}
    T, S = options.get("T"), options.get("S")
    if T is not None and S is not None and S > T:
        raise UsageError(f"{opt!r}: S must be at most T = {T}, got {S}")
    if options.get("nesterov") and "momentum" in options and not options["momentum"]:
        raise UsageError(f"{opt!r}: nesterov needs a momentum above 0, got {options['momentum']}")
    return options


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: betas=(0.9, 0.999) is the same when it was read back from YAML."""
    return tuple(map(_with_tuples, value)) if isinstance(value, (list, tuple)) else value


def _with_lists(value: Any) -> Any:
    return list(map(_with_lists, value)) if isinstance(value, (list, tuple)) else value


def labels(methods: Sequence[tuple[str, Mapping[str, Any]]]) -> list[str]:
    """NAME plus -key=value for every option in which the SPECs of that NAME differ."""
    found = []
    for opt, options in methods:
        others = [other for name, other in methods if name == opt]
        differing = [key for key in options if any(other.get(key) != options[key] for other in others)]
        name = opt.replace(":", ".")
        found.append("-".join([name, *(f"{key}={options[key]}" for key in differing)]))
    return found


def dump(config: Config) -> dict[str, Any]:
    """As plain values, such that ``load_config`` of them gives the same configuration."""
    tree = config.model_dump(exclude={"methods"})
    methods = [
        {"opt": m.opt, **{k: _with_lists(v) for k, v in m.options.items() if v is not None}} for m in config.methods
    ]
    return {"problem": _without_none(tree["problem"]), "methods": methods, "run": _without_none(tree["run"])}


def _without_none(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if value is not None}
