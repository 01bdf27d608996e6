"""What claims are judged on, from records that are made up."""

import math

import pytest

from kfbench.results.measures import Evidence, figures


def part(measure, of="a", to="b", **more):
    return {"measure": measure, "of": of, "to": to, "kind": "rescaled", "everywhere": False, **more}


def final(seeds, losses):
    return {"final": {"seeds": seeds, "losses": losses}}


def test_final_losses_are_paired_by_seed():
    methods = {"a": final([3, 1, 2], [0.3, 0.1, 0.2]), "b": final([1, 2, 4], [1.0, 2.0, 4.0])}
    assert figures(part("final_train_loss"), Evidence(tuning={"methods": methods})) == ([0.1, 0.2], [1.0, 2.0])


def test_a_method_without_a_surviving_point_is_infinitely_bad():
    methods = {"a": {"final": None}, "b": final([1, 2], [1.0, 2.0])}
    assert figures(part("final_train_loss"), Evidence(tuning={"methods": methods})) == ([math.inf] * 2, [1.0, 2.0])


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match="names 'c', which the records do not have; they have a"):
        figures(part("final_train_loss", of="c"), Evidence(tuning={"methods": {"a": final([1], [1.0])}}))


def epochs(*rows):
    return [{"train_loss": loss, "seconds_updates": seconds} for loss, seconds in rows]


def test_seconds_to_the_loss_at_which_the_other_ended():
    found = Evidence(
        epochs={
            "a": {1: epochs((2.0, 0), (0.5, 3.0), (0.1, 6.0)), 2: epochs((2.0, 0), (1.5, 3.0))},
            "b": {1: epochs((2.0, 0), (0.5, 10.0)), 2: epochs((2.0, 0), (1.0, 10.0))},
        }
    )
    assert figures(part("seconds_to_loss"), found) == ([3.0, math.inf], [10.0, 10.0])


def trial(method, damping, loss, seed=0, round="grid"):
    return {"method": method, "damping": str(damping), "final_train_loss": loss, "seed": str(seed), "round": round}


def test_least_damping_within_twice_the_best_loss():
    rows = [
        trial("a", 1e-3, 0.5),
        trial("a", 1e-2, 0.19),
        trial("a", 1e-2, 9.0),  # another step with the same damping
        trial("a", 1e-1, 0.1),
        trial("a", 1e-4, 0.001, round="final"),
        trial("b", 1e-3, 0.15),
        trial("b", 1e-2, math.inf),
        trial("b", 1e-1, 0.1),
    ]
    assert figures(part("least_damping"), Evidence(trials=rows)) == ([1e-2], [1e-3])


def test_distance_of_two_pairs():
    rows = [
        {"seed": 1, "layer": "*", "metric": "foof", "method_a": "foof", "method_b": "a", "mean": 0.9},
        {"seed": 1, "layer": "*", "metric": "foof", "method_a": "b", "method_b": "foof", "mean": -0.5},
        {"seed": 1, "layer": "*", "metric": "euclidean", "method_a": "b", "method_b": "foof", "mean": 0.0},
        {"seed": 1, "layer": "1", "metric": "foof", "method_a": "b", "method_b": "foof", "mean": 0.3},
    ]
    wanted = part("cosine_distance", of="a ~ foof", to="b ~ foof")
    of, to = figures(wanted, Evidence(similarity={"cosines": rows}))
    assert of == pytest.approx([0.1])
    assert to == pytest.approx([1.5])
    with pytest.raises(ValueError, match="'a ~ c'"):
        figures(part("cosine_distance", of="a ~ c", to="b ~ foof"), Evidence(similarity={"cosines": rows}))


def test_progress_of_one_kind():
    rows = [
        {"seed": s, "method": m, "kind": k, "mean": v}
        for s, m, k, v in [(1, "a", "rescaled", 0.2), (1, "a", "as-is", 9.0), (1, "b", "rescaled", 0.1)]
    ]
    assert figures(part("progress"), Evidence(similarity={"progress": rows})) == ([0.2], [0.1])


def test_errors_of_every_look_or_on_average():
    looks = [
        {"seed": "1", "update": u, "layer": "1", "method": m, "frobenius_error": e}
        for u, m, e in [("0", "a", "0.1"), ("9", "a", "0.4"), ("0", "b", "0.2"), ("9", "b", "0.3")]
    ]
    means = [{"seed": 1, "layer": "1", "method": m, "mean_error": e} for m, e in [("a", 0.25), ("b", 0.5)]]
    found = Evidence(spectrum=looks, similarity={"spectrum": means})
    assert figures(part("frobenius_error", everywhere=True), found) == ([0.1, 0.4], [0.2, 0.3])
    assert figures(part("frobenius_error"), found) == ([0.25], [0.5])


def test_growth_of_an_error_from_young_to_old_refreshes():
    errors = {"a": {0: 0.1, 20: 0.2, 50: 9.0, 80: 0.3, 100: 0.5}, "b": {0: 0.1, 100: 0.2}}
    rows = [
        {"seed": "1", "layer": "1", "method": m, "updates_since_refresh": str(age), "frobenius_error": str(e)}
        for m, by_age in errors.items()
        for age, e in by_age.items()
    ]
    of, to = figures(part("error_growth"), Evidence(spectrum=rows))
    assert (of, to) == (pytest.approx([0.25]), pytest.approx([0.1]))


def test_rounds_and_the_toy():
    assert figures(part("seconds_per_update"), Evidence(timing={"a": [1.1, 1.2], "b": [1.0, 1.0]}))[0] == [1.1, 1.2]
    toy = Evidence(toy={"before": [0.5, 0.5], "sgd": [18.0, 4.5]})
    assert figures(part("toy_loss", of="sgd, point 2", to="before, both points"), toy) == ([4.5], [1.0])
