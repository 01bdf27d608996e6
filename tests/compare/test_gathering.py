"""From folders to a comparison: every kind of folder, every kind of damage, unlike runs refused."""

import csv
import shutil

import pytest
import yaml

from kfbench.compare.gathering import gather
from kfbench.errors import UsageError
from kfbench.results.records import CsvLog, write_yaml
from kfbench.sweep.losses import FIXED_AFTER, FIXED_BEFORE
from tests.compare.comparable_runs import write_method

CURVES = [(2.0, 1.0), (2.0, 1.5)]


def labels(comparison):
    return [method.label for method in comparison.methods]


def test_a_run_of_one_method(tmp_path):
    found = gather([write_method(tmp_path / "a", "foof", CURVES)])
    (method,) = found.methods
    assert (method.label, method.opt, method.trials, found.damaged) == ("foof", "foof", None, ())
    assert method.finals == {0: 1.0, 1: 1.5} and method.options["T"] == 100
    assert method.seeds[0].epochs[1]["train_loss"] == 1.0 and method.seeds[0].losses == tuple(
        (i, 2.0) for i in range(10)
    )
    assert found.problem["width"] == 8 and found.run["updates"] == 10


def test_records_without_updates_csv_are_enough(tmp_path):
    run = write_method(tmp_path / "a")
    for path in run.glob("seed-*/updates.csv"):
        path.unlink()
    found = gather([run])
    assert not found.damaged and found.methods[0].seeds[0].losses == ()


def test_a_folder_of_several_methods_and_what_it_promises(tmp_path):
    write_method(tmp_path / "c" / "sgd", "sgd")
    write_method(tmp_path / "c" / "foof-lr=0.3", "foof:lr=0.3", label="foof-lr=0.3")
    entries = [{"opt": "sgd"}, {"opt": "foof", "lr": 0.3}, {"opt": "foof", "lr": 0.1}]
    write_yaml(tmp_path / "c" / "config.yaml", {"methods": entries, "compare": {}})
    found = gather([tmp_path / "c"])
    assert labels(found) == ["foof-lr=0.3", "sgd"]
    assert found.damaged == (f"{tmp_path / 'c' / 'foof-lr=0.1'}: has not begun",)


def write_sweep(folder):
    """Two methods: foof with two points in its final round, the second better; sgd without a final round."""
    columns = (*FIXED_BEFORE, "lr", *FIXED_AFTER)
    folder.mkdir()
    log = CsvLog(folder / "trials.csv", columns)
    number = iter(range(100))

    def trial(method, round, lr, seed, loss):
        name = f"{method}/trial-{round}-{lr}-{seed}"
        log.append(
            [
                {
                    "trial": next(number),
                    "method": method,
                    "round": round,
                    "lr": lr,
                    "seed": seed,
                    "status": "done",
                    "final_train_loss": loss,
                    "run_dir": name,
                }
            ]
        )
        write_method(folder / name, f"{method}:lr={lr}", [(2.0, loss)], first_seed=seed, divergence_factor=10)

    for method in ("foof", "sgd"):
        for lr in (0.1, 0.2, 0.3):
            trial(method, "grid", lr, 0, lr)
    for lr, losses in ((0.1, (0.9, 0.8)), (0.2, (0.3, 0.5))):
        for seed, loss in enumerate(losses, 1):
            trial("foof", "final", lr, seed, loss)
    log.close()
    return folder


def test_a_sweep_gives_the_fresh_seeds_of_each_best_point_and_counts_trials(tmp_path):
    found = gather([write_sweep(tmp_path / "s")])
    (method,) = found.methods
    assert method.finals == {1: 0.3, 2: 0.5} and method.options["lr"] == 0.2
    assert (method.label, method.trials) == ("foof", 3)
    assert len(found.damaged) == 1 and "sgd has no final round" in found.damaged[0]


