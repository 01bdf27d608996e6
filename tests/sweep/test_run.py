"""What a sweep decides: which trials, how many, when to extend, what is best; with formulas in place of training."""

import math

import pandas as pd
import pytest

from kfbench.config import load
from kfbench.config.load import dump, load_config, undump
from kfbench.errors import UsageError
from kfbench.sweep.plan import plan, trial
from tests.sweep.fake_executor import fake_sweep


def bowl(lr, damping=None):
    """Smallest at that lr and damping, a decade away from them ten times as large."""

    def loss(options, seed):
        away = abs(math.log10(options["lr"] / lr))
        if damping is not None and "damping" in options:
            away += abs(math.log10(options["damping"] / damping))
        return 1e-3 * 10**away

    return loss


def valley(alpha, damping):
    """The same in alpha = lr / damping."""

    def loss(options, seed):
        away = abs(math.log10(options["lr"] / options["damping"] / alpha)) + abs(
            math.log10(options["damping"] / damping)
        )
        return 1e-3 * 10**away

    return loss


def settings(*specs, **flags):
    return load_config(specs=list(specs), flags=flags, command="sweep")


# The plan.


def test_default_grid_is_49_cells_of_alpha_and_damping():
    (foof,) = plan(settings("foof"))
    assert [axis.name for axis in foof.axes] == ["alpha", "damping"] and len(foof.cells()) == 49
    assert all(foof.options(cell)["lr"] == pytest.approx(cell["alpha"] * cell["damping"]) for cell in foof.cells())


def test_absolute_lr_puts_lr_itself_on_the_grid():
    (foof,) = plan(settings("foof", absolute_lr=True))
    assert [axis.name for axis in foof.axes] == ["lr", "damping"]


def test_methods_without_damping_get_as_many_cells_on_a_finer_grid():
    methods = plan(settings("foof", "sgd", "adam", "torch.optim:RMSprop"))
    assert [len(method.cells()) for method in methods] == [49] * 4
    assert [method.left_out for method in methods] == [(), ("damping",), ("damping",), ("damping",)]


def test_labels_do_not_depend_on_the_other_methods_of_the_sweep():
    alone = plan(settings("kfac:damping_kind=standard"))[0].label
    beside = [method.label for method in plan(settings("kfac", "kfac:damping_kind=standard", "kfac:T=10"))]
    assert alone == "kfac-damping_kind=standard"
    assert beside == ["kfac", "kfac-damping_kind=standard", "kfac-T=10"]


def test_other_parameters_have_grids_too():
    (kfac,) = plan(settings("kfac", parameters=["damping_kind", "T"], grids={"T": "1,10"}))
    assert len(kfac.cells()) == 6
    assert {kfac.options(cell).get("S") for cell in kfac.cells()} == {None}  # it follows T


def test_a_method_may_have_a_grid_of_its_own():
    grids = {"lr": "1.0", "kfac.lr": "0.1,0.3", "kfac-damping_kind=standard.lr": "7.0", "damping": "1.0"}
    methods = plan(settings("foof", "kfac", "kfac:damping_kind=standard", grids=grids))
    assert [method.axis("alpha").values for method in methods] == [(1.0,), (0.1, 0.3), (7.0,)]


def test_trials_are_told_apart_by_configuration_and_seed_alone():
    config = settings("foof")
    (foof,) = plan(config)
    cell = foof.cells()[0]
    first = trial(config, foof, cell, "grid", 0)
    assert first.hash == trial(config, foof, cell, "refine", 0).hash
    assert first.hash != trial(config, foof, cell, "grid", 1).hash
    assert first.hash != trial(config, foof, foof.cells()[1], "grid", 0).hash
    other = settings("sgd", "foof:T=100", jobs=2, seeds=3, extend=5)
    assert first.hash == trial(other, plan(other)[1], cell, "grid", 0).hash


def test_trials_stop_when_they_diverge_unless_told_otherwise():
    (foof,) = plan(config := settings("foof"))
    assert trial(config, foof, foof.cells()[0], "grid", 0).config.run.divergence_factor == 10
    config = settings("foof", divergence_factor=3)
    assert trial(config, foof, foof.cells()[0], "grid", 0).config.run.divergence_factor == 3
    full_batch = settings("foof", train_samples=100, batch_size=100)
    assert trial(full_batch, foof, foof.cells()[0], "grid", 0).config.run.divergence_factor is None


