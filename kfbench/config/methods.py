"""From SPECs to methods: every option resolved, each with a label that tells it apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kfbench.config.labels import labels
from kfbench.config.method_table import (
    DEFAULT_S,
    DEFAULT_T2,
    FOUND_BY_STEP,
    METHODS,
    RULE_OPTIONS,
    STEP_OPTIONS,
    MethodEntry,
)
from kfbench.config.problem_table import MODELS
from kfbench.config.schema import Method, MethodOptions
from kfbench.config.section import validated
from kfbench.config.specs import find_method, parse_spec
from kfbench.errors import UsageError, shown, unknown


def resolve_methods(entries: Any, flags: Mapping[str, Any], model: str = "mlp") -> tuple[Method, ...]:
    """Every SPEC with all of its options, and its label; UsageError for what does not fit.

    ``model`` decides between defaults: an input factor is a sum over positions, so lambda means another thing there.
    """
    if entries is None:
        raise UsageError(f"no method given: use --opt, with one of {', '.join(METHODS)} or package.module:Class")
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"methods must be a list of SPECs, got {shown(entries)}")
    parsed = [parse_spec(entry) for entry in entries]
    known = [find_method(opt) for opt, _ in parsed]
    # A flag is a default for those methods that have the option, so only one that none has is wrong.
    for flag in flags:
        if not any(entry.accepts(flag) for entry in known):
            opts = " or ".join(dict.fromkeys(repr(opt) for opt, _ in parsed))
            accepted = ", ".join(sorted({option for entry in known for option in entry.options}))
            raise UsageError(
                f"{opts} has no option {flag!r}, as --{flag.replace('_', '-')} was given; it has {accepted}"
            )
    pairs = zip(parsed, known, strict=True)
    resolved = [(opt, _options(opt, entry, given, flags, model)) for (opt, given), entry in pairs]
    named = labels(resolved)  # of all at once: a label names what tells a method from the others
    seen: set[str] = set()
    for label in named:
        if label in seen:  # both would write into one folder
            raise UsageError(f"method {shown(label)} is given twice with the same options")
        seen.add(label)
    return tuple(
        Method(opt=opt, label=label, options=options) for (opt, options), label in zip(resolved, named, strict=True)
    )


def resolve_method(spec: Any, label: str | None = None) -> Method:
    """One SPEC with all of its options, called ``label`` or by its name; UsageError for what does not fit."""
    opt, given = parse_spec(spec)
    options = _options(opt, find_method(opt), given, {}, "mlp")
    return Method(opt=opt, label=labels([(opt, options)])[0] if label is None else label, options=options)


def _options(
    opt: str, entry: MethodEntry, given: Mapping[str, Any], flags: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """Every option of the method: its default, a flag, or what the SPEC says; none there means the default."""
    given = {key: value for key, value in given.items() if value is not None}
    entry = _with_step_rule(opt, entry, given, flags)
    for option in given:
        if not entry.accepts(option):
            raise unknown(f"option of {opt!r}", option, entry.options)
    # Later wins: the SPEC over a flag, a flag over the default.
    chosen = {**{k: v for k, v in flags.items() if entry.accepts(k)}, **given}
    defaults = entry.defaults(chosen, convolutional=model in MODELS and MODELS[model].convolutional)
    defaults |= _of_model(opt, model, entry, chosen)
    wanted = {**defaults, **chosen}
    wanted = {k: _with_tuples(v) for k, v in wanted.items()}
    ours = {k: v for k, v in wanted.items() if k in MethodOptions.model_fields and v is not None}
    # A default is not checked: Adagrad has an lr_decay of its own, 0, which ours may not be.
    to_check = {k: v for k, v in ours.items() if (type(v), v) != (type(defaults.get(k)), defaults.get(k))}
    # exclude_unset, else every option that is not here would come back as None.
    checked = {**ours, **validated(MethodOptions, to_check, repr(opt)).model_dump(exclude_unset=True)}
    # An option of a user's own class is in no schema and stays as it was written.
    options = {k: checked.get(k, v) if v is not None else None for k, v in wanted.items()}
    T, S = options.get("T"), options.get("S")
    if T is not None and "S" in options and S is None:
        options["S"] = S = min(T, DEFAULT_S)  # spelled out, so that records say what ran
    if T is not None and S is not None and S > T:
        raise UsageError(f"{opt!r}: S must be at most T = {T}, got {S}")
    # What the optimizer's constructor takes is not ours, even where it has the name of one of ours.
    options |= {key: None for key in ("step", "adapt") if options.get(key) in ("constant", "none")}
    _check_step_rule(opt, options)
    if "rest" in entry.options and "rest" not in (*entry.constructor, *entry.optimizer_options):
        # Where nothing else is usual, "plain" is as if it were not said.
        options |= {"rest": None} if options["rest"] == "plain" and defaults["rest"] is None else {}
        _check_rest(opt, options)
    _check_step_options(opt, {k: v for k, v in options.items() if k not in entry.optimizer_options})
    for option in ("nesterov", "momentum_after_epoch"):
        if options.get(option) and "momentum" in options and not options["momentum"]:
            raise UsageError(f"{opt!r}: {option} needs a momentum above 0, got {options['momentum']}")
    return options


def _of_model(opt: str, model: str, entry: MethodEntry, chosen: Mapping[str, Any]) -> Mapping[str, Any]:
    """Defaults of this model; none that a step rule finds itself, nor where a variant of the method is chosen.

    What moves the rest has the learning rate that was set with the method, else that of its own on this model.
    """
    if model not in MODELS or any(v.chosen.items() <= {**entry.options, **chosen}.items() for v in entry.variants):
        return {}
    defaults = dict(MODELS[model].defaults.get(opt, {}))
    stepped = chosen.get("step") not in (None, "constant")
    usual, alone = defaults.get("rest", entry.options.get("rest")), stepped or chosen.get("clip_norm")
    rest = chosen.get("rest") or (None if alone else usual)
    for key in (*(FOUND_BY_STEP if stepped else ()), *(("rest",) if alone else ())):
        defaults.pop(key, None)
    if rest != usual:
        defaults.pop("rest_lr", None)  # which is of the usual one
    if "rest_lr" in entry.options and (of_rest := MODELS[model].defaults.get(rest or "")):
        defaults.setdefault("rest_lr", of_rest["lr"])
    return defaults


def _with_step_rule(opt: str, entry: MethodEntry, given: Mapping[str, Any], flags: Mapping[str, Any]) -> MethodEntry:
    """The entry where a step rule is chosen; UsageError for options that it leaves nothing to say."""
    step = given.get("step", flags.get("step") if entry.accepts("step") else None)
    if step in (None, "constant") or not isinstance(step, str) or "step" not in entry.options:
        return entry
    for option in FOUND_BY_STEP:
        value = given.get(option, flags.get(option))
        # What a resolved method says of itself comes back as it was.
        if value is not None and value != FOUND_BY_STEP[option]:
            raise UsageError(f"{opt!r}: step {step!r} finds {option} itself, got {option} {shown(value)}; leave it out")

    def rest(options: Mapping[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in options.items() if key not in FOUND_BY_STEP}

    variants = tuple(replace(variant, options=rest(variant.options)) for variant in entry.variants)
    options, convolutional = {**entry.options, **FOUND_BY_STEP}, rest(entry.convolutional)
    return replace(entry, options=options, variants=variants, convolutional=convolutional)


def _check_step_rule(opt: str, options: Mapping[str, Any]) -> None:
    """UsageError for options of a step rule that do not fit together."""
    if "step" not in options:  # a user's optimizer, whose options may have any name
        return
    if options["step"] is not None:
        _check_adaptation(opt, options)
        return
    for option in RULE_OPTIONS:
        if options.get(option) is not None:
            needs = "needs step 'rescale' or 'rescale-momentum'"
            raise UsageError(f"{opt!r}: {option} {needs}, got {option} {shown(options[option])} alone")


def _check_adaptation(opt: str, options: Mapping[str, Any]) -> None:
    adapt = options.get("adapt")
    for option, wanted in (("T1", "damping"), ("T2", "gamma")):
        if options.get(option) is not None and wanted not in (adapt or ""):
            raise UsageError(f"{opt!r}: {option} needs adapt with {wanted!r}, got adapt {shown(adapt)}")
    if adapt is not None and not (options.get("damping") or options.get("model_damping")):
        raise UsageError(f"{opt!r}: adapt needs a model_damping above 0 to start from, got none")
    if adapt != "damping,gamma":
        return
    if "damping" not in options:
        raise UsageError(f"{opt!r} has no damping of its own for adapt {adapt!r} to try; 'damping' is accepted")
    T, T2 = options.get("T", 1), options.get("T2") or DEFAULT_T2
    if T2 % T:
        raise UsageError(f"{opt!r}: T2 must be a multiple of T = {T}, got {T2}")


def _check_rest(opt: str, options: Mapping[str, Any]) -> None:
    """UsageError for options of a second optimizer that does not fit."""
    rest = options["rest"]
    if rest in (None, "plain"):
        if options["rest_lr"] is not None:
            got = f"got rest_lr {options['rest_lr']} with rest {rest or 'plain'!r}"
            raise UsageError(f"{opt!r}: rest_lr needs rest 'adamw' or 'sgd', {got}")
        return
    for option, what in (
        ("step", "finds one step for all parameters"),
        ("clip_norm", "is of one step of all parameters"),
    ):
        if options.get(option) is not None:
            raise UsageError(
                f"{opt!r}: {option} {what}, and rest {rest!r} takes another for some; use rest 'plain', or leave "
                f"{option} out, got {option} {shown(options[option])}"
            )


def _check_step_options(opt: str, options: Mapping[str, Any]) -> None:
    if options.get("lr_step_epochs") and options.get("lr_schedule") != "step":
        raise UsageError(f"{opt!r}: lr_step_epochs needs lr_schedule 'step', got {options.get('lr_schedule')!r}")
    _check_warmup(opt, options)
    if options.get("clip_decay") and not options.get("clip_norm"):
        raise UsageError(f"{opt!r}: clip_decay needs a clip_norm, whose fall it is, got clip_decay alone")


def _check_warmup(opt: str, options: Mapping[str, Any]) -> None:
    warms_up, updates = options.get("lr_schedule") == "linear-warmup-cosine", options.get("warmup_updates")
    if warms_up != (updates is not None):
        got = f"got {updates}" if warms_up else f"got {options.get('lr_schedule')!r} with warmup_updates {updates}"
        raise UsageError(f"{opt!r}: lr_schedule 'linear-warmup-cosine' and warmup_updates need each other, {got}")
    if warms_up and options.get("lr_decay") not in (None, STEP_OPTIONS["lr_decay"]):
        got = f"got lr_decay {options['lr_decay']} with 'linear-warmup-cosine'"
        raise UsageError(f"{opt!r}: lr_decay is of lr_schedule 'step' or 'exp', {got}")


def _with_tuples(value: Any) -> Any:
    """Lists as tuples: betas=(0.9, 0.999) is the same when it was read back from YAML."""
    return tuple(map(_with_tuples, value)) if isinstance(value, (list, tuple)) else value
