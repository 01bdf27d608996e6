"""Published claims in `kfbench compare`: run, judged, kept, used again; and every wrong file as one sentence."""

import dataclasses
import json
from pathlib import Path

import pytest

from kfbench.claims.file import RULES, read_claim
from kfbench.config import method_table as registry
from kfbench.config import specs as methods
from kfbench.config.load import load_config
from tests.results.run_folders import tree

# foof beats sgd with a step that hardly moves, in few updates of a tiny network: an easy claim, and its contrary.
CLAIM = """
problem: {{dataset: fashion-mnist-1k, width: 8, train_samples: 60, eval_samples: 20}}
methods: [foof, sgd]
run: {{updates: 15, batch_size: 20}}
sweep:
  parameters: [lr, damping]
  # Of single values there are no edges, at which a verdict would be withheld.
  grids: {{lr: "0.3", damping: "1.0", sgd.lr: "2e-9"}}
  extend: 0
  final_seeds: 5
similarity: {{follow: foof, every: 3, progress: true}}
compare:
  claim:
    id: easy
    source: nowhere
    says: FOOF beats a step that hardly moves
    parts:
    - {{measure: {measure}, of: {of}, to: {to}, {side}}}
    {more}
"""
CLEAN = {"git_commit": "abc", "git_dirty": False}
LOSS = {"measure": "final_train_loss", "of": "foof", "to": "sgd", "side": "below: 4", "more": ""}


@pytest.fixture(autouse=True)
def clean_commit(monkeypatch):
    """Whatever is being worked on: only verdicts of a clean commit are kept."""
    monkeypatch.setattr("kfbench.cli.claims.commit", lambda: CLEAN)
    monkeypatch.setattr("kfbench.results.environment.commit", lambda: CLEAN)


def write(text=CLAIM, name="easy", **changes):
    path = Path("configs") / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text.format(**{**LOSS, **changes}))
    return path


def test_a_claim_is_run_judged_kept_and_not_run_again(kfbench):
    path = write(more="published: ['foof:lr=0.05,damping=1.0']\n    ask: [sgd]")
    code, out, err = kfbench(
        "compare", path, "--scale", "full", "--keep", "docs/results", "--plot", "--strict", "--format", "json"
    )
    assert code == 0, err
    record = json.loads(out)
    assert record["verdict"] == "reproduced" and "verdict at scale full: reproduced" in err
    assert record["parts"][0]["n"] == 5 and record["parts"][0]["high"] < 4
    assert record["methods"]["foof"]["trials"] == record["methods"]["sgd"]["trials"] == 1
    assert record["published"]["foof"]["final"]["seeds"] == [1, 2, 3, 4, 5]
    kept = Path("docs/results/full/easy")
    assert {"verdict.json", "trials.csv", "environment.json", "config.yaml", "epochs.csv", "ratios.png"} == {
        p.name for p in kept.iterdir()
    }
    Path("runs").rename("elsewhere")  # a fresh clone has the committed summary alone
    before = tree(".")
    code, again, err = kfbench("compare", path, "--scale", "full", "--format", "json")
    assert code == 0 and json.loads(again) == record and "judged before" in err
    assert tree(".") == before
    code, out, _ = kfbench("compare", "configs", "--scale", "full", "--format", "csv")
    assert code == 0 and "easy,nowhere," in out and ",full,reproduced," in out
    # Another predicate over the same runs is judged anew, from the committed trials; this one does not hold.
    path = write(side="above: 4", more="published: ['foof:lr=0.05,damping=1.0']\n    ask: [sgd]")
    code, out, err = kfbench("compare", path, "--scale", "full", "--strict")
    assert code == 1 and "verdict at scale full: not reproduced" in err
    assert not list(Path("runs").glob("sweep-*/*/trial-*")), "no trial was run again"


def test_directions_are_asked_along_the_tuned_trajectory(kfbench):
    path = write(measure="progress", of="sgd", to="foof", side="above: 1.0e-9", more="ask: [sgd]")
    code, out, err = kfbench("compare", path, "--scale", "full", "--format", "json")
    assert code == 0, err
    record = json.loads(out)
    assert record["similarity"]["follow"] == "foof"
    assert {row["seed"] for row in record["similarity"]["progress"]} == {1, 2, 3, 4, 5}
    assert all(value > 0 for value in record["parts"][0]["values_to"])


def test_one_method_is_asked_at_several_dampings(kfbench):
    more = "ask: ['foof:damping=2', 'foof:damping=0.5', sgd]"
    side = "below: 1, kind: as-is"
    path = write(measure="progress", of="foof-damping=2", to="foof-damping=0.5", side=side, more=more)
    code, out, err = kfbench("compare", path, "--scale", "full", "--format", "json")
    assert code == 0, err
    (part,) = json.loads(out)["parts"]
    assert all(of < to for of, to in zip(part["values_of"], part["values_to"], strict=True)), "damped more"


