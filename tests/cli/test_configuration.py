"""The configuration of every command: read once, be it a pipe, and refused where it names no methods."""

import os
import threading
from pathlib import Path

import pytest
import yaml

_PROBLEM = "{width: 8, train_samples: 100, eval_samples: 20}"
_CONTENT = f"""
problem: {_PROBLEM}
methods: ['adam:lr=0.002', sgd]
run: {{batch_size: 20, quick: true, seed: 3}}
"""
_COMMANDS = {
    "train": ["train", "--opt", "sgd"],
    "sweep": ["sweep", "lr", "--grid", "lr=0.1,0.2"],
    "compare": ["compare"],
    "compare FILE": ["compare"],
    "wallclock": ["wallclock"],
    "similarity": ["similarity", "--follow", "adam:lr=0.002"],
}


@pytest.fixture
def piped():
    """The path of a pipe that holds that text, once."""
    ends = []

    def made(text):
        out, into = os.pipe()
        ends.append(out)

        def write():
            with open(into, "w") as file:
                file.write(text)

        threading.Thread(target=write, daemon=True).start()
        return f"/dev/fd/{out}"

    yield made
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("command", _COMMANDS)
def test_a_configuration_from_a_pipe_is_that_of_the_run(kfbench, tmp_path, monkeypatch, piped, command):
    """Each of them read it twice, and the second time it was empty."""
    monkeypatch.chdir(tmp_path)
    place = [piped(_CONTENT)] if command == "compare FILE" else ["--config", piped(_CONTENT)]
    code, _, err = kfbench(*_COMMANDS[command], *place, "--out", "o")
    assert code == 0, err
    file = next(path for path in (Path("o/config.yaml"), Path("o/width-8/config.yaml")) if path.exists())
    tree = yaml.safe_load(file.read_text())
    assert tree["problem"]["width"] == 8 and tree["run"]["seed"] == 3
    assert {method["opt"] for method in tree["methods"]} <= {"adam", "sgd"}


@pytest.mark.parametrize("command", _COMMANDS)
def test_each_command_reads_its_file_once(kfbench, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(_CONTENT + "nonsense: 1")
    opened, whole = [], os.open
    monkeypatch.setattr("os.open", lambda path, *more: opened.append(str(path)) or whole(path, *more))
    place = ["c.yaml"] if command == "compare FILE" else ["--config", "c.yaml"]
    assert kfbench(*_COMMANDS[command], *place)[0] == 2
    assert opened.count("c.yaml") == 1


@pytest.mark.parametrize("text", ["sgd", "{opt: sgd}", "[]", "{}", "0", "false", "''"])
@pytest.mark.parametrize("command", ["train", "sweep", "compare", "wallclock"])
def test_methods_that_are_no_list_are_refused(kfbench, tmp_path, monkeypatch, command, text):
    """`sweep` tuned foof, and an empty list was as good as none."""
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(f"methods: {text}")
    code, out, err = kfbench(command, *(["lr", "--dry-run"] if command == "sweep" else []), "--config", "c.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("Error: methods must be a list of SPECs, got ") and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "c.yaml"]


@pytest.mark.parametrize("way", ["argument", "config", "comment", "device"])
def test_compare_of_nothing_trains_nothing(kfbench, tmp_path, monkeypatch, way):
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("# nothing" if way == "comment" else "")
    path = "/dev/null" if way == "device" else "c.yaml"
    code, out, err = kfbench("compare", *(["--config"] if way == "config" else []), path)
    assert (code, out) == (2, "") and not Path("runs").exists()
    assert "is empty" in err if way != "device" else "it is a device" in err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train", "--opt", "sgd", "--threads", "1000000000"], "threads should be less than or equal to 1024"),
        (["train", "--opt", "sgd", "--threads", "2147483648"], "threads should be less than or equal to 1024"),
        (["train", "--opt", "sgd", "--width", str(10**30)], "width should be less than or equal to 1000000, got "),
        (["train", "--opt", "sgd", "--seeds", "10001"], "seeds should be less than or equal to 10000"),
        (["train", "--opt", "sgd", "--lr", "9" * 5000], "lr should be a finite number"),
        (
            ["train", "--opt", "sgd", "--data-dir", "~nosuchuser/x", "--dataset", "mnist"],
            "Could not determine home dir",
        ),
        (["data", "check", "mnist", "--data-dir", "~nosuchuser/x"], "Could not determine home directory"),
        (["wallclock", "--T", "9" * 5000], "T Unable to parse input string as an integer, exceeded maximum size"),
        (["wallclock", "--opt", f"foof:T={'9' * 5000}"], "T Unable to parse input string"),
        (["wallclock", "--processes", "1025"], "processes should be less than or equal to 1024"),
        (["wallclock", "--max-time", "1e308"], "max_time should be less than or equal to 10000000"),
        (["sweep", "lr", "-j", "1025"], "jobs should be less than or equal to 1024"),
        (["sweep", "lr", "--refine", "1000000"], "refine should be less than or equal to 100000"),
        (["sweep", "lr", "--trial-timeout", "1e300"], "trial_timeout should be less than or equal to 10000000"),
    ],
    ids=lambda value: " ".join(value)[:50] if isinstance(value, list) else "",
)
def test_numbers_and_paths_out_of_any_range_are_one_short_sentence(kfbench, tmp_path, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    code, out, err = kfbench(*arguments)
    assert (code, out) == (2, "") and sentence in err, err
    assert len(err.splitlines()) == 1 and len(err) < 600 and list(tmp_path.iterdir()) == []
