"""Output folders: nothing is lost, nothing is left behind, nothing is replaced unasked."""

import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.results import folders, locking
from kfbench.results.folders import need_run, output_folder, shared_folder
from kfbench.results.locking import lock
from tests.results.run_folders import tree


class CommandError(Exception):
    """Stands for whatever a command may raise."""


CONFIG = "problem: {}\nmethods: []\nrun: {}\n"


def make_run(path, text="old", block=""):
    """A folder as a run leaves it; with the block of another command as that one does."""
    path = Path(path)
    (path / "seed-0").mkdir(parents=True)
    (path / "config.yaml").write_text(CONFIG + block)
    (path / "seed-0" / "updates.csv").write_text(text)
    return path


def write_new(directory):
    (directory / "config.yaml").write_text("new")


# A new folder by default.


def test_a_new_folder_under_runs_is_named_after_the_command():
    with output_folder(None, "train", label="foof") as directory:
        write_new(directory)
    assert directory.parent == Path("runs") and directory.name.endswith("-train-foof")
    assert (directory / "config.yaml").read_text() == "new"


def test_repeating_a_command_never_fails_and_never_mixes(monkeypatch):
    """Also within one second, also while the first still runs and has written nothing."""
    monkeypatch.setattr(folders.time, "strftime", lambda format: "20260101-000000")
    with output_folder(None, "train", False, False) as first, output_folder(None, "train", False, False) as second:
        assert first != second
        write_new(first)
        write_new(second)
    with output_folder(None, "train", False, False) as third:
        write_new(third)
    assert len(list(Path("runs").iterdir())) == 3


def test_two_processes_in_the_same_second_get_two_folders(monkeypatch):
    """The name is taken by making the folder, not by looking whether it exists."""
    monkeypatch.setattr(folders.time, "strftime", lambda format: "20260101-000000")
    with output_folder(None, "train", False, False) as first:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "exists", lambda self: False)  # the other process looked before we made it
            with output_folder(None, "train", False, False) as second:
                assert second != first
                write_new(second)
        write_new(first)


@pytest.mark.parametrize("out", [None, Path("a"), Path("a/b/c")])
@pytest.mark.parametrize("error", [CommandError, KeyboardInterrupt, SystemExit])
def test_a_command_that_fails_before_writing_leaves_nothing(out, error):
    with pytest.raises(error), output_folder(out, "train", False, False):
        raise error
    assert tree() == {}


@pytest.mark.parametrize("out", [None, Path("a/b")])
def test_folders_that_were_there_stay(out):
    Path("runs/older").mkdir(parents=True)
    Path("a").mkdir()
    before = tree()
    with pytest.raises(CommandError), output_folder(out, "train", False, False):
        raise CommandError
    assert tree() == before


@pytest.mark.parametrize("existed", [False, True])
def test_a_command_that_fails_after_writing_leaves_what_it_wrote(existed):
    if existed:
        Path("a").mkdir()
    with pytest.raises(CommandError), output_folder(Path("a"), "train", False, False) as directory:
        write_new(directory)
        raise CommandError
    assert tree() == {"a": None, "a/config.yaml": b"new"}


# An explicit folder.


def test_an_empty_folder_is_taken():
    Path("a").mkdir()
    with output_folder(Path("a"), "train", False, False) as directory:
        write_new(directory)
    assert tree("a") == {"config.yaml": b"new"}


def test_an_empty_folder_stays_when_the_command_fails():
    Path("a").mkdir()
    for overwrite in (False, True):
        with pytest.raises(CommandError), output_folder(Path("a"), "train", False, overwrite):
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
        with pytest.raises(UsageError) as caught, output_folder(Path("a"), "train", resume, overwrite):
            raise AssertionError("the command ran")
        assert sentence in str(caught.value)
        assert tree() == before


def test_resume_keeps_everything():
    make_run("a")
    before = tree()
    with output_folder(Path("a"), "train", True, False) as directory:
        assert directory == Path("a")
    assert tree() == before
    with pytest.raises(CommandError), output_folder(Path("a"), "train", True, False):
        raise CommandError
    assert tree() == before


# Overwriting.