@pytest.mark.parametrize("compose", ["always", "never"])
def test_costs_are_of_composed_periods_where_the_claim_says_so(kfbench, compose):
    """A period of a large network may take an hour; the claim is judged on the ratios that wallclock shows."""
    head, tail = CLAIM.split("sweep:")[0], CLAIM[CLAIM.index("similarity:") :]
    text = head.replace("[foof, sgd]", "[sgd, 'foof:T=40']")
    text += f"wallclock: {{{{compose: {compose}, rounds: 6, window_seconds: 0.01}}}}\n{tail}"
    path = write(text, measure="seconds_per_update", of="foof", to="sgd", side="above: 1.0e-9")
    code, out, err = kfbench("compare", path, "--scale", "full", "--format", "json")
    assert code == 0, err
    record = json.loads(out)
    foof = record["wallclock"]["methods"]["foof"]
    assert record["verdict"] == "reproduced" and foof["composed"] == (compose == "always")
    (part,) = record["parts"]
    assert (part["ratio"], part["low"], part["high"]) == tuple(foof[k] for k in ("ratio", "ratio_low", "ratio_high"))


def test_what_was_asked_of_a_claim_can_be_read_back(kfbench):
    text = CLAIM.replace("[foof, sgd]", "['foof:T=7', sgd]").replace("follow: foof", "follow: foof-T=7")
    path = write(text, measure="progress", of="sgd", to="foof-T=7", side="above: 1.0e-9", more="ask: [sgd]")
    assert kfbench("compare", path, "--quick")[0] == 0
    (written,) = Path("runs/compare-easy-smoke").glob("similarity-*/config.yaml")
    again = load_config(written, command="similarity")
    assert [method.opt for method in again.methods] == ["foof", "sgd"]
    assert (again.similarity.follow, again.methods[0].options["T"]) == ("foof", 7)


def test_a_folder_of_claims_runs_nothing(kfbench):
    write()
    code, out, _ = kfbench("compare", "configs")
    assert code == 0 and "not run" in out and not Path("runs").exists()


def test_a_verdict_that_is_kept_is_of_a_clean_commit(kfbench, monkeypatch):
    path = write(more="ask: [sgd]")
    for place in ("kfbench.cli.claims.commit", "kfbench.results.environment.commit"):
        monkeypatch.setattr(place, lambda: CLEAN | {"git_dirty": True})
    code, _, err = kfbench("compare", path, "--keep", "docs/results")
    assert code == 2 and "kfbench's own code differs from its commit" in err and not Path("runs").exists()
    assert kfbench("compare", path)[0] == 0, "it may be judged"
    monkeypatch.setattr("kfbench.cli.claims.commit", lambda: CLEAN)  # committed since
    code, _, err = kfbench("compare", path, "--keep", "docs/results")
    assert code == 2 and "was judged by code that differs from its commit" in err and not Path("docs").exists()


def test_a_verdict_is_withheld_where_the_best_lies_at_an_edge(kfbench):
    text = CLAIM.replace('sgd.lr: "2e-9"', 'sgd.lr: "1e-9,2e-9"').replace('lr: "0.3"', 'lr: "0.1,0.3"')
    code, out, err = kfbench("compare", write(text), "--scale", "full", "--format", "json")
    record = json.loads(out)
    assert code == 0 and record["verdict"] == "withheld (edge: sgd, upper lr)" and record["rules"] == RULES
    assert record["methods"]["sgd"]["best_edges"] == ["upper lr"]
    assert "sgd is best at the upper lr edge of its grid: its loss is an upper bound" in err
    # The other way round the ratio is an upper bound, and is not confirmed to be above anything.
    code, out, _ = kfbench("compare", write(text, of="sgd", to="foof", side="above: 0.1"), "--scale", "full")
    assert code == 0 and "reproduced" not in out


def test_at_scale_small_it_shows_a_trend_unless_its_size_is_no_part_of_it(kfbench):
    for more, expected in (("ask: [sgd]", "trend (as claimed)"), ("scale_free: true", "reproduced")):
        code, out, err = kfbench("compare", write(more=more), "--format", "json")
        assert code == 0 and json.loads(out)["verdict"] == expected, err


