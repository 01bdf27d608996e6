"""Labels of methods."""

import pytest

from kfbench.config.labels import labels, without_shared


def test_factors_as_usual_go_without_saying():
    specs = [("foof", {"ema": 0.95, "spatial": None}), ("foof", {"ema": 0.95, "spatial": "sua"})]
    assert labels(specs) == ["foof", "foof-spatial=sua"]


@pytest.mark.parametrize(
    ("label", "other", "among", "expected"),
    [
        ("kfac-T=1", "natural-T=1", [], ("kfac", "natural")),
        ("kfac-T=1-ema=0.0", "natural-T=1", [], ("kfac-ema=0.0", "natural")),
        ("kfac-lr=1e-05-T=1", "foof-lr=3e-05-T=1", [], ("kfac-lr=1e-05", "foof-lr=3e-05")),
        ("kfac-T=5-S=2", "sgd", ["foof-T=5-S=2"], ("kfac", "sgd")),
        ("kfac-T=5", "sgd", [], ("kfac-T=5", "sgd")),
        # Three of one NAME: what only one has tells them apart.
        ("kfac-S=9", "sgd", ["kfac-S=9-damping_kind=standard"], ("kfac", "sgd")),
        ("kfac-S=9-damping_kind=standard", "sgd", ["kfac-S=9"], ("kfac-damping_kind=standard", "sgd")),
        ("natural-T=1", "natural-T=1-order=same", [], ("natural", "natural-order=same")),
        ("kfac-T=1 ~ foof-T=1", "kfac-T=1-order=same ~ foof-T=1", [], ("kfac ~ foof", "kfac-order=same ~ foof")),
    ],
)
def test_compared_labels_keep_what_tells_them_apart(label, other, among, expected):
    assert without_shared(label, other, among) == expected
