"""Every method trains with the options that it chooses itself, whatever kind of it is asked for."""

import itertools
import typing
from pathlib import Path

import pandas as pd
import pytest

from kfbench.config.labels import labels
from kfbench.config.load import load_config
from kfbench.config.method_table import FACTORS, METHODS
from kfbench.config.methods import resolve_method
from kfbench.config.schema import MethodOptions
from kfbench.training.observer import Observer
from kfbench.training.run import train


def _kinds(option):
    """The names that an option takes; true and false; none where it is a number or text."""
    given = typing.get_args(MethodOptions.model_fields[option].annotation)
    names = [name for one in given if typing.get_origin(one) is typing.Literal for name in typing.get_args(one)]
    return names or ([True, False] if bool in given else [])


# How a run goes on, or how far its steps, not what the method is; how factors are estimated, which fully connected
# layers do not show.
_OF_RUNS = ("lr_schedule", "order", "nesterov", "warm_start", "step", "adapt", "rest", *FACTORS)


def _variants():
    for name, entry in METHODS.items():
        kinds = {
            o: k for o in entry.options if o in MethodOptions.model_fields and o not in _OF_RUNS and (k := _kinds(o))
        }
        for values in itertools.product(*kinds.values()):
            chosen = ",".join(f"{option}={value}" for option, value in zip(kinds, values, strict=True))
            yield f"{name}:{chosen}".removesuffix(":")


VARIANTS = list(_variants())


def test_every_kind_is_among_the_variants():
    assert {"sgd", "kfac:damping_kind=standard-as-released,fisher=full", "natural:fisher=full,block_diagonal=True"} <= {
        *VARIANTS
    }


def _few_to_warm_up(spec):
    """Half the time went into the usual fifty batches; from ten, factors are rougher, and the same must hold.

    Methods by their bare names keep theirs, on fully connected layers.
    """
    return {"warmup_batches": 10} if resolve_method(spec).options.get("warmup_batches", 0) > 10 else {}


@pytest.mark.parametrize("spec", VARIANTS)
def test_no_variant_diverges_with_its_defaults(spec, tmp_path):
    # Narrower, what diverged here with the defaults of its method no longer does; gn-cg takes long.
    width = 100 if spec.startswith("gn-cg") else 250
    flags = {"width": width, "updates": 20, "eval_samples": 100} | (_few_to_warm_up(spec) if ":" in spec else {})
    config = load_config(specs=[spec], flags=flags)
    summary = train(config, tmp_path, Observer())
    assert [run["status"] for run in summary["runs"]] == ["done"], config.methods[0].options


_ESTIMATES = ("sharing=reduce", "spatial=sua", "input_groups=2", "stat_samples=10")


@pytest.mark.parametrize(
    "spec",
    [
        *(name for name, entry in METHODS.items() if entry.convolutional),
        *(f"{name}:{estimate}" for name in ("kfac", "ekfac") for estimate in _ESTIMATES),
    ],
)
def test_convolutional_models_are_trained_with_defaults_of_their_own(spec, tmp_path):
    flags = {"model": "convnet", "updates": 20, "eval_samples": 100, "train_samples": 500} | _few_to_warm_up(spec)
    config = load_config(specs=[spec], flags=flags)
    (run,) = train(config, tmp_path, Observer())["runs"]
    assert run["status"] == "done" and run["final_train_loss"] == run["best_train_loss"], config.methods[0].options
    defaults = METHODS[spec.split(":")[0]].convolutional.items()
    assert defaults <= config.methods[0].options.items()
    assert not defaults <= load_config(specs=[spec], flags={"model": "mlp"}).methods[0].options.items()


def test_defaults_of_a_variant_are_its_own_where_nothing_is_given():
    (variant,) = (v for v in METHODS["kfac"].variants if v.chosen == {"damping_kind": "standard"})
    plain, own = METHODS["kfac"].options, dict(variant.options)
    assert own.keys() == {"lr", "damping"}
    assert own["lr"] != plain["lr"] or own["damping"] != plain["damping"]

    def found(spec, **flags):
        options = load_config(specs=[spec], flags=flags).methods[0].options
        return {key: options[key] for key in own}

    assert found("kfac") == {key: plain[key] for key in own}
    assert found("kfac:damping_kind=standard") == found("kfac", damping_kind="standard") == own
    assert found("kfac:damping_kind=standard,lr=0.5") == own | {"lr": 0.5}
    assert found("kfac:damping_kind=standard", damping="0.5") == own | {"damping": 0.5}
    assert found("kfac:damping_kind=standard,lr=none") == own
    assert found("kfac:damping_kind=heuristic", damping_kind="standard") == {key: plain[key] for key in own}


SWEPT = pd.read_csv(Path(__file__).parents[2] / "docs/records/defaults-kfac-standard/trials.csv")


@pytest.mark.parametrize("label", sorted(set(SWEPT["method"])))
def test_defaults_of_variants_are_cells_of_the_committed_sweep(label):
    """In which no seed diverged; which cell, and why not the best, docs/defaults.md says."""
    options = resolve_method(label.replace("-", ":", 1).replace("-fisher", ",fisher")).options
    cell = SWEPT[(SWEPT["method"] == label) & (SWEPT["lr"].round(10) == options["lr"])]
    cell = cell[cell["damping"] == options["damping"]]
    assert set(cell["status"]) == {"done"}


def test_labels_name_the_choice_and_not_what_follows_from_it():
    def named(*specs):
        return labels([(m.opt, m.options) for m in map(resolve_method, specs)])

    assert named("kfac", "kfac:damping_kind=standard") == [
        "kfac-damping_kind=heuristic",
        "kfac-damping_kind=standard",
    ]
    assert named("kfac", "kfac:damping_kind=standard,lr=0.5")[1] == "kfac-lr=0.5-damping_kind=standard"


def test_list_shows_the_defaults_of_variants(kfbench):
    code, out, _ = kfbench("list", "--defaults", "--format", "csv")
    assert code == 0
    for variant in METHODS["kfac"].variants:
        chosen, own = (", ".join(f"{k}={v}" for k, v in o.items()) for o in (variant.chosen, variant.options))
        assert f"; with {chosen}: {own}" in out
