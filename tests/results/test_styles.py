"""Every method has a look of its own, in every plot the same."""

import itertools

import pytest

from kfbench.config.labels import method_name
from kfbench.config.method_table import METHODS
from kfbench.results.styles import _VARIANTS, LOOKS, looks, styles


def test_every_method_has_its_own():
    assert set(LOOKS) == set(METHODS), "a new method needs a row in looks.py"
    for (a, one), (b, other) in itertools.combinations(LOOKS.items(), 2):
        assert one != other, f"{a} and {b} look the same"
    assert not {look.dashes for look in LOOKS.values()} & set(_VARIANTS)


def test_a_look_does_not_depend_on_what_else_is_shown():
    everything = looks([*METHODS, "own.module.Class"])
    for label, look in everything.items():
        assert looks([label])[label] == look


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("foof", "foof"),
        ("foof-kfac-damping", "foof-kfac-damping"),
        ("foof-kfac-damping-lr=0.1-T=10", "foof-kfac-damping"),
        ("kfac-damping_kind=standard-as-released", "kfac"),
        ("sgd (a-b=c)", "sgd"),
        ("torch.optim.RMSprop-lr=1e-05", "torch.optim.RMSprop"),
    ],
)
def test_the_method_of_a_label(label, name):
    assert method_name(label) == name


def test_variants_keep_the_colour_and_differ_in_dashes():
    found = styles(["kfac-lr=0.1", "kfac-lr=0.2", "kfac-lr=0.3", "sgd"])
    assert len({look["color"] for look in found.values()}) == 2
    assert found["kfac-lr=0.1"]["linestyle"] == "-" == found["sgd"]["linestyle"]
    assert len({str(found[f"kfac-lr=0.{i}"]["linestyle"]) for i in (1, 2, 3)}) == 3