@pytest.mark.parametrize(
    ("specs", "flags", "part"),
    [
        (["foof"], {"parameters": ["lr", "dampin"]}, "unknown parameter 'dampin' (did you mean 'damping'?)"),
        (["sgd"], {"parameters": ["damping"]}, "unknown parameter 'damping'"),
        (["foof"], {"parameters": ["lr", "lr"]}, "named twice"),
        (["foof"], {"parameters": []}, "needs the name of a parameter"),
        (["foof"], {"grids": {"T": "1,10"}}, "'T' is not among the swept parameters lr, damping"),
        (["foof"], {"grids": {"sgd.lr": "1,10"}}, "'sgd' is not among the methods foof"),
        (["foof"], {"grids": {"foof.T": "1,10"}}, "'T' is not among the swept parameters lr, damping"),
        (["foof"], {"grids": {"damping": "0,1"}}, "with damping 0 there is no step relative to it"),
        (["foof:damping=0"], {"parameters": ["lr"]}, "with damping 0 there is no step relative to it"),
        (["torch.optim:Adam"], {"parameters": ["betas"]}, "no default grid"),
        (["foof"], {"final_epochs": 2, "final_updates": 5}, "not both"),
        (["foof"], {"near": 0.5}, "near"),
        (["foof"], {"jobs": 0}, "jobs"),
    ],
)
def test_wrong_sweeps_are_one_sentence(specs, flags, part):
    with pytest.raises(UsageError) as error:
        plan(settings(*specs, **flags))
    assert part in str(error.value)


def test_cells_that_do_not_fit_are_named(tmp_path):
    flags = {"parameters": ["T"], "grids": {"T": "1,10"}}
    with pytest.raises(UsageError, match=r"the cell T 1 of foof-S=5 does not fit: .*S must be at most T = 1"):
        fake_sweep(tmp_path / "s", bowl(1), ["foof:S=5"], **flags)
    assert not list((tmp_path / "s").iterdir())


# Rounds.


def test_best_of_the_grid_is_found_and_run_again_with_fresh_seeds(tmp_path):
    summary, executor = fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof"], top=2, final_seeds=3, seed=5)
    method = summary["methods"]["foof"]
    assert (method["best"]["alpha"], method["best"]["damping"], method["best"]["lr"]) == (0.1, 1.0, 0.1)
    assert (method["trials"], method["at_edges"]) == (49, [])
    assert method["final"]["seeds"] == [6, 7, 8] and method["final"]["std"] == 0
    assert [seed for _, seed in executor.ran] == [5] * 49 + [6, 7, 8] * 2


def test_final_seeds_decide_between_the_leading_points(tmp_path):
    def loss(options, seed):
        lucky = seed == 0 and options["lr"] == 0.3 and options["damping"] == 1.0
        return 1e-4 if lucky else bowl(0.1, 1.0)(options, seed)

    summary, _ = fake_sweep(tmp_path / "s", loss, ["foof"], top=3)
    method = summary["methods"]["foof"]
    assert method["best"]["lr"] == 0.1 and method["tuned_loss"] == 1e-3, "its own, not the lucky one's"


def test_points_that_diverge_with_fresh_seeds_give_way_to_the_next_best(tmp_path):
    def loss(options, seed):
        fragile = seed == 2 and options["lr"] in (0.1, 0.03)  # the two best points
        return math.inf if fragile else bowl(0.07)(options, seed)

    flags = {"parameters": ["lr"], "extend": 0}
    summary, executor = fake_sweep(tmp_path / "s", loss, ["sgd"], **flags)
    method = summary["methods"]["sgd"]
    assert (method["tuned_loss"], method["best"]["lr"], method["fragile"]) == (bowl(0.07)({"lr": 0.3}, 0), 0.3, 2)
    assert method["final"]["seeds"] == [1, 2, 3] and math.isfinite(method["final"]["mean"])
    assert [seed for _, seed in executor.ran] == [0] * 7 + [1, 2, 3] * 3
    assert fake_sweep(tmp_path / "s", loss, ["sgd"], **flags)[0] == summary


def test_replacements_end_where_all_are_fragile(tmp_path):
    flags = {"parameters": ["lr"], "extend": 0}
    summary, _ = fake_sweep(tmp_path / "s", lambda o, s: math.inf if s else o["lr"], ["sgd"], **flags)
    method = summary["methods"]["sgd"]
    assert (method["fragile"], method["final"]["mean"], method["best"]["lr"]) == (7, math.inf, 0.001)