def test_final_rounds_of_other_budgets_are_not_mixed(tmp_path):
    sweep = write_sweep(tmp_path / "s")
    file = sweep / "foof" / "trial-final-0.2-2" / "config.yaml"
    tree = yaml.safe_load(file.read_text())
    tree["run"] |= {"batch_size": 7}
    file.write_text(yaml.safe_dump(tree))
    found = gather([sweep])
    assert not found.methods
    assert any("trial-final-0.2-2: differs from" in line and "run.batch_size" in line for line in found.damaged)


def test_a_sweep_compares_with_plain_runs(tmp_path):
    """When to give up a lost run is no part of the budget."""
    plain = write_method(tmp_path / "a", "adam")
    assert labels(gather([write_sweep(tmp_path / "s"), plain])) == ["foof", "adam"]


# Labels.


def test_labels_that_clash_get_the_options_that_differ(tmp_path):
    for lr in (0.1, 0.2):
        write_method(tmp_path / f"{lr}", f"foof:lr={lr}")
    write_method(tmp_path / "sgd", "sgd")
    assert labels(gather(sorted(tmp_path.iterdir()))) == ["foof-lr=0.1", "foof-lr=0.2", "sgd"]


def test_equal_methods_are_told_apart_by_their_folders(tmp_path):
    one, two = write_method(tmp_path / "one"), write_method(tmp_path / "two")
    assert labels(gather([one, two])) == ["sgd (one)", "sgd (two)"]
    far = write_method(tmp_path / "far" / "one")
    assert labels(gather([one, far])) == [f"sgd ({one})", f"sgd ({far})"]


def test_a_folder_given_twice_is_one(tmp_path, monkeypatch):
    run = write_method(tmp_path / "a")
    monkeypatch.chdir(tmp_path)
    assert labels(gather([run, run, run / ".." / "a"])) == ["sgd"]


# Unlike runs.


@pytest.mark.parametrize(
    ("flags", "keys"),
    [
        ({"width": 9}, ["problem.width (8, 9)"]),
        ({"updates": 20}, ["run.updates (10, 20)"]),
        ({"batch_size": 50, "normalize": "own"}, ["problem.normalize (mnist, own)", "run.batch_size (100, 50)"]),
    ],
)
def test_other_problems_and_budgets_are_refused(tmp_path, flags, keys):
    one, other = write_method(tmp_path / "one"), write_method(tmp_path / "other", "foof", **flags)
    with pytest.raises(UsageError) as caught:
        gather([one, other])
    assert f"{one} and {other} do not compare: they differ in {', '.join(keys)}" == str(caught.value)


def test_other_devices_threads_and_places_are_not(tmp_path):
    one = write_method(tmp_path / "one", data_dir="/here", threads=2, target_loss=0.5)
    other = write_method(tmp_path / "other", "foof", device="cuda")
    assert len(gather([one, other]).methods) == 2


# Damage.


