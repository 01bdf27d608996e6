"""What a user names by path is found, and nothing else in the working folder is ever imported."""

import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import kfbench
from kfbench.config.importing import import_object
from kfbench.errors import UsageError

_PROBLEM = ["--width", "8", "--train-samples", "100", "--batch-size", "20"]
_COMMANDS = [
    ["train", "--opt", "sgd", "--quick", "--format", "markdown", "--plot", *_PROBLEM],
    ["compare", "--opt", "sgd", "--opt", "adam", "--quick", "--html", *_PROBLEM],
    ["wallclock", "--opt", "adam", "--quick", "--width", "8", "--batch-size", "20"],
    ["sweep", "lr", "--opt", "sgd", "--grid", "lr=0.1,0.2", "--quick", "--plot", *_PROBLEM],
]
_KFBENCH = {"script": [str(Path(sys.executable).with_name("kfbench"))], "module": [sys.executable, "-m", "kfbench"]}
# What Python itself imports before ``-m`` hands over to any module (the hook of an editable install imports more, and
# would hide it: hence without site), and what our package imports before its ``__main__`` can act.
_BEFORE_MAIN = "import sys, runpy; sys.path.append({!r}); import kfbench; print(*sys.modules)"


@pytest.fixture
def trap(tmp_path, monkeypatch):
    """A working folder with a file of the name of every module there is; each writes down that it was executed."""
    names = {*sys.stdlib_module_names, *metadata.packages_distributions()} - {"kfbench"}
    for name in filter(str.isidentifier, names):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'EXECUTED')!r}, 'a').write('{name} ')\n")
    (tmp_path / "mine.py").write_text(
        "import torch\nclass Late(torch.optim.SGD):\n"
        "    def step(self, closure=None):\n        import neighbour\n        return super().step(closure)\n"
    )
    (tmp_path / "neighbour.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("arguments", _COMMANDS, ids=lambda arguments: arguments[0])
@pytest.mark.parametrize("way", _KFBENCH)
def test_no_command_imports_what_lies_in_the_working_folder(trap, way, arguments):
    if way == "module":
        package = str(Path(kfbench.__file__).parents[1])
        before = [sys.executable, "-I", "-S", "-c", _BEFORE_MAIN.format(package)]
        for name in subprocess.run(before, capture_output=True, text=True, check=True).stdout.split():
            (trap / f"{name}.py").unlink(missing_ok=True)
    done = subprocess.run([*_KFBENCH[way], *arguments], capture_output=True, text=True, timeout=240)
    assert not (trap / "EXECUTED").exists(), (trap / "EXECUTED").read_text()
    assert done.returncode == 0, done.stderr


def test_a_users_module_is_found_last_and_imports_its_neighbours_late_in_every_process(trap):
    """Once the folder is searched, what is installed nowhere may be found there: such names are left out here."""
    for file in trap.glob("*.py"):
        spec = importlib.util.find_spec(file.stem)
        if file.stem not in ("mine", "neighbour") and (spec is None or spec.origin is None):
            file.unlink()
    arguments = ["sweep", "lr", "--opt", "mine:Late", "--grid", "lr=0.1,0.2", "--quick", "--out", "o", *_PROBLEM]
    done = subprocess.run([*_KFBENCH["script"], *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert not (trap / "EXECUTED").exists(), (trap / "EXECUTED").read_text()


def test_what_is_installed_comes_before_a_file_of_its_name(tmp_path, monkeypatch):
    (tmp_path / "tabulate.py").write_text("class Mine: pass")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(UsageError, match=r"module tabulate \(.*site-packages.*\) has no attribute 'Mine'"):
        import_object("tabulate:Mine", "method")
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("raise SystemExit(3)", "odd_one:X"),
        ("def __getattr__(name): raise RuntimeError('a\\nb')", "odd_one:X"),
        ("X = (", "odd_one:X"),
        ("", "odd_one.inner:X"),
        ("", ".odd_one:X"),
        ("", "odd one:X"),
        ("", "odd_one:"),
    ],
)
def test_whatever_a_module_does_is_one_sentence(tmp_path, monkeypatch, text, path):
    (tmp_path / "odd_one.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "odd_one", raising=False)
    with pytest.raises(UsageError, match=re.escape(repr(path))):
        import_object(path, "method")
    sys.modules.pop("odd_one", None)
