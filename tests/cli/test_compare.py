"""`kfbench compare`: what it prints and leaves, without torch where nothing is trained; wrong use is one sentence."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.compare.comparable_runs import write_method
from tests.results.run_folders import tree

SMALL = ["--width", "8", "--train-samples", "60", "--eval-samples", "20", "--batch-size", "20", "--updates", "6"]
TWO = ["compare", "--opt", "sgd", "--opt", "adam", *SMALL]


@pytest.fixture
def runs(tmp_path):
    """Three finished runs in the working directory."""
    write_method(tmp_path / "a", "sgd", [(2.0, 1.0), (2.0, 1.2)])
    write_method(tmp_path / "b", "adam", [(2.0, 0.5), (2.0, 0.6)])
    write_method(tmp_path / "wide", "foof", [(2.0, 0.5)], width=9)


# Finished runs.


def test_folders_give_tables_and_leave_nothing(kfbench, runs):
    before = tree()
    code, out, err = kfbench("compare", "a", "b")
    assert code == 0 and tree() == before
    lines = out.splitlines()
    assert lines[1].split()[:3] == ["1", "adam", "0.55"] and "final loss / adam" in out
    assert "target: training loss 1.2, the highest final loss of any seed of sgd" in err


def test_formats_are_for_pipes(kfbench, runs):
    content = json.loads(kfbench("compare", "a", "b", "--format", "json")[1])
    assert content["methods"]["adam"]["rank"] == 1 and content["differences"][0]["n"] == 2
    assert kfbench("compare", "a", "b", "--format", "csv")[1].splitlines()[1].startswith("1,adam,0.55,")
    markdown = kfbench("compare", "a", "b", "--format", "markdown")[1].split("\n\n")
    assert [table.split("|")[1].strip() for table in markdown] == ["rank", "method", "method"]
    assert "updates: 95% interval" in markdown[2] and "unknown: 2 seeds, 6 needed" in markdown[2]


def test_reference_and_target_are_as_asked_for(kfbench, runs):
    found = json.loads(
        kfbench("compare", "a", "b", "--reference", "sgd", "--target-loss", "0.5", "--format", "json")[1]
    )
    assert found["reference"] == "sgd" and found["differences"][0]["method"] == "adam"
    assert found["target"]["loss"] == 0.5 and found["methods"]["adam"]["to_target"]["missed"] == 1


def test_page_and_plot_go_into_a_folder_of_their_own(kfbench, runs):
    before = tree()
    code, _, err = kfbench("compare", "a", "b", "--html", "--plot", "--out", "c")
    assert code == 0 and "page: c/compare.html" in err
    assert {p.name for p in Path("c").iterdir()} == {"config.yaml", "summary.json", "compare.html", "loss.png"}
    assert {path: content for path, content in tree().items() if not path.startswith("c")} == before
    assert kfbench("compare", "a", "b", "--html")[0] == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("-compare") and (folder / "compare.html").is_file()


def test_damage_is_named_and_exit_code_3(kfbench, runs):
    Path("a/seed-1/summary.json").unlink()
    Path("nothing").mkdir()
    code, out, err = kfbench("compare", "a", "b", "nothing")
    assert code == 3 and "adam" in out and "sgd" in out
    assert "left out: a/seed-1: has no summary.json" in err and "left out: nothing: holds no run" in err


_WITHOUT_TORCH = """
import json, sys
from kfbench.cli.app import main
sys.argv = ["kfbench", "compare", "a", "b", "own", "--html", "--plot", "--out", "c"]
try:
    main()
except SystemExit as ended:
    print(json.dumps([ended.code, sorted({"torch", "torchvision", "own_module"} & set(sys.modules))]))
