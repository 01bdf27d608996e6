"""What claims are judged on, from records that are made up."""

import math

import pytest

from kfbench.claims.evidence import Evidence
from kfbench.claims.measures import figures


def part(measure, of="a", to="b", **more):
    return {"measure": measure, "of": of, "to": to, "kind": "rescaled", "everywhere": False, **more}


def final(seeds, losses):
    return {"final": {"seeds": seeds, "losses": losses, "mean": sum(losses) / len(losses)}, "losses_by_seed": []}


def both(wanted, evidence):
    found = figures(wanted, evidence)
    return found.of, found.to


def test_final_losses_are_paired_by_seed():
    methods = {"a": final([3, 1, 2], [0.3, 0.1, 0.2]), "b": final([1, 2, 4], [1.0, 2.0, 4.0])}
    assert both(part("final_train_loss"), Evidence(tuning=methods)) == ([0.1, 0.2], [1.0, 2.0])


def test_a_method_without_a_surviving_point_is_infinitely_bad():
    methods = {"a": {"final": None, "failed": 0, "losses_by_seed": []}, "b": final([1, 2], [1.0, 2.0])}
    assert both(part("final_train_loss"), Evidence(tuning=methods)) == ([math.inf] * 2, [1.0, 2.0])


def test_a_method_that_crashed_has_no_loss():
    methods = {"a": {"final": None, "failed": 12, "losses_by_seed": []}, "b": final([1, 2], [1.0, 2.0])}
    assert both(part("final_train_loss"), Evidence(tuning=methods)) == ([], [])


def test_the_better_of_tuned_and_published_options_counts():
    methods = {"a": final([1, 2], [1.0, 2.0]), "b": final([1, 2], [1.0, 2.0])}
    published = {"a": final([1, 2], [0.5, 0.6]), "b": final([1, 2], [5.0, 6.0])}
    found = Evidence(tuning=methods, published=published)
    assert both(part("final_train_loss"), found) == ([0.5, 0.6], [1.0, 2.0])


def test_edges_of_both_grids_come_along():
    methods = {"a": final([1, 2], [0.1, 0.2]), "b": final([1, 2], [1.0, 2.0]) | {"best_edges": ["lower damping"]}}
    assert figures(part("final_train_loss"), Evidence(tuning=methods)).edges == ((), ["lower damping"])


def test_a_cell_that_is_nearly_as_good_widens_the_interval_and_a_far_one_does_not():
    noisy = final([1, 2, 3], [1.0, 2.0, 4.0])
    near, far = ([[0.1, 0, 1.0], [0.3, 0, second], [1.0, 0, math.inf]] for second in (1.1, 1e9))
    slack = {}
    for name, cells in (("near", near), ("far", far)):
        methods = {"a": noisy | {"losses_by_seed": cells}, "b": final([1, 2, 3], [1.0, 1.0, 1.0])}
        slack[name] = figures(part("final_train_loss"), Evidence(tuning=methods)).slack
    assert slack["far"] == (1.0, 1.0)
    # Student's 95 % quantile with 2 degrees of freedom is 2.92; the logarithms deviate by log 2.
    noise = math.exp(2.92 * math.log(2) * math.sqrt(2))
    assert slack["near"] == (pytest.approx(1.1 / noise, rel=1e-3), 1.0)


def test_test_errors_are_of_the_runs_that_final_losses_are_of():
    def with_runs(name):
        return final([1, 2], [1.0, 2.0]) | {
            "final": final([1, 2], [1.0, 2.0])["final"] | {"run_dirs": [name, f"{name}2"]}
        }

    worse = {"seeds": [1, 2], "losses": [5.0, 6.0], "mean": 5.5, "run_dirs": ["published", "published2"]}
    trials = [
        {"run_dir": run, "test_accuracy": accuracy}
        for run, accuracy in [("a", 0.9), ("a2", 0.8), ("b", 0.75), ("b2", None), ("published", 0.1)]
    ]
    methods = {"a": with_runs("a"), "b": with_runs("b") | {"best_edges": ["upper lr"]}}
    found = Evidence(tuning=methods, published={"a": {"final": worse}}, trials=trials)
    judged = figures(part("test_error"), found)
    assert judged.of == pytest.approx([0.1, 0.2]) and judged.edges == ((), ["upper lr"])
    assert judged.to[0] == pytest.approx(0.25) and math.isnan(judged.to[1]), "it diverged, or has no classes"