def test_only_the_verdict_that_was_shown_is_kept(kfbench):
    path = write(more="ask: [sgd]")
    stale, kept = Path("runs/compare-easy-full/verdict.json"), Path("docs/results/full/easy/verdict.json")
    file = read_claim(path, "full")
    for place, hash, verdict in ((stale, "another", "not reproduced"), (kept, file.hash, "reproduced")):
        place.parent.mkdir(parents=True)
        record = {**file.claim.model_dump(include={"id", "source", "says"}), "scale": "full", "hash": hash}
        place.write_text(json.dumps({**record, "verdict": verdict, "parts": []}))
    code, _, err = kfbench("compare", path, "--scale", "full", "--keep", "docs/results")
    assert code == 0 and "verdict at scale full: reproduced" in err
    assert json.loads(kept.read_text())["verdict"] == "reproduced"
    kept.write_text('{"half')
    code, _, err = kfbench("compare", "configs", "--scale", "full")
    assert code == 3 and f"{kept} cannot be read" in err


def test_the_hash_does_not_depend_on_where_it_runs():
    path = write()
    elsewhere = {"threads": "2", "data_dir": "elsewhere", "executor": "ray", "jobs": "4", "trial_gpus": "0.25"}
    assert read_claim(path, "small").hash == read_claim(path, "small", elsewhere).hash
    assert read_claim(path, "small").hash != read_claim(path, "full").hash


def test_the_hash_does_not_depend_on_defaults_of_swept_parameters(monkeypatch):
    path, foof, claimed = write(), methods.METHODS["foof"], read_claim(Path("configs/easy.yaml"), "small").hash

    def with_default(name, value):
        entry = dataclasses.replace(foof, options={**foof.options, name: value})
        monkeypatch.setattr(methods, "METHODS", {**registry.METHODS, "foof": entry})
        return read_claim(path, "small").hash

    assert with_default("lr", 0.7) == claimed
    assert with_default("damping", 7.0) == claimed
    assert with_default("T", 7) != claimed


def test_the_hash_knows_what_decides(tmp_path):
    def hash(text=CLAIM, **changes):
        return read_claim(write(text, **changes), "full").hash

    same = hash()
    assert hash(CLAIM.replace("updates: 15", "seeds: 3, updates: 15")) != same, "the seeds of tuning"
    assert hash(CLAIM.replace("updates: 15", "seed: 5, updates: 15")) != same
    assert hash(more="notes: in other words") == same
    assert hash(more="small: {run.updates: 9}") == same, "that of another scale"
    asked = hash(more="ask: [kfac]")
    assert asked != same and hash(more="ask: ['kfac:fisher=sampled']") == asked, "the default, spelled out"
    assert hash(more="ask: ['kfac:fisher=full']") != asked
    assert hash(more="published: ['foof:lr=0.1']") != hash(more="published: ['foof:lr=0.2']")
    of_time = write(measure="seconds_to_loss")
    assert read_claim(of_time, "full").hash != read_claim(of_time, "full", {"device": "cuda"}).hash


@pytest.mark.parametrize(
    ("changes", "words", "part"),
    [
        ({"measure": "final_los"}, [], "part 1 of claim 'easy' of easy.yaml: measure should be 'final_train_loss'"),
        ({"side": "below: 1, above: 2"}, [], "give below or above for final_train_loss of 'foof', got both or none"),
        ({"side": "below: -1"}, [], "below should be greater than 0, got -1"),
        ({"of": "fooof"}, [], "unknown method in easy.yaml 'fooof' (did you mean 'foof'?)"),
        ({"more": "askk: [sgd]"}, [], "unknown option of claim 'easy' of easy.yaml 'askk' (did you mean 'ask'?)"),
        ({"of": "[1]"}, [], "of should be"),
        ({"of": "sgd"}, [], "final_train_loss of 'sgd' to itself is always 1"),
        ({}, ["--keep", "configs/easy.yaml/there"], "configs/easy.yaml is a file, expected a folder"),
        ({"more": "published: [sgd]"}, [], "sweep needs the name of a parameter"),
        ({"more": "published: ['foof:dampin=1']"}, [], "unknown option of 'foof' 'dampin'"),
        ({"measure": "progress", "more": "ask: [foo]"}, [], "unknown method 'foo'"),
        ({"measure": "progress"}, [], "unknown method in easy.yaml 'sgd'"),
        ({"measure": "seconds_per_update", "of": "adam"}, [], "unknown method in easy.yaml 'adam'"),
        ({"side": "below: 1, decides: false"}, [], "no part decides"),
        ({"measure": "progress", "more": "ask: [sgd, sgd]"}, [], "asks 'sgd' twice"),
        ({"measure": "frobenius_error", "more": "ask: [sgd]"}, [], "needs layers in similarity.spectrum"),
        (
            {"measure": "cosine_distance", "of": "foof ~ sgd", "to": "foof ~ adam"},
            [],
            "unknown method in easy.yaml 'sgd'",
        ),
        ({"more": "small: {run.epoch: 3}"}, [], "unknown key of a claim's small 'run.epoch'"),
        ({}, ["--out", "configs"], "holds something else than claim 'easy'"),
        ({}, ["--out", "configs/easy.yaml"], "is a file, expected a folder"),
        ({}, ["configs/typo.yaml"], "typo.yaml does not exist"),
        ({}, ["--deterministic"], "--deterministic cannot change it"),
        ({}, ["--epochs", "3"], "--epochs cannot change it; use --scale"),
        ({}, ["--opt", "adam"], "--opt cannot change it"),
        ({}, ["--scale", "huge"], "huge"),
    ],
)
def test_what_does_not_fit_is_one_sentence(kfbench, changes, words, part):
    code, out, err = kfbench("compare", write(**changes), *words)
    assert (code, out) == (2, "")
    assert part in err, err
    assert not Path("runs").exists() or not list(Path("runs").glob("*/*"))