def test_overwrite_begins_with_an_empty_folder_and_the_old_run_goes():
    make_run("a")
    before = tree()
    folder = output_folder(Path("a"), "train", False, True)
    with folder as directory:
        assert tree() == before and folder.replaces, "until the new one begins"
        folder.begin()
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
    for begins in (False, True):
        folder = output_folder(Path(out), "train", False, True)
        with pytest.raises(error), folder as directory:
            if begins:
                folder.begin()
                (directory / "environment.json").write_text("new")
            raise error
        assert tree() == before


def test_overwriting_through_a_link_replaces_what_it_points_at():
    make_run("target")
    os.symlink("target", "link")
    folder = output_folder(Path("link"), "train", False, True)
    with folder as directory:
        folder.begin()
        write_new(directory)
    assert Path("link").is_symlink()
    assert tree("target") == {"config.yaml": b"new"} and sorted(os.listdir()) == ["link", "target"]


def test_overwrite_where_nothing_is():
    with output_folder(Path("a"), "train", False, True) as directory:
        write_new(directory)
    assert tree() == {"a": None, "a/config.yaml": b"new"}


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_working_directory_is_never_moved_away(monkeypatch, tmp_path, out):
    make_run(tmp_path / "here")
    make_run(tmp_path, "outer")
    monkeypatch.chdir(tmp_path / "here")
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="working directory"), output_folder(Path(out), "train", False, True):
        raise AssertionError("the command ran")
    assert tree(tmp_path) == before


ASIDES = [".a.replaced-by-kfbench", ".a.replaced"]


@pytest.mark.parametrize("aside", ASIDES)
@pytest.mark.parametrize("left", ["nothing", "an empty folder", "a torn first file"])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_after_a_killed_overwrite_the_old_run_is_back_whatever_comes_next(aside, left, flags):
    make_run("a")
    whole = tree()
    Path("a").rename(aside)
    if left != "nothing":
        Path("a").mkdir()
    if left == "a torn first file":
        Path("a/config.yaml.tmp").write_text("prob")
    with pytest.raises((CommandError, UsageError)) as caught, output_folder(Path("a"), "train", *flags):
        raise CommandError
    assert tree() == whole
    assert flags != (False, False) or "a exists; give --resume" in str(caught.value)


def test_after_a_killed_overwrite_that_had_begun_the_old_run_is_gone():
    make_run("a", "new")
    new = tree()
    for whole in (True, False):
        make_run(".a.replaced-by-kfbench", "old")
        if not whole:  # killed while it was removed
            Path(".a.replaced-by-kfbench/config.yaml").unlink()
        need_run(Path("a"))
        assert tree() == new


@pytest.mark.parametrize("aside", ASIDES)
@pytest.mark.parametrize("content", ["thesis.tex", "config.yaml"])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_a_foreign_folder_of_that_name_is_neither_taken_nor_removed(aside, content, flags):
    Path(aside).mkdir()
    Path(aside, content).write_text("theme: dark")
    before = tree()
    for exists in (False, True):
        if exists:
            make_run("a")
            before = tree()
        with pytest.raises((CommandError, UsageError)):
            folder = output_folder(Path("a"), "train", *flags)
            with folder:
                folder.begin()
                raise CommandError
        assert tree() == before


def test_what_another_command_has_set_aside_is_not_put_back_while_it_lives():
    make_run("a")
    folder = output_folder(Path("a"), "train", False, True)
    with folder as directory:
        folder.begin()
        directory.rmdir()
        assert in_another_process('with output_folder(Path("a"), "train", True): pass') == "a is in use by another "
        directory.mkdir(exist_ok=True)
        write_new(directory)
    assert tree() == {"a": None, "a/config.yaml": b"new"}


FOREIGN = {
    "thesis.tex": ("thesis.tex", ""),
    "inside a seed": ("seed-0/notes.txt", ""),
    "a seed of nobody": ("seed-x/updates.csv", ""),
    "of a sweep": ("trials.csv", ""),
    "config.yaml": ("config.yaml", "theme: dark"),
    "a list": ("config.yaml", "[]"),
    "no YAML": ("config.yaml", "{"),
}


@pytest.mark.parametrize(("name", "text"), FOREIGN.values(), ids=FOREIGN)
def test_overwrite_removes_nothing_that_is_somebody_elses(name, text):
    make_run("a")
    Path("a", name).parent.mkdir(exist_ok=True)
    Path("a", name).write_text(text)
    before = tree()
    sentence = f"a/{name} is not of kfbench" if name != "config.yaml" else "by its config.yaml"
    with pytest.raises(UsageError, match=sentence), output_folder(Path("a"), "train", False, True):
        raise AssertionError("the command ran")
    assert tree() == before


