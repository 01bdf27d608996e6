"""trials.csv and the folders of trials, read back by a sweep that goes on: as they were, or refused by name."""

import json
import math
import warnings

import pytest

from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.sweep.ledger import Ledger, adopt, read_trials
from kfbench.sweep.losses import FIXED_AFTER, FIXED_BEFORE
from kfbench.sweep.plan import plan, trial
from tests.compare.comparable_runs import write_method

COLUMNS = (*FIXED_BEFORE, "lr", *FIXED_AFTER)
ROW = "0,sgd,0,grid,0.1,done,0.5,0.5,0.8,10,1.0,abc,sgd/trial-abc,\n"
SOUND = ",".join(COLUMNS) + "\n" + ROW
DAMAGE = {
    "another encoding": SOUND.encode("utf-16"),
    "no text": b"\xff\xfe\x00",
    "zeros": bytes(4096),
    "a huge cell": SOUND.replace("abc", "x" * 200_000).encode(),
    "a column less": SOUND.replace("final_train_loss,", "").replace("done,0.5,", "done,").encode(),
    "a cell less": SOUND.replace("done,0.5,", "done,").encode(),
    "a word for a loss": SOUND.replace("done,0.5", "done,half").encode(),
    "a word for its number": SOUND.replace("\n0,", "\nfirst,").encode(),
    "done without a loss": SOUND.replace("done,0.5", "done,").encode(),
    "done at nan": SOUND.replace("done,0.5", "done,nan").encode(),
    "done at -inf": SOUND.replace("done,0.5", "done,-inf").encode(),
    "diverged at a loss": SOUND.replace("done", "diverged").encode(),
    "an unknown status": SOUND.replace("done", "dome").encode(),
}


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_one_is_named_with_the_way_on(tmp_path, content):
    path = tmp_path / "s" / "trials.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    for call in (lambda: Ledger(path.parent, ["lr"]), lambda: adopt(path.parent, tmp_path / "none.csv")):
        with pytest.raises(UsageError, match="remove it, the same command then finds the trials") as caught:
            call()
        assert str(path) in str(caught.value)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match=r"trials\.csv"):
        adopt(tmp_path / "other", path)
    assert path.read_bytes() == content and not list((tmp_path / "other").iterdir())


def test_a_byte_order_mark_changes_nothing(tmp_path):
    path = tmp_path / "trials.csv"
    path.write_bytes(b"\xef\xbb\xbf" + SOUND.encode())
    with Ledger(tmp_path, ["lr"]) as ledger:
        assert ledger.rows["abc"]["final_train_loss"] == 0.5 and ledger.rows["abc"]["trial"] == "0"
    assert [row["config_hash"] for row in read_trials(path)] == ["abc"]
    (tmp_path / "new").mkdir()
    assert adopt(tmp_path / "new", path) == 1


def test_divergence_without_a_reason_is_not_believed(tmp_path):
    """It was noted when one bad update of a full batch could end a trial; what is done stands as it is."""
    columns = [name for name in COLUMNS if name != "reason"]
    diverged = "1,sgd,0,grid,3,diverged,inf,2.3,,3,1.0,def,sgd/trial-def\n"
    old = tmp_path / "old" / "trials.csv"
    old.parent.mkdir()
    old.write_text(",".join(columns) + "\n" + ROW.replace(",\n", "\n") + diverged)
    assert [row["config_hash"] for row in read_trials(old)] == ["abc", "def"]
    with Ledger(old.parent, ["lr"]) as ledger:
        assert list(ledger.rows) == ["abc"]
    told = old.with_name("told.csv")
    told.write_text(SOUND + diverged.replace("\n", ",the loss of update 3 is inf\n"))
    for path, kept in ((old, ["abc"]), (told, ["abc", "def"])):
        folder = tmp_path / path.stem / "new"
        folder.mkdir(parents=True)
        assert adopt(folder, path) == len(kept)
        assert [row["config_hash"] for row in read_trials(folder / "trials.csv")] == kept