def test_seeds_are_averaged_and_one_that_diverges_spoils_its_cell(tmp_path):
    def loss(options, seed):
        return math.inf if seed == 2 and options["lr"] == 0.01 else bowl(0.01)(options, seed)

    summary, _ = fake_sweep(tmp_path / "s", loss, ["sgd"], parameters=["lr"], seeds=3, extend=0, top=0)
    method = summary["methods"]["sgd"]
    assert (method["trials"], method["cells"]) == (21, 7)
    assert method["best"]["lr"] == 0.03


def test_grid_is_extended_where_the_best_lies_at_an_edge_and_stops_inside(tmp_path):
    summary, _ = fake_sweep(tmp_path / "s", valley(0.1, 1e-6), ["foof"], extend=5, top=0)
    method = summary["methods"]["foof"]
    assert method["axes"]["damping"][0] == 1e-7, "two steps to the best, one to see that it is"
    assert method["best"]["damping"] == 1e-6 and method["at_edges"] == []
    assert method["trials"] == 49 + 3 * 7


def test_extension_is_bounded_and_the_edge_is_then_said(tmp_path):
    summary, _ = fake_sweep(tmp_path / "s", valley(0.1, 1e-9), ["foof"], extend=1, top=0)
    method = summary["methods"]["foof"]
    assert len(method["axes"]["damping"]) == 8 and "lower damping" in method["at_edges"]


def test_extension_ends_where_it_diverges(tmp_path):
    def loss(options, seed):
        return math.inf if options["damping"] > 100 else valley(0.1, 100.0)(options, seed)

    summary, _ = fake_sweep(tmp_path / "s", loss, ["foof"], extend=4, top=0)
    method = summary["methods"]["foof"]
    assert method["axes"]["damping"][-1] == 1000 and method["at_edges"] == []
    assert method["diverged"] == 7


def test_near_optimal_edges_count_by_the_stated_tolerance(tmp_path):
    def loss(options, seed):
        return bowl(0.1)(options, seed) * (1 if options["lr"] != 1.0 else 0.101 * 1.5)  # the edge: 1.5 times the best

    for near, edges in ((1.4, []), (1.6, ["upper lr"])):
        flags = {"parameters": ["lr"], "extend": 0, "top": 0, "near": near}
        summary, _ = fake_sweep(tmp_path / str(near), loss, ["sgd"], **flags)
        assert summary["methods"]["sgd"]["at_edges"] == edges


@pytest.mark.parametrize("sampler", ["random", "qmc", "tpe"])
def test_every_method_gets_the_same_number_of_trials(tmp_path, sampler):
    specs = ["foof", "kfac", "sgd"]

    def loss(options, seed):
        if options["opt"] == "sgd":
            return bowl(0.1)(options, seed)
        return valley(0.1, 1e-5 if options["opt"] == "kfac" else 1e-1)(options, seed)  # only kfac is extended

    summary, _ = fake_sweep(tmp_path / "s", loss, specs, refine=3, sampler=sampler, top=0)
    assert {method["trials"] for method in summary["methods"].values()} == {49 + 14 + 3}
    table = pd.read_csv(tmp_path / "s" / "trials.csv")
    counts = table.groupby(["method", "round"]).size().unstack(fill_value=0)
    assert counts["grid"].tolist() == [49, 49, 49] and counts["extend"].to_dict() == {"foof": 0, "kfac": 14, "sgd": 0}
    assert counts["refine"].to_dict() == {"foof": 17, "kfac": 3, "sgd": 17}


def test_random_refinement_stays_within_a_step_of_the_best(tmp_path):
    summary, executor = fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof"], refine=30, top=0)
    refined = [(options["lr"] / options["damping"], options["damping"]) for options, _ in executor.ran[49:]]
    assert len(set(refined)) == 30
    assert all(0.029 < alpha < 0.31 and 0.099 < damping < 10.01 for alpha, damping in refined)
    assert summary["methods"]["foof"]["tuned_loss"] <= 1e-3