def cut(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


DAMAGE = {
    "a torn epochs.csv": lambda run: cut(run / "seed-1" / "epochs.csv", -5),
    "an epochs.csv cut between lines": lambda run: edit(
        run / "seed-1" / "epochs.csv", "\n".join((run / "seed-1" / "epochs.csv").read_text().split("\n")[2:]), ""
    ),
    "words for numbers": lambda run: edit(run / "seed-1" / "epochs.csv", "1.5", "one"),
    "other columns": lambda run: edit(run / "seed-1" / "epochs.csv", "train_loss", "loss"),
    "a row without its update": lambda run: edit(run / "seed-1" / "epochs.csv", "1,10,", "1,,"),
    "no epochs.csv": lambda run: (run / "seed-1" / "epochs.csv").unlink(),
    "an empty epochs.csv": lambda run: (run / "seed-1" / "epochs.csv").write_text(""),
    "bytes that are no text": lambda run: (run / "seed-1" / "epochs.csv").write_bytes(b"\xff\xfe\x00"),
    "a torn updates.csv": lambda run: cut(run / "seed-1" / "updates.csv", -1),
    "no summary": lambda run: (run / "seed-1" / "summary.json").unlink(),
    "a torn summary": lambda run: cut(run / "seed-1" / "summary.json", 20),
    "a summary that is a list": lambda run: (run / "seed-1" / "summary.json").write_text("[]"),
    "a summary without a loss": lambda run: edit(run / "seed-1" / "summary.json", "final_train_loss", "x"),
    "an interrupted seed": lambda run: edit(run / "seed-1" / "summary.json", '"done"', '"interrupted"'),
    "a failed seed": lambda run: edit(run / "seed-1" / "summary.json", '"done"', '"failed"'),
    "a seed that never began": lambda run: shutil.rmtree(run / "seed-1"),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_seed_is_named_and_left_out(tmp_path, damage):
    run, sound = write_method(tmp_path / "run", "foof", CURVES), write_method(tmp_path / "sound")
    damage(run)
    found = gather([run, sound])
    assert len(found.damaged) == 1 and str(run / "seed-1") in found.damaged[0], found.damaged
    assert {method.label: list(method.finals) for method in found.methods} == {"foof": [0], "sgd": [0, 1]}


RUIN = {
    "no config": lambda run: (run / "config.yaml").unlink(),
    "a torn config": lambda run: cut(run / "config.yaml", 70),
    "no YAML": lambda run: (run / "config.yaml").write_text("{["),
    "a list": lambda run: (run / "config.yaml").write_text("[1]"),
    "no methods": lambda run: edit(run / "config.yaml", "methods", "method"),
    "two methods": lambda run: edit(run / "config.yaml", "methods:\n", "methods:\n- opt: sgd\n"),
    "a method without a name": lambda run: edit(run / "config.yaml", "opt: foof", "opt: [1]"),
    "no problem": lambda run: edit(run / "config.yaml", "problem:", "problems:"),
    "a wrong value": lambda run: edit(run / "config.yaml", "batch_size: 100", "batch_size: many"),
    "no JSON": lambda run: (run / "environment.json").write_text("{"),
    "no seed": lambda run: [shutil.rmtree(path) for path in run.glob("seed-*")],
    "no seed that ended": lambda run: [path.unlink() for path in run.glob("seed-*/summary.json")],
}


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("verdict.json", "give the claim's YAML"),
        ("similarity.csv", "a run of similarity"),
        ("windows.csv", "wallclock"),
    ],
)
def test_what_other_commands_leave_is_named(tmp_path, name, part):
    (tmp_path / name).touch()
    (tmp_path / "seed-0").mkdir()
    assert part in gather([tmp_path]).damaged[0]


@pytest.mark.parametrize("ruin", RUIN.values(), ids=RUIN)
def test_a_ruined_run_is_named_and_left_out(tmp_path, ruin):
    run, sound = write_method(tmp_path / "run", "foof", CURVES), write_method(tmp_path / "sound")
    ruin(run)
    found = gather([run, sound])
    assert labels(found) == ["sgd"]
    assert found.damaged and all(str(run) in sentence for sentence in found.damaged), found.damaged


def test_folders_that_hold_no_run(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "trials.csv").write_text(",".join((*FIXED_BEFORE, *FIXED_AFTER)) + "\n")
    found = gather([tmp_path / "empty", tmp_path / "sweep"])
    assert found.methods == ()
    assert "holds no run" in found.damaged[0] and "holds no trial" in found.damaged[1]


def test_a_torn_last_trial_is_as_if_it_had_not_been(tmp_path):
    sweep = write_sweep(tmp_path / "s")
    with open(sweep / "trials.csv", "a") as file:
        file.write("99,foof,3,final,0.2")
    assert gather([sweep]).methods[0].finals == {1: 0.3, 2: 0.5}
    rows = list(csv.DictReader((sweep / "trials.csv").open()))
    assert len(rows) == 11


def test_only_the_seeds_asked_for_and_by_the_names_given(tmp_path):
    run = write_method(tmp_path / "a", "sgd", [(2.0, 1.0)] * 3)
    found = gather([run], seeds=[1, 3], names={run: "mine"})
    assert labels(found) == ["mine"] and list(found.methods[0].finals) == [1]
    assert found.damaged == (f"{run / 'seed-3'}: has not begun",)