def test_why_a_trial_ended_is_noted(tmp_path):
    config = load_config(specs=["sgd"], flags={"updates": 10, "width": 8}, command="sweep")
    config = config.with_sweep(parameters=("lr",), grids={"lr": [0.1]})
    (method,) = plan(config)
    summary = {"status": "diverged", "final_train_loss": math.inf, "reason": "the loss of update 3 is inf, or so"}
    with Ledger(tmp_path, ["lr"]) as ledger:
        ledger.record(trial(config, method, {"lr": 0.1}, "grid", 0), summary)
    with Ledger(tmp_path, ["lr"]) as ledger:
        assert [row["reason"] for row in ledger.rows.values()] == ["the loss of update 3 is inf, or so"]


@pytest.mark.parametrize("damage", [{"final_train_loss": 0.1}, {"seed": 3}, None])
def test_a_trial_whose_folder_contradicts_itself_is_run_again(tmp_path, damage):
    config = load_config(specs=["sgd"], flags={"updates": 10, "width": 8}, command="sweep")
    config = config.with_sweep(parameters=("lr",), grids={"lr": [0.1]})
    (method,) = plan(config)
    wanted = trial(config, method, {"lr": 0.1}, "grid", 0)
    folder = write_method(tmp_path / wanted.folder, "sgd:lr=0.1", [(2.0, 0.5)]) / "seed-0"
    with Ledger(tmp_path, ["lr"]) as ledger, warnings.catch_warnings():
        warnings.simplefilter("error")
        assert ledger.find(wanted)["final_train_loss"] == 0.5, "a sound one is noted"
    (tmp_path / "trials.csv").unlink()
    path = folder / "summary.json"
    path.write_text("{" if damage is None else json.dumps({**json.loads(path.read_text()), **damage}))
    with (
        Ledger(tmp_path, ["lr"]) as ledger,
        pytest.warns(UserWarning, match="its seed goes on from its checkpoint, or anew"),
    ):
        assert ledger.find(wanted) is None
    assert not path.exists(), "whoever trains must not take it for the end"


def test_a_note_that_cannot_be_read_is_left_out(tmp_path):
    for name, content in (("a", "[]"), ("b", '{"round": "refine", "sampler": "tpe", "point": {"lr": 1}, "seed": 0}')):
        (tmp_path / "sgd" / f"trial-{name}").mkdir(parents=True)
        (tmp_path / "sgd" / f"trial-{name}" / "trial.json").write_text(content)
    with Ledger(tmp_path, ["lr"]) as ledger, pytest.warns(UserWarning, match=r"trial-a/trial\.json"):
        assert [note["point"] for note in ledger.begun("sgd", "refine", "tpe")] == [{"lr": 1}]


def test_a_trial_of_another_device_counts_where_it_may(tmp_path):
    config = load_config(specs=["sgd"], flags={"parameters": ["lr"]}, command="sweep")
    method = plan(config)[0]
    own = trial(config, method, {"lr": 0.1}, "grid", 0)
    assert own.hash == own.hash_on("cpu") != own.hash_on("cuda")
    (tmp_path / "trials.csv").write_text(SOUND.replace("abc", own.hash_on("cuda")))
    with Ledger(tmp_path, ["lr"]) as ledger:
        assert ledger.find(own) is None
    with Ledger(tmp_path, ["lr"], any_device=True) as ledger:
        row = ledger.find(own)
        assert row is not None and row["final_train_loss"] == 0.5 and ledger.rows[own.hash] is row
        assert ledger.find(trial(config, method, {"lr": 0.2}, "grid", 0)) is None
        assert ledger.find(trial(config, method, {"lr": 0.1}, "grid", 1)) is None
    assert [row["config_hash"] for row in read_trials(tmp_path / "trials.csv")] == [own.hash_on("cuda")]