def test_overwrite_follows_no_link():
    make_run("a")
    Path("elsewhere").mkdir()
    os.symlink(Path("elsewhere").resolve(), "a/seed-1")
    with pytest.raises(UsageError, match="a/seed-1 is not of kfbench"), output_folder(Path("a"), "train", False, True):
        raise AssertionError("the command ran")


@pytest.mark.parametrize("owner", ["sweep", "compare", "wallclock", "similarity"])
def test_overwrite_leaves_the_folders_of_other_commands_alone(owner):
    make_run("a", block=f"{owner}: {{}}\n")
    before = tree()
    for command in {"train", "sweep", "compare", "wallclock", "similarity"} - {owner}:
        with (
            pytest.raises(UsageError, match=f"a is a folder of {owner}, not of"),
            output_folder(Path("a"), command, False, True),
        ):
            raise AssertionError("the command ran")
    assert tree() == before


def test_every_combination_is_safe_for_a_run():
    """Whatever the flags: after a command that writes nothing, the old run is there."""
    make_run("a")
    before = tree()
    for resume, overwrite in itertools.product([False, True], repeat=2):
        with pytest.raises((CommandError, UsageError)), output_folder(Path("a"), "train", resume, overwrite):
            raise CommandError
        assert tree() == before


# One command at a time.


def in_another_process(block):
    """What a second command would be told; nothing where it may go on."""
    program = f"""
from pathlib import Path
from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.results.folders import output_folder, shared_folder
try:
    {block}
except UsageError as error:
    print(str(error)[:23], end="")
"""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True)])
def test_a_second_command_is_refused_before_anything_is_made_or_set_aside(flags):
    make_run("a")
    with output_folder(Path("a"), "train", True):
        before = tree()
        assert (
            in_another_process(f'with output_folder(Path("a"), "train", *{flags}): pass') == "a is in use by another "
        )
        shared = 'with shared_folder(Path("a"), "sweep", load_config(specs=["sgd"], command="sweep"), False): pass'
        assert in_another_process(shared) == "a is in use by another "
        assert tree() == before
    assert in_another_process('with output_folder(Path("a"), "train", True): pass') == ""


def test_the_lock_is_that_of_the_new_folder_once_it_has_begun():
    make_run("a")
    folder = output_folder(Path("a"), "train", False, True)
    with folder as directory:
        folder.begin()
        write_new(directory)
        assert in_another_process('with output_folder(Path("a"), "train", True): pass') == "a is in use by another "


def test_a_command_within_a_command_shares_its_lock():
    """A claim has the folder of its sweep, which locks it too."""
    Path("a").mkdir()
    outer, inner = lock(Path("a")), lock(Path("a"))
    os.close(inner)
    again = lock(Path("a"))
    for handle in (again, outer):
        assert in_another_process('with output_folder(Path("a"), "train"): pass') == "a is in use by another "
        os.close(handle)
    assert in_another_process('with output_folder(Path("a"), "train"): pass') == ""


def test_a_folder_that_was_replaced_while_it_was_opened_is_locked_as_it_is_now(monkeypatch):
    Path("a").mkdir()
    plain = locking.os.open

    def slow(path, flags):
        handle = plain(path, flags)
        if Path("a").exists() and not Path("old").exists():
            Path("a").rename("old")
            Path("a").mkdir()
        return handle

    monkeypatch.setattr(locking.os, "open", slow)
    handle = lock(Path("a"))
    assert os.fstat(handle).st_ino == os.stat("a").st_ino
    os.close(handle)


def test_where_folders_cannot_be_locked_commands_go_on_with_a_warning(monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.EBADF, "of NFS")

    monkeypatch.setattr(locking.fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="cannot be locked"), output_folder(Path("a"), "train") as directory:
        write_new(directory)


def test_the_shared_folder_is_locked_and_continued():
    config = load_config(specs=["sgd"], command="sweep")
    with shared_folder(None, "sweep", config, False) as directory:
        (directory / "trials.csv").write_text("trial\n")
        shared = 'with shared_folder(None, "sweep", load_config(specs=["sgd"], command="sweep"), False): pass'
        assert in_another_process(shared).startswith("runs/sweep-")
    with shared_folder(None, "sweep", config, False) as again:
        assert again == directory and (again / "trials.csv").exists()