def test_an_unknown_label_is_named():
    with pytest.raises(ValueError, match="names 'c', which the records do not have; they have a"):
        figures(part("final_train_loss", of="c"), Evidence(tuning={"a": final([1], [1.0])}))


def epochs(*rows):
    return [{"train_loss": loss, "seconds_updates": seconds} for loss, seconds in rows]


def test_seconds_to_the_loss_at_which_the_other_ended():
    found = Evidence(
        epochs={
            "a": {1: epochs((2.0, 0), (0.5, 3.0), (0.1, 6.0)), 2: epochs((2.0, 0), (1.5, 3.0))},
            "b": {1: epochs((2.0, 0), (0.5, 10.0)), 2: epochs((2.0, 0), (1.0, 10.0))},
        }
    )
    assert both(part("seconds_to_loss"), found) == ([3.0, math.inf], [10.0, 10.0])


def test_no_time_leads_to_the_loss_of_a_run_that_diverged():
    diverged = Evidence(epochs={"a": {1: epochs((2.0, 0.0))}, "b": {1: epochs((2.0, 0.0), (math.inf, 3.0))}})
    assert math.isnan(figures(part("seconds_to_loss"), diverged).of[0])


def swept(dampings, *cells):
    """axes and losses of one method: (alpha, damping, seed, loss)."""
    return {"axes": {"alpha": [0.1, 1.0], "damping": dampings}, "losses_by_seed": [list(cell) for cell in cells]}


def test_least_damping_within_twice_the_best_loss():
    of = swept(
        [1e-3, 1e-2, 1e-1],
        (1.0, 1e-3, 0, 0.5),
        (1.0, 1e-2, 0, 0.19),
        (0.1, 1e-2, 0, 9.0),  # another step with the same damping
        (1.0, 1e-1, 0, 0.1),
        (1.0, 1e-1, 1, 0.1),
        (1.0, 1e-2, 1, math.inf),
    )
    to = swept([1e-4, 1e-3], (1.0, 1e-3, 0, 0.1), (1.0, 1e-3, 1, 0.1), (1.0, 1e-4, 1, None))
    found = figures(part("least_damping"), Evidence(tuning={"a": of, "b": to}))
    assert (found.of, found.to) == ([1e-2, 1e-1], [1e-3, 1e-3])
    half = pytest.approx(10.0)  # half a decade for each side
    assert (1 / found.slack[0], found.slack[1]) == (half, half)


def test_least_damping_at_the_lower_end_of_a_grid_may_be_lower_still():
    low = swept([1e-3, 1e-2], (1.0, 1e-3, 0, 0.1))
    high = swept([1e-3, 1e-2], (1.0, 1e-2, 0, 0.1))
    assert figures(part("least_damping"), Evidence(tuning={"a": low, "b": high})).slack[0] == 0.0
    assert figures(part("least_damping"), Evidence(tuning={"a": high, "b": low})).slack[1] == math.inf


def test_there_is_no_least_damping_where_all_diverge():
    tuning = {"a": swept([1e-3], (1.0, 1e-3, 0, math.inf)), "b": swept([1e-3], (1.0, 1e-3, 0, 0.1))}
    assert both(part("least_damping"), Evidence(tuning=tuning)) == ([], [])


def tried(method, alpha, seed, lowest, last, round="grid"):
    row = {"method": method, "alpha": str(alpha), "damping": "0.1", "seed": str(seed), "round": round}
    return row | {"best_train_loss": lowest, "final_train_loss": last}


