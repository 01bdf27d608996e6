"""YAML that never ends, multiplies or comes from a pipe: read once, within bounds."""

import os
import threading
import time
from pathlib import Path

import pytest

from kfbench.config.load import load_config
from kfbench.config.yaml_file import read_yaml
from kfbench.errors import UsageError


def _bomb(of):
    """Nine aliases of nine aliases of ...: 9^9 values in 330 bytes."""
    inner = [f"&{b} {of(','.join([f'*{a}'] * 9), a)}" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return f"methods: [{{opt: sgd, lr: [{', '.join(['&a ' + of('x', 'z'), *inner])}]}}]"


_BOMBS = {
    "lists": _bomb(lambda inner, name: f"[{inner}]"),
    "mappings": "a: &a {x: 1}\n"
    + "".join(
        f"{b}: &{b} {{{', '.join(f'k{i}: *{a}' for i in range(9))}}}\n"
        for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ),
    "merged": "a: &a {x: 1}\n"
    + "".join(f"{b}: &{b} {{<<: [{', '.join([f'*{a}'] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
}


@pytest.mark.parametrize("kind", _BOMBS)
def test_aliases_that_multiply_are_refused_at_once(tmp_path, kind):
    file = tmp_path / "c.yaml"
    file.write_text(_BOMBS[kind])
    began = time.monotonic()
    with pytest.raises(UsageError, match="more than 1000000 values, as its aliases stand for them"):
        read_yaml(file)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("text", ["lr: &a [*a]", "lr: &a {b: *a}", "lr: &a [[[*a]]]"])
def test_what_holds_itself_is_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError, match="'a' holds itself"):
        read_yaml(tmp_path / "c.yaml")


def test_aliases_as_people_use_them(tmp_path):
    (tmp_path / "c.yaml").write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: [*a, *a]")
    a = {"x": 1, "y": 2}
    assert read_yaml(tmp_path / "c.yaml") == {"a": a, "b": {"x": 1, "y": 3}, "c": [a, a]}


@pytest.mark.parametrize(
    ("path", "part"), [("/dev/zero", "it is a device"), ("/dev/null", "it is a device"), ("/tmp", "it is a folder")]
)
def test_what_is_no_file_is_refused(path, part):
    with pytest.raises(UsageError, match=f"config {path} cannot be read: {part}, expected a file"):
        read_yaml(Path(path))


def test_a_file_of_no_plausible_size_is_refused(tmp_path):
    with (tmp_path / "c.yaml").open("wb") as file:
        file.truncate(10**10)
    with pytest.raises(UsageError, match="it holds more than 4000000 bytes"):
        read_yaml(tmp_path / "c.yaml")


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="it is a pipe that holds nothing, or has been read before"):
        read_yaml(tmp_path / "pipe")


@pytest.fixture
def piped():
    """The path of a pipe into which a thread writes those parts, slowly."""
    ends = []

    def made(*parts):
        out, into = os.pipe()
        ends.append(out)

        def write():
            with open(into, "wb") as file:
                for part in parts:
                    time.sleep(0.1)
                    file.write(part)
                    file.flush()

        threading.Thread(target=write, daemon=True).start()
        return Path(f"/dev/fd/{out}")

    yield made
    for end in ends:
        os.close(end)


def test_a_pipe_is_waited_for_and_read_to_its_end(piped):
    assert read_yaml(piped(b"run: {seed: 3", b", epochs: 2}\n")) == {"run": {"seed": 3, "epochs": 2}}


def test_a_pipe_without_end_is_refused(piped, monkeypatch):
    monkeypatch.setattr("kfbench.config.yaml_file._MOST_BYTES", 100)
    with pytest.raises(UsageError, match="it holds more than 100 bytes"):
        read_yaml(piped(b"x" * 90, b"x" * 90))


def test_a_pipe_whose_writer_never_writes_is_given_up(monkeypatch):
    monkeypatch.setattr("kfbench.config.yaml_file._PATIENCE_SECONDS", 0.1)
    out, into = os.pipe()
    with pytest.raises(UsageError, match=r"nothing came out of the pipe for 0\.1 seconds"):
        read_yaml(Path(f"/dev/fd/{out}"))
    os.close(out)
    os.close(into)


@pytest.mark.parametrize("digits", ["9" * 400, "9" * 5000, "0x" + "f" * 5000, str(2**64)])
def test_a_whole_number_out_of_any_range_is_refused_with_its_key(tmp_path, digits):
    (tmp_path / "c.yaml").write_text(f"run: {{seed: {digits}}}")
    with pytest.raises(UsageError) as error:
        load_config(tmp_path / "c.yaml", specs=["sgd"])
    assert str(error.value).startswith("seed ") and len(str(error.value)) < 500


def test_ten_thousand_methods_are_seconds(tmp_path):
    (tmp_path / "c.yaml").write_text("methods:\n" + "".join(f"- 'foof:lr={1e-5 * i:.6g}'\n" for i in range(1, 10001)))
    began = time.monotonic()
    assert len(load_config(tmp_path / "c.yaml").methods) == 10000
    assert time.monotonic() - began < 30  # 3 s; it was quadratic: minutes


def test_a_mapping_of_many_keys_is_seconds(tmp_path):
    (tmp_path / "c.yaml").write_text("".join(f"k{i}: 1\n" for i in range(30000)))
    began = time.monotonic()
    assert len(read_yaml(tmp_path / "c.yaml")) == 30000
    assert time.monotonic() - began < 30
