"""Labels of methods."""

from kfbench.config.labels import labels


def test_factors_as_usual_go_without_saying():
    specs = [("foof", {"ema": 0.95, "spatial": None}), ("foof", {"ema": 0.95, "spatial": "sua"})]
    assert labels(specs) == ["foof", "foof-spatial=sua"]