def test_share_of_cells_that_kept_what_they_learnt():
    trials = [
        tried("a", 0.1, 0, 0.5, 0.9),
        tried("a", 1.0, 0, 0.2, math.inf, "final"),  # another claim's; it is this trial all the same
        tried("a", 10.0, 0, 2.0, math.inf),  # never learnt
        tried("a", 0.1, 1, 0.5, 1.1),
        tried("a", 0.3, 0, 0.2, 9.0),  # off the grid
        tried("a", 1.0, 7, 0.2, 9.0),  # of a seed that this claim has not
        tried("a", "", 0, 0.2, 9.0),  # published options have no alpha
        tried("a", 1.0, 1, None, None),
        tried("b", 0.1, 0, 0.5, 0.5),
        tried("b", 0.1, 1, 0.5, 0.5),
    ]
    axes = {"alpha": [0.1, 1.0, 10.0], "damping": [0.1]}
    own = [
        [0.1, 0.1, 0, 0.9],
        [1.0, 0.1, 0, math.inf],
        [10.0, 0.1, 0, math.inf],
        [0.3, 0.1, 0, 9.0],
        [0.1, 0.1, 1, 1.1],
    ]
    tuning = {
        "a": {"axes": axes, "losses_by_seed": [*own, [1.0, 0.1, 1, None]]},
        "b": {"axes": axes, "losses_by_seed": [[0.1, 0.1, 0, 0.5], [0.1, 0.1, 1, 0.5]]},
    }
    runs = {"a": {5: epochs((2.0, 0.0), (0.1, 3.0))}}
    found = Evidence(tuning=tuning, trials=trials, epochs=runs)
    assert both(part("stable_share"), found) == ([0.5, 0.0], [1.0, 1.0])
    # Without a run of fresh seeds nobody knows what the untrained loss is.
    assert both(part("stable_share"), Evidence(tuning=tuning, trials=trials)) == ([], [])


def test_distance_of_two_pairs():
    rows = [
        {"seed": 1, "layer": "*", "metric": "foof", "method_a": "foof", "method_b": "a", "mean": 0.9},
        {"seed": 1, "layer": "*", "metric": "foof", "method_a": "b", "method_b": "foof", "mean": -0.5},
        {"seed": 1, "layer": "*", "metric": "euclidean", "method_a": "b", "method_b": "foof", "mean": 0.0},
        {"seed": 1, "layer": "1", "metric": "foof", "method_a": "b", "method_b": "foof", "mean": 0.3},
    ]
    wanted = part("cosine_distance", of="a ~ foof", to="b ~ foof")
    of, to = both(wanted, Evidence(similarity={"cosines": rows}))
    assert of == pytest.approx([0.1])
    assert to == pytest.approx([1.5])
    with pytest.raises(ValueError, match="'a ~ c'"):
        figures(part("cosine_distance", of="a ~ c", to="b ~ foof"), Evidence(similarity={"cosines": rows}))


def test_progress_of_one_kind():
    rows = [
        {"seed": s, "method": m, "kind": k, "mean": v, "not_finite": 0}
        for s, m, k, v in [(1, "a", "rescaled", 0.2), (1, "a", "as-is", 9.0), (1, "b", "rescaled", 0.1)]
    ]
    assert both(part("progress"), Evidence(similarity={"progress": rows})) == ([0.2], [0.1])


def look(method, age, error, layer="1", update=None):
    return {
        "seed": "1",
        "update": str(age if update is None else update),
        "layer": layer,
        "method": method,
        "updates_since_refresh": str(age),
        "frobenius_error": str(error),
    }


def test_errors_of_every_look_or_of_each_seed():
    rows = [look("a", 0, 0.1), look("a", 9, 0.3), look("b", 0, 0.2), look("b", 9, 0.6)]
    rows += [look("a", 0, 0.8, "2"), look("b", 0, 0.1, "2")]
    found = Evidence(spectrum=rows)
    assert both(part("frobenius_error", everywhere=True), found) == ([0.1, 0.3, 0.8], [0.2, 0.6, 0.1])
    of, to = both(part("frobenius_error"), found)
    assert of == pytest.approx([(0.2 * 0.8) ** 0.5]), "layers are no replicates: one figure a seed"
    assert to == pytest.approx([(0.4 * 0.1) ** 0.5])


def test_growth_of_an_error_over_the_life_of_a_refresh():
    errors = {"a": {0: 0.1, 20: 9.0, 50: 9.0, 80: 0.3, 100: 0.5}, "b": {0: 0.1, 100: 0.2}}
    rows = [look(m, age, e) for m, by_age in errors.items() for age, e in by_age.items()]
    of, to = both(part("error_growth"), Evidence(spectrum=rows))
    assert (of, to) == (pytest.approx([4.0]), pytest.approx([2.0]))


