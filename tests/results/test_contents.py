"""What each command leaves is known as its own, whatever it was asked for; anything else is not."""

import shutil
from pathlib import Path

import pytest

from kfbench.results.contents import command_of, foreign_entry
from tests.test_house import PACKAGE

TINY = ["--width", "8", "--train-samples", "100", "--batch-size", "20", "--updates", "6"]
EVERYTHING = {
    "train": ["--opt", "foof:T=3", *TINY, "--plot", "--seeds", "2"],
    "similarity": ["--follow", "kfac:T=2", "--opt", "foof:T=2", "--every", "2", "--progress", "--spectrum", "5", *TINY,
                   "--plot"],
    "wallclock": ["--opt", "sgd", "--T", "1", "--width", "8", "--width", "9", "--train-samples", "100", "--batch-size",
                  "20", "--quick", "--plot"],
    "sweep": ["lr", "--opt", "sgd", "--grid", "lr=0.1,0.2", "--extend", "0", "--top", "1", *TINY[:-2], "--epochs", "2",
              "--plot"],
    "compare": ["--opt", "sgd", "--opt", "torch.optim:Adam", "--opt", "sgd:lr=0.5", "--seeds", "2", *TINY, "--html",
                "--plot"],
}  # fmt: skip


@pytest.mark.parametrize("command", EVERYTHING)
def test_everything_that_a_command_leaves_is_its_own_and_may_be_replaced(kfbench, command):
    words = [command, *EVERYTHING[command], "--out", "o"]
    code, _, err = kfbench(*words)
    assert code == 0, err
    left = {path.relative_to("o").as_posix() for path in Path("o").rglob("*") if path.is_file()}
    assert len(left) > 4 and command_of(Path("o")) == command and foreign_entry(Path("o"), command) is None
    # Nothing of it is another command's.
    for other in set(EVERYTHING) - {command}:
        code, _, err = kfbench(other, *EVERYTHING[other], "--out", "o", "--overwrite")
        assert code == 2 and f"o is a folder of {command}, not of {other}" in err
    Path("o/notes.txt").write_text("mine")
    code, _, err = kfbench(*words, "--overwrite")
    assert code == 2 and "Error: --overwrite: o/notes.txt is not of kfbench, so o stays" in err
    assert Path("o/notes.txt").read_text() == "mine"
    Path("o/notes.txt").unlink()
    # Refused before the first update: the old one stays.
    code, _, err = kfbench(*("5000" if word == "20" else word for word in words), "--overwrite")
    assert code == 2 and "batch_size is 5000" in err
    now = {path.relative_to("o").as_posix() for path in Path("o").rglob("*") if path.is_file()}
    assert now == left
    code, _, err = kfbench(*words, "--overwrite")
    assert code == 0, err
    assert foreign_entry(Path("o"), command) is None and [path.name for path in Path().iterdir()] == ["o"]


def test_a_comparison_of_finished_runs_may_be_replaced(kfbench):
    for spec in ("sgd", "adam"):
        assert kfbench("train", "--opt", spec, *TINY, "--out", spec)[0] == 0
    for more in ([], ["--overwrite"]):
        code, _, err = kfbench("compare", "sgd", "adam", "--html", "--plot", "--out", "c", *more)
        assert code == 0, err
    assert foreign_entry(Path("c"), "compare") is None


RECORDS = [path.parent for path in sorted((PACKAGE.parent / "docs" / "records").rglob("config.yaml"))]


@pytest.mark.parametrize("folder", RECORDS, ids=lambda path: path.name)
def test_folders_of_earlier_versions_are_known(folder, tmp_path):
    command = command_of(folder)
    assert command is not None
    shutil.copytree(folder, tmp_path / "copy")
    for inner in [path.parent for path in (tmp_path / "copy").glob("*/**/config.yaml")] if command == "sweep" else []:
        shutil.rmtree(inner)  # records of other runs that were put beside a sweep
    foreign = foreign_entry(tmp_path / "copy", command)
    assert foreign is None or foreign.suffix == ".md"


def test_of_a_comparison_a_folder_with_somebody_elses_configuration_is_foreign(tmp_path):
    for place, text in ((tmp_path, "compare: {}\n"), (tmp_path / "sgd", "")):
        place.mkdir(exist_ok=True)
        (place / "config.yaml").write_text("problem: {}\nmethods: []\nrun: {}\n" + text)
    assert foreign_entry(tmp_path, "compare") is None
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "config.yaml").write_text("theme: dark")
    assert foreign_entry(tmp_path, "compare") == tmp_path / "site" / "config.yaml"
