"""Configuration: YAML + flags -> one validated, frozen object, for all commands.

Keys of the YAML, options of a SPEC and flags are the same names (underscores, dashes). Later wins:
defaults, ``--config FILE``, flags, ``--set a.b=c``. A value inside the SPEC of ``--opt`` wins over a flag.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.config.command_blocks import Compare, Placed, Similarity, Sweep, Wallclock, check_placed
from kfbench.config.methods import resolve_methods
from kfbench.config.problem import checked, spelled_out, with_digest
from kfbench.config.roles import resolve_roles
from kfbench.config.schema import (
    COMMAND_BLOCKS,
    TOP_KEYS,
    Config,
    Method,
    MethodOptions,
    Problem,
    Run,
)
from kfbench.config.section import Section, validated
from kfbench.config.specs import parse_spec
from kfbench.config.yaml_file import parse_yaml, read_yaml
from kfbench.errors import UsageError, shown, unknown

# The sections that flags fill directly; those of methods become defaults of every SPEC.
_FLAG_SECTIONS: dict[str, type[Section]] = {
    "problem": Problem,
    "run": Run,
    "wallclock": Wallclock,
    "sweep": Sweep,
    "similarity": Similarity,
    "compare": Compare,
}

# A smoke run: of `wallclock` fewer rounds than an interval needs, of `sweep` no more than show that each works.
_QUICK: dict[str, dict[str, Any]] = {
    "wallclock": {"rounds": 3, "window_seconds": 0.05, "compose": "always", "processes": 1},
    "sweep": {"extend": 0, "final_seeds": 1},
}
# Of `compare`, unless told otherwise: how many are needed to see that seeds differ.
COMPARE_SEEDS = 3


def load_config(
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    specs: Sequence[str | Mapping[str, Any]] = (),
    assignments: Sequence[str] = (),
    command: str = "train",
) -> Config:
    """Read ``file`` and ``configure``; UsageError, one sentence, for whatever does not fit."""
    return configure(read_yaml(file) if file else {}, flags, specs, assignments, (command,))


def configure(
    given: Mapping[str, Any],
    flags: Mapping[str, Any] | None = None,
    specs: Sequence[str | Mapping[str, Any]] = (),
    assignments: Sequence[str] = (),
    commands: Collection[str] = ("train",),
    methods: Sequence[Method] = (),
) -> Config:
    """Merge and validate; UsageError, one sentence, for whatever does not fit.

    ``given`` is a YAML as read, which stays as it is; the blocks of other commands than ``commands`` are ignored.

    ``flags`` are values by key, as text or typed; ``specs`` replace the file's methods; ``assignments`` are
    "a.b=c"; ``methods`` are its methods where they have been resolved before.
    """
    tree: dict[str, Any] = copy.deepcopy(dict(given))  # --set writes into it, however deep
    flags = {key: value for key, value in (flags or {}).items() if value is not None}
    for name, section in _FLAG_SECTIONS.items():
        if name in COMMAND_BLOCKS and name not in commands:
            continue
        tree[name] = {**_given(tree, name), **{k: v for k, v in flags.items() if k in section.model_fields}}
    # Once for the flags and once for --set: each voids what an earlier source said.
    _keep_budget(tree["run"], flags)
    method_flags = {key: value for key, value in flags.items() if key in MethodOptions.model_fields}
    if specs:
        tree["methods"] = list(specs)  # these win over flags, so no option of theirs is dropped
    elif isinstance(tree.get("methods"), list):
        tree["methods"] = [without_flagged(entry, method_flags) for entry in tree["methods"]]
    for assignment in assignments:
        _assign(tree, assignment)
    _keep_budget(_given(tree, "run"), [assignment.partition("=")[0].removeprefix("run.") for assignment in assignments])
    # After --set, which may have made a key too.
    for key in tree:
        if key not in TOP_KEYS:
            raise unknown("key", key, TOP_KEYS)
    problem = spelled_out(validated(Problem, _given(tree, "problem")))
    run = _with_budget(_run(tree, commands), problem)  # the default of epochs depends on the data set
    similarity = Similarity()
    if not methods:
        methods, similarity = _resolved(tree, method_flags, commands, problem.model)
    problem = with_digest(checked(problem))
    # `similarity` is not among them: it names methods, so it was resolved with these.
    blocks = {name: _block(tree, name, commands, run.quick) for name in COMMAND_BLOCKS if name != "similarity"}
    return Config(problem=problem, methods=tuple(methods), run=run, similarity=similarity, **blocks)


def _resolved(
    tree: Mapping[str, Any], flags: Mapping[str, Any], commands: Collection[str], model: str
) -> tuple[Sequence[Method], Similarity]:
    """The methods, with those that `similarity` follows or compares against among them."""
    entries = tree.get("methods")
    # Anything but a list is for resolve_methods to refuse; without one the roles alone are methods enough.
    if "similarity" in commands and (entries is None or isinstance(entries, list)):
        return resolve_roles(entries, _given(tree, "similarity"), flags, model)
    return resolve_methods(entries, flags, model), Similarity()


def _run(tree: Mapping[str, Any], commands: Collection[str]) -> Run:
    run = validated(Run, _given(tree, "run"))
    if run.batch_growth is not None and run.updates is None:
        raise UsageError(f"batch_growth {run.batch_growth} needs updates, since epochs differ, got none")
    # By what was set, not by the value: --seeds 1 is an answer, not the default.
    few = "compare" in commands and not run.quick and "seeds" not in run.model_fields_set
    return run.model_copy(update={"seeds": COMPARE_SEEDS}) if few else run


def _block(tree: Mapping[str, Any], name: str, commands: Collection[str], quick: bool) -> Section:
    """The block of one command: as given if it is this one's, else its defaults."""
    block = validated(_FLAG_SECTIONS[name], _given(tree, name) if name in commands else {})
    if isinstance(block, Sweep) and block.final_epochs is not None and block.final_updates is not None:
        got = f"got final_epochs {block.final_epochs} and final_updates {block.final_updates}"
        raise UsageError(f"give final_epochs or final_updates, not both: {got}")
    if isinstance(block, Placed):
        check_placed(block)
    return block.model_copy(update=_QUICK[name]) if quick and name in _QUICK else block