def test_tpe_learns_from_the_finished_trials(tmp_path):
    """Its points lie nearer to the optimum, on average, than those that know nothing."""

    def typical(sampler):
        _, executor = fake_sweep(
            tmp_path / sampler, bowl(0.1, 1.0), ["foof"], refine=30, sampler=sampler, top=0, extend=0
        )
        losses = sorted(bowl(0.1, 1.0)(options, 0) for options, _ in executor.ran[49:])
        return losses[len(losses) // 2]

    assert typical("tpe") < typical("qmc")


def test_several_jobs_decide_the_same(tmp_path):
    one, _ = fake_sweep(tmp_path / "1", bowl(1e-6, 1e-6), ["foof", "sgd"], jobs=1, refine=4)
    three, executor = fake_sweep(tmp_path / "3", bowl(1e-6, 1e-6), ["foof", "sgd"], jobs=3, refine=4)
    assert executor.largest == 3
    for method in ("foof", "sgd"):
        assert one["methods"][method]["best"] == three["methods"][method]["best"]
        assert sorted(one["methods"][method]["losses"]) == sorted(three["methods"][method]["losses"])


def test_robustness_is_the_share_of_cells_within_twice_the_best(tmp_path):
    summary, _ = fake_sweep(tmp_path / "s", bowl(0.1), ["sgd"], parameters=["lr"], extend=0, top=0)
    assert summary["methods"]["sgd"]["robustness"] == {"within": 1, "of": 7}
    summary, _ = fake_sweep(tmp_path / "flat", lambda o, s: 1.0, ["sgd"], parameters=["lr"], extend=0, top=0)
    assert summary["methods"]["sgd"]["robustness"] == {"within": 7, "of": 7}


def test_all_diverged_is_a_result(tmp_path):
    summary, _ = fake_sweep(tmp_path / "s", lambda o, s: math.inf, ["foof"])
    method = summary["methods"]["foof"]
    assert (summary["status"], method["best"], method["diverged"], method["final"]) == ("done", None, 49, None)


# What is on disk.


def test_trials_csv_holds_alpha_and_lr(tmp_path):
    fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof", "sgd"], top=0)
    table = pd.read_csv(tmp_path / "s" / "trials.csv")
    columns = "trial method seed round alpha lr damping status final_train_loss best_train_loss test_accuracy updates"
    assert list(table) == [*columns.split(), "seconds_updates", "config_hash", "run_dir", "reason"]
    foof, sgd = (table[table["method"] == name] for name in ("foof", "sgd"))
    assert (foof["lr"] - foof["alpha"] * foof["damping"]).abs().max() < 1e-12
    assert sgd["lr"].notna().all() and sgd["alpha"].isna().all() and sgd["damping"].isna().all()
    assert table["config_hash"].is_unique


def test_best_files_are_read_by_the_other_commands(tmp_path):
    fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof", "kfac:T=10", "sgd"], final_epochs=None, final_updates=77)
    both = load_config(tmp_path / "s" / "best.yaml", command="wallclock")
    assert [method.label for method in both.methods] == ["foof", "kfac", "sgd"]
    assert both.run.updates == 77, "the full budget"
    kfac = load_config(tmp_path / "s" / "kfac-T=10" / "best.yaml")
    assert kfac.methods[0].options["lr"] == 0.1 and kfac.methods[0].options["T"] == 10


def test_nothing_is_run_twice(tmp_path):
    first, executor = fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof"])
    assert len(executor.ran) == 52
    again, executor = fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof"])
    assert executor.ran == [] and again == first
    _, executor = fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof", "sgd"])
    assert {options["opt"] for options, _ in executor.ran} == {"sgd"}


def test_sweeps_of_other_parameters_share_a_folder(tmp_path):
    fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof"], top=0)
    _, executor = fake_sweep(tmp_path / "s", bowl(0.1, 1.0), ["foof"], parameters=["T", "damping"], top=0)
    table = pd.read_csv(tmp_path / "s" / "trials.csv")
    assert len(table) == 49 + len(executor.ran) and table["config_hash"].is_unique
    assert table["alpha"].notna().sum() == 49


def test_crashed_trials_are_tried_once_more_then_recorded_and_tried_again_by_the_next_sweep(tmp_path):
    def loss(options, seed):
        return "crash" if options["lr"] == 0.1 else bowl(0.1)(options, seed)

    summary, executor = fake_sweep(tmp_path / "s", loss, ["sgd"], parameters=["lr"], top=0)
    assert [o["lr"] for o, _ in executor.ran].count(0.1) == 2 and len(executor.ran) == 8
    assert (summary["status"], summary["methods"]["sgd"]["failed"]) == ("failed", 1)
    assert pd.read_csv(tmp_path / "s" / "trials.csv")["status"].tolist().count("failed") == 1
    healed, executor = fake_sweep(tmp_path / "s", bowl(0.1), ["sgd"], parameters=["lr"], top=0)
    assert [o["lr"] for o, _ in executor.ran] == [0.1] and healed["status"] == "done"
    assert len(pd.read_csv(tmp_path / "s" / "trials.csv")) == 7


def test_hanging_trials_are_not_tried_again(tmp_path):
    def loss(options, seed):
        return "late" if options["lr"] == 0.1 else bowl(0.1)(options, seed)

    _, executor = fake_sweep(tmp_path / "s", loss, ["sgd"], parameters=["lr"], top=0)
    assert len(executor.ran) == 7


@pytest.mark.parametrize("bytes_left", [30, 200, 700])
def test_torn_trials_csv_loses_only_its_last_line(tmp_path, bytes_left):
    fake_sweep(tmp_path / "s", bowl(0.1), ["sgd"], parameters=["lr"], top=0)
    path = tmp_path / "s" / "trials.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[:bytes_left])
    _, executor = fake_sweep(tmp_path / "s", bowl(0.1), ["sgd"], parameters=["lr"], top=0)
    lines = whole[:bytes_left].count(b"\n")
    assert len(executor.ran) == 7 - max(lines - 1, 0)
    assert len(pd.read_csv(path)) == 7


def test_trials_that_fail_in_the_final_round_are_counted_and_do_no_harm(tmp_path):
    def loss(options, seed):
        return "crash" if seed == 2 else bowl(0.1)(options, seed)

    summary, _ = fake_sweep(tmp_path / "s", loss, ["sgd"], parameters=["lr"], extend=0)
    method = summary["methods"]["sgd"]
    assert summary["status"] == "failed" and method["failed"] > 0
    assert method["best"]["lr"] == 0.1 and (tmp_path / "s" / "best.yaml").is_file()


def test_labels_with_commas_survive_every_reopening(tmp_path):
    spec = "torch.optim:Adam:betas=(0.8,0.9)"
    for grid in ("0.1", "0.1,0.2", "0.1,0.2,0.3"):
        fake_sweep(tmp_path / "s", bowl(0.1), [spec], parameters=["lr"], grids={"lr": grid}, extend=0, top=0)
    table = pd.read_csv(tmp_path / "s" / "trials.csv")
    assert table["lr"].tolist() == [0.1, 0.2, 0.3] and table["trial"].tolist() == [0, 1, 2]
    assert table["method"].nunique() == 1 and "betas=(0.8," in table["method"][0]


def test_points_of_another_sampler_are_not_taken_for_those_of_tpe(tmp_path):
    flags = {"parameters": ["lr"], "refine": 3, "extend": 0, "top": 0}
    fake_sweep(tmp_path / "s", bowl(0.1), ["sgd"], **flags)
    _, executor = fake_sweep(tmp_path / "s", bowl(0.1), ["sgd"], sampler="tpe", **flags)
    assert len(executor.ran) == 3


def test_fresh_seeds_must_fit(tmp_path):
    with pytest.raises(UsageError, match="leaves no room for fresh seeds"):
        plan(settings("sgd", parameters=["lr"], seed=2**32 - 1))


# Handed on.


def test_the_configuration_is_resolved_once_for_all_trials(tmp_path, monkeypatch):
    """Trials come from the one configuration: no file is read and no SPEC of the command resolved again."""
    calls = []
    for name in ("read_yaml", "resolve_methods", "configure"):
        own = getattr(load, name)
        monkeypatch.setattr(load, name, lambda *a, name=name, own=own, **k: (calls.append(name), own(*a, **k))[1])
    _, executor = fake_sweep(tmp_path / "sweep", bowl(0.1), ["sgd"], grids={"lr": "1e-3:1:20"}, parameters=["lr"])
    assert len(executor.ran) > 20
    assert calls == ["configure", "resolve_methods"]


def test_a_trial_is_what_its_plain_values_give_in_its_process():
    config = settings("kfac:T=10,momentum=0.5", updates=7, final_updates=9)
    (kfac,) = plan(config)
    for round, updates in (("grid", 7), ("final", 9)):
        made = trial(config, kfac, kfac.cells()[3], round, 5)
        there = undump(dump(made.config))
        assert there.run == made.config.run and there.run.updates == updates and there.run.seed == 5
        assert there.problem == made.config.problem
        assert there.methods[0].options == made.config.methods[0].options