def test_a_folder_with_a_ruined_yaml_shows_the_others(kfbench):
    write()
    Path("configs/ruined.yaml").write_text("compare: [")
    code, out, err = kfbench("compare", "configs", "--format", "csv")
    assert code == 0 and "easy," in out and "left out: config configs/ruined.yaml cannot be read" in err


def test_layers_are_checked_before_anything_is_tuned(kfbench):
    text = CLAIM.replace("progress: true", "spectrum: ['9']").replace("[foof, sgd]", "[kfac, sgd]")
    text = text.replace("follow: foof", "follow: kfac")
    path = write(text, measure="frobenius_error", of="kfac", to="ekfac", more="ask: [ekfac]")
    code, _, err = kfbench("compare", path, "--scale", "full")
    assert code == 2 and "easy.yaml: --spectrum 9: no such layer is captured; there are 1, 3, 5, 7" in err
    assert not list(Path("runs").glob("*/*"))


def test_trials_of_a_claim_run_where_they_are_asked_to(kfbench):
    folder, path = Path("runs"), write()
    code, _, err = kfbench("compare", path, "--scale", "smoke", "--executor", "processes", "-j", "2")
    assert code == 0, err
    code, _, err = kfbench("compare", path, "--scale", "full", "--ray-address", "auto")
    assert code == 2 and "ray_address auto is of --executor ray, got --executor processes" in err
    assert (folder / "compare-easy-smoke" / "verdict.json").is_file()


def test_flags_of_claims_are_refused_where_there_is_none(kfbench):
    for flags in (["--strict"], ["--scale", "full"], ["--keep", "there"]):
        code, _, err = kfbench("compare", "--quick", *flags)
        assert code == 2 and f"{flags[0]} is for published claims" in err


def test_what_is_left_of_a_claim_that_was_stopped_is_gone_on_with(kfbench):
    path, folder = write(), Path("runs/compare-easy-smoke")
    folder.mkdir(parents=True)
    (folder / "trials.csv").touch()
    (folder / "config.yaml").touch()
    assert kfbench("compare", path, "--quick")[0] == 0
    assert json.loads((folder / "verdict.json").read_text())["id"] == "easy"


def test_a_stale_committed_verdict_is_shown_with_a_warning(kfbench):
    file, kept = read_claim(write(), "small"), Path("docs/results/small/easy/verdict.json")
    kept.parent.mkdir(parents=True)
    record = {**file.claim.model_dump(include={"id", "source", "says"}), "scale": "small", "hash": "another"}
    kept.write_text(json.dumps({**record, "verdict": "not reproduced", "parts": []}))
    code, out, err = kfbench("compare", "configs", "--format", "csv")
    assert code == 0 and "easy,nowhere," in out and ",small,stale (not reproduced)," in out
    assert "judged with another configuration, run again: easy" in err
    assert kfbench("compare", "configs", "--strict")[0] == 0, "a stale refutation refutes nothing"


def test_every_committed_claim_is_sound(request):
    """Labels, measures, grids: what a claim names is what it runs, at both scales."""
    from kfbench.claims.file import claims_in
    from kfbench.claims.run import check_claim
    from kfbench.config.problem_table import MODELS
    from kfbench.sweep.plan import plan

    paths = claims_in(request.config.rootpath / "configs")
    assert len(paths) >= 20
    for path in paths:
        assert path.read_text().startswith(f"# kfbench compare configs/{path.name}\n")
        for scale in ("small", "full"):
            file = read_claim(path, scale)
            assert file.claim.id == path.stem
            check_claim(file)
            if file.tunes:
                # Of lr and damping; a sweep gives methods with fewer cells as many further trials as others have more.
                # Those on convolutional models share the trials of their sweeps.
                cells = 15 if MODELS[file.config.problem.model].convolutional else 12
                fewest = 4 if len(file.config.sweep.parameters) == 1 else cells
                assert min(method.size for method in plan(file.config)) >= fewest, path
