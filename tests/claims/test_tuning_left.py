"""What tuning leaves open: an interval that carries it covers the ratio of the truly best cells."""

import math
import random

import pytest

from kfbench.claims.evidence import Evidence
from kfbench.claims.measures import figures
from kfbench.claims.verdicts import judge

PART = {"measure": "final_train_loss", "of": "a", "to": "b", "below": 1.0, "everywhere": False, "decides": True}
SEEDS, ROUNDS = 5, 500


def _tuned(source, steepness, noise):
    """A method tuned with one seed on a grid of 5 x 4 around some valley, and the log loss of its truly best cell."""
    at, on = source.uniform(1, 3), source.uniform(1, 2)
    true = [steepness * ((i - at) ** 2 + (j - on) ** 2 / 2) for i in range(5) for j in range(4)]
    tuned = [loss + source.gauss(0, noise) for loss in true]
    best = tuned.index(min(tuned))
    fresh = [math.exp(true[best] + source.gauss(0, noise)) for _ in range(SEEDS)]
    final = {"seeds": list(range(SEEDS)), "losses": fresh, "mean": sum(fresh) / SEEDS}
    cells = [[number, 0, math.exp(loss)] for number, loss in enumerate(tuned)]
    return {"final": final, "losses_by_seed": cells}, min(true)


@pytest.mark.parametrize("noise", [(0.05, 0.05), (0.3, 0.3), (0.05, 0.3)])
@pytest.mark.parametrize("steepness", [(0.02, 0.02), (0.1, 0.1), (0.5, 0.5), (0.02, 0.5)])
def test_coverage_of_the_best_cells(steepness, noise):
    source, covered, narrow = random.Random(f"{steepness} {noise}"), 0, 0
    for _ in range(ROUNDS):
        (a, best_a), (b, best_b) = (_tuned(source, s, n) for s, n in zip(steepness, noise, strict=True))
        found = figures(PART, Evidence(tuning={"a": a, "b": b}))
        judged, truth = judge(PART, found), math.exp(best_a - best_b)
        covered += judged["low"] <= truth <= judged["high"]
        narrow += judged["low"] / found.slack[0] <= truth <= judged["high"] / found.slack[1]
    # Of 500 rounds at 95 %, three standard deviations are 3 %.
    assert covered / ROUNDS >= 0.95 - 0.03, "carries what tuning leaves"
    assert narrow <= covered
    if max(steepness) == 0.5:  # where chance chooses between few cells, of which some are clearly worse
        assert narrow / ROUNDS < 0.92, "Student's interval alone claims too much"
