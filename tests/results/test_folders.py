"""Output folders: nothing is lost, nothing is left behind, nothing is replaced unasked."""

import itertools
import os
from pathlib import Path

import pytest

from kfbench.errors import UsageError
from kfbench.results import folders
from kfbench.results.folders import output_folder
from tests.results.run_folders import tree


class CommandError(Exception):
    """Stands for whatever a command may raise."""


def make_run(path, text="old"):
    """A folder as a run leaves it."""
    path = Path(path)
    (path / "seed-0").mkdir(parents=True)
    (path / "config.yaml").write_text(text)
    (path / "seed-0" / "updates.csv").write_text(text)
    return path


def write_new(directory):
    (directory / "config.yaml").write_text("new")


# A new folder by default.


def test_a_new_folder_under_runs_is_named_after_the_command():
    with output_folder(None, "train-foof", False, False) as directory:
        write_new(directory)
    assert directory.parent == Path("runs") and directory.name.endswith("-train-foof")
    assert (directory / "config.yaml").read_text() == "new"


def test_repeating_a_command_never_fails_and_never_mixes(monkeypatch):
    """Also within one second, also while the first still runs and has written nothing."""
    monkeypatch.setattr(folders.time, "strftime", lambda format: "20260101-000000")
    with output_folder(None, "x", False, False) as first, output_folder(None, "x", False, False) as second:
        assert first != second
        write_new(first)
        write_new(second)
    with output_folder(None, "x", False, False) as third:
        write_new(third)
    assert len(list(Path("runs").iterdir())) == 3


def test_two_processes_in_the_same_second_get_two_folders(monkeypatch):
    """The name is taken by making the folder, not by looking whether it exists."""
    monkeypatch.setattr(folders.time, "strftime", lambda format: "20260101-000000")
    with output_folder(None, "x", False, False) as first:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", lambda self: False)  # the other process looked before we made it
            with output_folder(None, "x", False, False) as second:
                assert second != first
                write_new(second)
        write_new(first)


@pytest.mark.parametrize("out", [None, Path("a"), Path("a/b/c")])
@pytest.mark.parametrize("error", [CommandError, KeyboardInterrupt, SystemExit])
def test_a_command_that_fails_before_writing_leaves_nothing(out, error):
    with pytest.raises(error), output_folder(out, "x", False, False):
        raise error
    assert tree() == {}


@pytest.mark.parametrize("out", [None, Path("a/b")])
def test_folders_that_were_there_stay(out):
    Path("runs/older").mkdir(parents=True)
    Path("a").mkdir()
    before = tree()
    with pytest.raises(CommandError), output_folder(out, "x", False, False):
        raise CommandError
    assert tree() == before


@pytest.mark.parametrize("existed", [False, True])
def test_a_command_that_fails_after_writing_leaves_what_it_wrote(existed):
    if existed:
        Path("a").mkdir()
    with pytest.raises(CommandError), output_folder(Path("a"), "x", False, False) as directory:
        write_new(directory)
        raise CommandError
    assert tree() == {"a": None, "a/config.yaml": b"new"}


# An explicit folder.


def test_an_empty_folder_is_taken():
    Path("a").mkdir()
    with output_folder(Path("a"), "x", False, False) as directory:
        write_new(directory)
    assert tree("a") == {"config.yaml": b"new"}


def test_an_empty_folder_stays_when_the_command_fails():
    Path("a").mkdir()
    for overwrite in (False, True):
        with pytest.raises(CommandError), output_folder(Path("a"), "x", False, overwrite):
            raise CommandError
        assert tree() == {"a": None}


_REFUSED = {
    # what --out is: (resume, overwrite) that are refused, and the sentence
    "run": ([(False, False)], "--resume to continue it or --overwrite to replace it"),
    "foreign": ([(False, False)], "exists"),
    "foreign folder, overwritten": ([(False, True)], "no output folder of kfbench"),
    "foreign folder, resumed": ([(True, False)], "holds no run"),
    "file": ([(False, False), (False, True)], "is a file, expected a folder"),
    "file, resumed": ([(True, False)], "holds no run"),
    "missing, resumed": ([(True, False)], "holds no run"),
    "both": ([(True, True)], "not both"),
}


@pytest.mark.parametrize("kind", _REFUSED)
def test_refused_and_untouched(kind):
    flags, sentence = _REFUSED[kind]
    if kind in ("run", "both"):
        make_run("a")
    elif kind.startswith("foreign"):
        Path("a").mkdir()
        Path("a/thesis.tex").write_text("years of work")
    elif kind.startswith("file"):
        Path("a").write_text("precious")
    before = tree()
    for resume, overwrite in flags:
        with pytest.raises(UsageError) as caught, output_folder(Path("a"), "x", resume, overwrite):
            raise AssertionError("the command ran")
        assert sentence in str(caught.value)
        assert tree() == before


def test_resume_keeps_everything():
    make_run("a")
    before = tree()
    with output_folder(Path("a"), "x", True, False) as directory:
        assert directory == Path("a")
    assert tree() == before
    with pytest.raises(CommandError), output_folder(Path("a"), "x", True, False):
        raise CommandError
    assert tree() == before


# Overwriting.


def test_overwrite_begins_with_an_empty_folder_and_the_old_run_goes():
    make_run("a")
    with output_folder(Path("a"), "x", False, True) as directory:
        assert list(directory.iterdir()) == []
        write_new(directory)
    assert tree() == {"a": None, "a/config.yaml": b"new"}


@pytest.mark.parametrize("error", [CommandError, KeyboardInterrupt])
@pytest.mark.parametrize("out", ["a", "deep/er/a", "link"])
def test_the_old_run_comes_back_if_the_new_one_never_begins(out, error):
    if out == "link":
        make_run("target")
        os.symlink("target", "link")
    else:
        make_run(out)
    before = tree()
    with pytest.raises(error), output_folder(Path(out), "x", False, True):
        raise error
    assert tree() == before


def test_overwriting_through_a_link_replaces_what_it_points_at():
    make_run("target")
    os.symlink("target", "link")
    with output_folder(Path("link"), "x", False, True) as directory:
        write_new(directory)
    assert Path("link").is_symlink()
    assert tree("target") == {"config.yaml": b"new"} and sorted(os.listdir()) == ["link", "target"]


def test_overwrite_where_nothing_is():
    with output_folder(Path("a"), "x", False, True) as directory:
        write_new(directory)
    assert tree() == {"a": None, "a/config.yaml": b"new"}


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_working_directory_is_never_moved_away(monkeypatch, tmp_path, out):
    make_run(tmp_path / "here")
    make_run(tmp_path, "outer")
    monkeypatch.chdir(tmp_path / "here")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="working directory"), output_folder(Path(out), "x", False, True):
        raise AssertionError("the command ran")
    assert tree(tmp_path) == before


def test_a_leftover_of_a_killed_overwrite_is_no_obstacle():
    make_run("a")
    make_run(".a.replaced", "older")
    with output_folder(Path("a"), "x", False, True) as directory:
        write_new(directory)
    assert tree() == {"a": None, "a/config.yaml": b"new"}


def test_every_combination_is_safe_for_a_run():
    """Whatever the flags: after a command that writes nothing, the old run is there."""
    make_run("a")
    before = tree()
    for resume, overwrite in itertools.product([False, True], repeat=2):
        with pytest.raises((CommandError, UsageError)), output_folder(Path("a"), "x", resume, overwrite):
            raise CommandError
        assert tree() == before