def test_growth_counts_every_refresh_from_the_first_look_at_it():
    """Looks every 5 updates of refreshes at 0, 9 and 19: the latter two are first seen at age 1."""
    errors = [(0, 0, 1.0), (5, 5, 9.0), (10, 1, 3.0), (15, 6, 9.0), (20, 1, 5.0), (25, 6, 12.0)]
    rows = [look("a", age, error, update=update) for update, age, error in errors]
    rows += [look("b", age, 1.0, update=update) for update, age, _ in errors]
    of, to = both(part("error_growth"), Evidence(spectrum=rows[::-1]))
    assert (of, to) == (pytest.approx([10.0 / 3.0]), pytest.approx([1.0]))


def test_an_exact_approximation_has_an_error_of_zero():
    rows = [look("a", 0, 0.0), look("a", 9, 0.0, update=9), look("b", 0, 0.1), look("b", 9, 0.2, update=9)]
    found = Evidence(spectrum=rows)
    assert both(part("frobenius_error"), found)[0] == [0.0]
    assert both(part("error_growth"), found)[0] == [math.inf]


def test_a_mean_of_no_finite_look_is_none():
    values = [("a", None, 0), ("b", 0.1, 0), ("c", 0.5, 3)]
    rows = [{"seed": 1, "method": m, "kind": "rescaled", "mean": v, "not_finite": bad} for m, v, bad in values]
    found = Evidence(similarity={"progress": rows})
    assert math.isnan(figures(part("progress"), found).of[0])
    assert math.isnan(figures(part("progress", of="c"), found).of[0]), "steps that blew up are not left out"


def test_rounds_and_the_toy():
    costs = Evidence(cost_ratios={"a": [1.1, 1.2], "b": [1.0, 1.0]})
    assert both(part("seconds_per_update"), costs) == ([1.1, 1.2], [1.0, 1.0])
    toy = Evidence(toy={"before": [0.5, 0.5], "sgd": [18.0, 4.5]})
    assert both(part("toy_loss", of="sgd, point 2", to="before, both points"), toy) == ([4.5], [1.0])
    with pytest.raises(ValueError, match="'sgd, point 9', which the records do not have"):
        figures(part("toy_loss", of="sgd, point 9", to="before, point 1"), toy)


def test_distances_of_each_layer_in_the_named_inner_product():
    def row(layer, a, mean, metric="euclidean"):
        return {"seed": 0, "layer": layer, "metric": metric, "method_a": a, "method_b": "gn", "mean": mean}

    rows = [row("*", "a", 0.7), row("1", "a", 0.9), row("2", "a", 0.6), row("*", "a", 0.1, "foof")]
    rows += [row("*", "b", 0.5), row("1", "b", 0.75), row("2", "b", 0.0), row("*", "b", 0.2, "foof")]
    found = Evidence(similarity={"cosines": rows})
    own = {"of": "a ~ gn", "to": "gn ~ b"}
    assert both(part("cosine_distance", **own, metric="euclidean"), found) == (pytest.approx([0.3]), [0.5])
    each = both(part("cosine_distance", **own, metric="euclidean", layers="each"), found)
    assert each == (pytest.approx([0.2]), pytest.approx([0.5]))  # roots of 0.1 * 0.4 and of 0.25 * 1
    assert both(part("cosine_distance", **own), found) == (pytest.approx([0.9]), [0.8])


def test_a_layer_without_a_direction_leaves_no_mean_over_layers():
    rows = [
        {"seed": 0, "layer": layer, "metric": "euclidean", "method_a": a, "method_b": "gn", "mean": mean}
        for a, layer, mean in (("a", "1", None), ("a", "2", 0.5), ("b", "1", 0.5), ("b", "2", 0.5))
    ]
    wanted = part("cosine_distance", of="a ~ gn", to="b ~ gn", metric="euclidean", layers="each")
    found = figures(wanted, Evidence(similarity={"cosines": rows}))
    assert not found.of or math.isnan(found.of[0])