def without_flagged(entry: Any, flags: Collection[str]) -> dict[str, Any]:
    """A method of a file without the options that flags give: flags win over files (SPECs win over flags)."""
    opt, options = parse_spec(entry)
    dropped = {*flags, "S"} if "T" in flags and "S" not in flags else set(flags)  # the S of another T
    return {"opt": opt, **{key: value for key, value in options.items() if key not in dropped}}


def _assign(tree: dict[str, Any], assignment: str) -> None:
    path, separator, text = assignment.partition("=")
    keys = path.split(".")
    if not separator or not all(keys):
        raise UsageError(f"--set takes a.b=c, got {shown(assignment)}")
    value = parse_yaml(text, f"--set {shown(assignment)}")  # as the same text in a file would be read
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
    # As text: int() would take "-1" and "01" for places too.
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
        # Where both are given by one source they stay, for _with_budget to refuse; null gives neither.
        if key in later and other not in later and run.get(key) is not None:
            run.pop(other, None)


def _with_budget(run: Run, problem: Problem) -> Run:
    if run.epochs is not None and run.updates is not None:
        raise UsageError(f"give epochs or updates, not both: got epochs {run.epochs} and updates {run.updates}")
    if run.amp != "none" and run.dtype != "float32":
        raise UsageError(f"amp {run.amp!r} is of float32 alone, got dtype {run.dtype!r}")
    if run.micro_batch_size is not None and run.micro_batch_size > run.batch_size:
        raise UsageError(f"micro_batch_size is {run.micro_batch_size}, above the batch_size of {run.batch_size}")
    if run.quick:  # after the checks: a smoke run also says what is wrong with the whole one
        return run.model_copy(update={"epochs": None, "updates": 20})
    if run.epochs is None and run.updates is None:
        return run.model_copy(update={"epochs": 30 if problem.dataset.endswith("-1k") else 10})
    return run


# As YAML reads them back: what is on disk is compared with what is dumped.
def _with_lists(value: Any) -> Any:
    return list(map(_with_lists, value)) if isinstance(value, (list, tuple)) else value


def dump(config: Config, command: str | None = None) -> dict[str, Any]:
    """As plain values, with one command's block, such that ``configure`` of them gives the same configuration."""
    tree = config.model_dump(exclude={"methods"})
    # An option of None is left out, and read again as its default: where that is a value, the option cannot be None.
    methods = [
        {"opt": m.opt, **{k: _with_lists(v) for k, v in m.options.items() if v is not None}} for m in config.methods
    ]
    blocks = {command: _without_none(tree[command])} if command in tree else {}
    problem = _without_none(tree["problem"])
    for key, usual in (("likelihood", "categorical"), ("augment", "none")):
        if problem.get(key) == usual:
            del problem[key]  # a record without the key means that; so did those before there was one
    run = _without_none(tree["run"])
    if run["amp"] == "none":  # as before there was such a key
        del run["amp"]
    return {"problem": problem, "methods": methods, "run": run, **blocks}


def undump(tree: Mapping[str, Any]) -> Config:
    """The configuration of which ``dump`` gave problem, methods and run."""
    # As flags, which need no sections: no key is in both.
    return configure({}, {**tree["problem"], **tree["run"]}, tree["methods"])


def _without_none(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _with_lists(value) for key, value in section.items() if value is not None}