"""


def test_finished_runs_are_compared_without_torch_also_of_users_classes(runs):
    shutil.copytree("b", "own")
    config = Path("own/config.yaml")
    config.write_text(config.read_text().replace("opt: adam", "opt: own_module:Own"))
    for path in Path("own").glob("seed-*/*"):
        path.write_text(path.read_text().replace("adam", "own_module.Own"))
    done = subprocess.run([sys.executable, "-c", _WITHOUT_TORCH], capture_output=True, text=True, timeout=120)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []], done.stderr


# Training what is missing.


def test_trains_three_seeds_once_and_continues(kfbench):
    code, out, err = kfbench(*TWO, "--html")
    assert code == 0 and "quick" not in err
    (folder,) = Path("runs").iterdir()
    assert folder.name.startswith("compare-") and (folder / "compare.html").is_file()
    assert json.loads((folder / "summary.json").read_text())["methods"]["sgd"]["seeds"] == [0, 1, 2]
    before = {path: path.read_bytes() for path in folder.glob("*/seed-*/*")}
    code, again, repeated = kfbench(*TWO)
    assert (code, again) == (0, out)
    assert "2 of 2 methods had been run before" in repeated and "had been run before" not in err
    code, more, _ = kfbench(*TWO, "--opt", "adamw", "--seeds", "1", "--reference", "sgd")
    assert code == 0 and len(more.splitlines()) == 4 + (1 + 3) + (1 + 4) and len(list(Path("runs").iterdir())) == 1
    assert {path: path.read_bytes() for path in before} == before
    code, out, _ = kfbench("compare", folder, "--format", "json")
    assert code == 0 and next(iter(json.loads(out)["methods"].values()))["rank"] == 1
    assert {len(m["seeds"]) for m in json.loads(out)["methods"].values()} == {1, 3}, "all that lies there"


def test_a_file_names_methods_and_flags_win(kfbench):
    Path("c.yaml").write_text(
        "problem: {width: 8, train_samples: 60, eval_samples: 20}\n"
        "methods: [{opt: foof, T: 2, lr: 0.1, damping: 1.0}, sgd]\n"
        "run: {batch_size: 20, updates: 6, seeds: 1}\n"
        "compare: {reference: sgd}\n"
    )
    code, out, _ = kfbench("compare", "c.yaml", "--out", "c", "--seeds", "2", "--format", "json")
    found = json.loads(out)
    assert code == 0 and found["reference"] == "sgd" and set(found["methods"]) == {"foof", "sgd"}
    assert found["methods"]["foof"]["seeds"] == [0, 1] and found["methods"]["foof"]["options"]["T"] == 2
    assert kfbench("compare", "--config", "c.yaml", "--out", "c")[0] == 0


def test_the_best_of_a_sweep_trains_as_it_is_and_compares_with_its_final_round(kfbench):
    grids = ["--grid", "lr=0.01,0.1", "--extend", "0", "--final-seeds", "2"]
    assert kfbench("sweep", "lr", "--opt", "sgd", *SMALL, *grids, "--out", "s")[0] == 0
    assert kfbench("compare", "s/best.yaml", "--seed", "1", "--seeds", "2", "--out", "c")[0] == 0
    code, out, _ = kfbench("compare", "s", "c", "--format", "json")
    one, other = json.loads(out)["methods"].values()
    assert code == 0 and one["mean"]["final_train_loss"] == other["mean"]["final_train_loss"], "bit for bit"
    assert sorted([str(one["trials"]), str(other["trials"])]) == ["2", "None"]


def test_a_diverged_method_is_a_result_with_exit_code_3(kfbench):
    code, out, err = kfbench("compare", "--opt", "sgd", "--opt", "adam:lr=1e30", *SMALL, "--seeds", "1", "--html")
    assert code == 3 and "inf" in out and "adam diverged with 1 of 1 seeds" in err


@pytest.mark.parametrize("block", [3, 4, 5], ids=["within a method", "at the very end of one", "within the last"])
def test_interrupted_and_continued(kfbench, monkeypatch, block):
    from kfbench.training import seed_run

    flush, calls = seed_run.SeedRun._flush, []

    def press_ctrl_c(self):
        calls.append(1)
        if len(calls) == block:
            self.stop.requested = True
        return flush(self)

    with monkeypatch.context() as patch:
        patch.setattr(seed_run.SeedRun, "_flush", press_ctrl_c)
        code, out, err = kfbench(*TWO, "--seeds", "2")
    assert code == 130 and "interrupted; the same command continues" in err and "sgd" in out and "left out" not in err
    code, out, _ = kfbench(*TWO, "--seeds", "2")
    assert code == 0 and "adam" in out


def test_another_problem_in_the_same_folder_is_refused_and_overwrite_begins_anew(kfbench):
    words = ["compare", "--opt", "sgd", *SMALL, "--seeds", "1", "--out", "c"]
    assert kfbench(*words)[0] == 0
    code, _, err = kfbench(*words, "--normalize", "own")
    assert code == 2 and "c holds a compare of another configuration; differing: problem.normalize" in err
    assert kfbench(*words, "--normalize", "own", "--overwrite")[0] == 0
    Path("mine").mkdir()
    Path("mine/thesis.tex").write_text("years of work")
    code, _, err = kfbench(*words[:-1], "mine")
    assert code == 2 and "mine holds something else than a compare" in err


def test_quick_trains_the_four_that_everybody_asks_for(kfbench):
    code, out, err = kfbench("compare", "--quick", "--width", "20", "--format", "json")
    assert code == 0 and set(json.loads(out)["methods"]) == {"sgd", "adam", "foof", "kfac"}
    assert "quick run: not for comparison" in err and json.loads(out)["methods"]["sgd"]["seeds"] == [0]


# Wrong use.


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("compare missing", "missing does not exist; compare takes folders of finished runs, or one YAML file"),
        ("compare a a/config.yaml", "a/config.yaml is a file"),
        ("compare a/config.yaml --config a/config.yaml", "give one configuration"),
        ("compare a b --width 9 --opt foof", "--width, --opt cannot change them"),
        ("compare a b --quick", "--quick cannot change them"),
        ("compare a wide", "a and wide do not compare: they differ in problem.width (8, 9)"),
        ("compare nothing", "no run is left to compare: nothing: holds no run"),
        ("compare a b --reference adm", "did you mean 'adam'?"),
        ("compare a b --target-loss low", "target_loss should be a valid number"),
        ("compare a b --out a --overwrite", "--out a and a, which is compared, lie in each other"),
        ("compare a b --out . --overwrite", "lie in each other"),
        ("compare a b --out a/deep", "lie in each other"),
        ("compare a b --out wide --html", "--out wide exists; give --overwrite to replace it"),
        ("compare --opt sgd --reference foof", "unknown reference 'foof'; accepted: sgd"),
        ("compare --opt sgd --opt sgd", "'sgd' is given twice"),
        ("compare --opt fofo", "did you mean 'foof'?"),
        ("compare --opt sgd --seeds 0", "seeds should be greater than or equal to 1"),
        ("compare --opt sgd --lr 1 --lr 2", "compare takes one value of --lr"),
        ("compare --opt torch.optim:Adam:betas=3 --opt sgd --quick", "raised on construction"),
        ("compare --set compare.x=1", "unknown key 'x'"),
        ("compare a/seed-0/epochs.csv", "must be a mapping of sections"),
    ],
)
def test_wrong_use_is_one_sentence_and_leaves_nothing(kfbench, runs, arguments, part):
    Path("nothing").mkdir()
    before = tree()
    code, out, err = kfbench(*shlex.split(arguments))
    assert (code, out) == (2, "") and tree() == before
    assert err.count("\n") == 1 and err.startswith("Error: ") and part in err, err


def test_help_imports_no_torch(kfbench):
    code, out, _ = kfbench("compare", "--help-all")
    assert code == 0
    for part in ("--reference", "--target-loss", "--html", "--seeds", "--opt", "DIR|FILE", "--overwrite"):
        assert part in out


# Profiles.


@pytest.fixture
def problems(tmp_path):
    """Two problems with two methods each."""
    for i, width in enumerate((8, 9)):
        write_method(tmp_path / f"p{i}" / "sgd", "sgd", [(2.0, 1.0)], width=width)
        write_method(tmp_path / f"p{i}" / "adam", "adam", [(2.0, 0.5 + i)], width=width)


def test_a_profile_is_printed_and_leaves_nothing_unless_asked(kfbench, problems):
    before = tree()
    code, out, err = kfbench("compare", "p0", "p1", "--profile", "--profile-by", "loss")
    assert code == 0 and tree() == before, err
    assert [line.split()[:4] for line in out.splitlines()[1:3]] == [["adam", "1", "of", "2"], ["sgd", "1", "of", "2"]]
    assert "p1" in out and "target loss" in out
    content = json.loads(kfbench("compare", "p0", "p1", "--profile", "--format", "json")[1])
    assert content["measure"] == "updates" and len(content["problems"]) == 2


def test_a_profile_is_written_and_replaced(kfbench, problems):
    for more in ([], ["--overwrite"]):
        assert kfbench("compare", "p0", "p1", "--profile", "--plot", "--out", "c", *more)[0] == 0
        assert {p.name for p in Path("c").iterdir()} == {"config.yaml", "summary.json", "profile.csv", "profile.png"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["p0", "--profile"], "a profile is over at least two problems, one folder each, got 1"),
        (["--profile"], "--profile takes folders of finished runs, one for each problem, got none"),
        (["p0", "p1", "--profile-by", "loss"], "--profile-by needs --profile, got --profile-by loss alone"),
        (["p0", "p1", "--profile", "--profile-by", "memory"], "profile_by should be 'updates', 'seconds' or 'loss'"),
        (["p0", "p1", "--profile", "--html"], "--profile is over several problems, got --html, which is of one"),
        (["p0", "p1", "--profile", "--target-loss", "1"], "got --target-loss, which is of one"),
        (["p0", "p1", "--profile", "--reference", "sgd"], "got --reference, which is of one"),
        (["p0", "p1", "--profile", "--width", "3"], "--profile is over several problems, got --width"),
        (["p0", "p1", "--profile", "--out", "p0"], "lie in each other"),
    ],
)
def test_what_makes_no_profile(kfbench, problems, arguments, sentence):
    before = tree()
    code, out, err = kfbench("compare", *arguments)
    assert (code, out) == (2, "") and sentence in err and tree() == before
