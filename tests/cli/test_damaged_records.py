"""`kfbench compare DIR` of damaged folders: left out by name with exit code 3, or one sentence; never worse."""

import json
import re
from pathlib import Path

import pytest

from tests.compare.comparable_runs import write_method

HUGE = "9" * 400
DEEP = "[" * 100_000 + "]" * 100_000


@pytest.fixture
def runs(tmp_path):
    write_method(tmp_path / "a", "sgd", [(2.0, 1.0), (2.0, 1.2)])
    write_method(tmp_path / "b", "adam", [(2.0, 0.5), (2.0, 0.6)])


def edited(file, old, new):
    """Replace the first match of a pattern; a file that lacks it would make the test say nothing."""
    path = Path("a", file)
    text, count = re.subn(old, lambda _: new, path.read_text(), count=1)
    assert count == 1
    path.write_text(text, errors="surrogateescape")


def value(file, key, text):
    return lambda: edited(file, rf'(?<="{key}": )[^\n,]+', text)


def row(column, cell):
    """A cell of the second row of updates.csv."""

    def damage():
        path = Path("a/seed-0/updates.csv")
        lines = path.read_text().splitlines()
        cells = lines[2].split(",")
        cells[lines[0].split(",").index(column)] = cell
        path.write_text("\n".join([*lines[:2], ",".join(cells), *lines[3:]]) + "\n")

    return damage


def content(file, data):
    return lambda: Path("a", file).write_bytes(data)


SUMMARY = "seed-0/summary.json"
SEED = {
    **{f"{k} is {t[:9]}": value(SUMMARY, k, t) for k in ("updates", "seconds_per_update", "test_accuracy")
       for t in ('"much"', "[1]", HUGE, "{}", "true", "-1")},
    "deep": content(SUMMARY, DEEP.encode()),
    "nan": value(SUMMARY, "final_train_loss", '"nan"'),
    "-inf": value(SUMMARY, "final_train_loss", '"-inf"'),
    "another loss": value(SUMMARY, "final_train_loss", "0.1"),
    "another seed": value(SUMMARY, "seed", "1"),
    "another version": lambda: edited(SUMMARY, r"\{", '{"schema_version": 7,'),
    "a list as target": lambda: edited(SUMMARY, r"\{", '{"target_loss": [1],'),
    "update nan": row("update", "nan"),
    "update inf": row("update", "inf"),
    "another's update": row("seed", "5"),
    "a huge cell": row("loss", "1" * 200_000),
    "UTF-16": lambda: Path("a/seed-0/epochs.csv").write_text(Path("a/seed-0/epochs.csv").read_text(), "utf-16"),
}  # fmt: skip
RUN = {
    **{f"environment {text}": content("environment.json", text.encode()) for text in ("[]", "null", "3", "", DEEP)},
    **{f"{key} a list": lambda key=key: edited("environment.json", r"\{", f'{{"{key}": [1], "x": 1, ')
       for key in ("gpu", "device")},
    "cpu a list": value("environment.json", "cpu", "[1]"),
    "threads text": value("environment.json", "threads", '"two"'),
    "packages text": lambda: edited("environment.json", r'"packages": \{[^}]*\}', '"packages": "torch"'),
    "seed null": lambda: edited("config.yaml", "seed: 0", "seed: null"),
    "seeds null": lambda: edited("config.yaml", "seeds: 2", "seeds: null"),
    "seeds a list": lambda: edited("config.yaml", "seeds: 2", "seeds: [2]"),
    "a lone surrogate": lambda: edited("config.yaml", "seed: 0", 'seed: 0\n  data_dir: "\\ud800"'),
    "a date": lambda: edited("config.yaml", "opt: sgd", "opt: sgd\n  x: 2020-01-01"),
    "bytes": lambda: edited("config.yaml", "opt: sgd", "opt: sgd\n  x: !!binary aGk="),
    "itself": lambda: edited("config.yaml", "opt: sgd", "opt: sgd\n  x: &a [*a]"),
    "another method": lambda: edited("config.yaml", "opt: sgd", "opt: adam"),
}  # fmt: skip


@pytest.mark.parametrize("words", [[], ["--html", "--format", "json", "--out", "c"]], ids=["table", "page"])
@pytest.mark.parametrize("damage", [*SEED.values(), *RUN.values()], ids=[*SEED, *RUN])
def test_damage_is_left_out_by_name(kfbench, runs, damage, words):
    damage()
    code, out, err = kfbench("compare", "a", "b", *words)
    assert code == 3 and "internal error" not in err
    assert "left out: a/" in err or "left out: config a/" in err, err
    if words:
        assert "\\udc" not in out and len(json.loads(out)["damaged"]) >= 1
    # Alone, nothing else is compared in its place.
    code, out, err = kfbench("compare", "a")
    assert code in (2, 3) and "internal error" not in err and "a/" in err


def test_a_hundred_million_seeds_that_never_began_cost_nothing(kfbench, runs):
    edited("config.yaml", "seeds: 2", "seeds: 100000000")
    code, _, err = kfbench("compare", "a", "b")
    assert code == 3 and "left out: a/config.yaml: seeds should be less than or equal to" in err
    edited("config.yaml", "seeds: 100000000", "seeds: 10000")
    code, _, err = kfbench("compare", "a", "b")
    assert code == 3 and "left out: a/seed-2: has not begun" in err and len(err) < 5000
    assert "left out: a: 9978 further seeds of 10000 have not begun" in err


def test_a_byte_order_mark_changes_nothing(kfbench, runs):
    before = kfbench("compare", "a", "b")
    for path in [*Path("a").rglob("*.json"), *Path("a").rglob("*.csv"), Path("a/config.yaml")]:
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert kfbench("compare", "a", "b") == before and before[0] == 0


def test_labels_of_others_are_shown_as_they_are(kfbench, runs):
    """Brackets are no markup, also at the head of a column; what steers a terminal is spelled out."""
    for path in Path("b").rglob("*.json"):
        path.write_text(path.read_text().replace('"adam"', '"adam-x=[/b]\\u001b[31m"'))
    for path in Path("b").rglob("*.csv"):
        path.write_text(path.read_text().replace("adam,", "adam-x=[/b]\x1b[31m,"))
    code, out, err = kfbench("compare", "a", "b", "--reference", "adam")
    assert code == 0 and r"final loss / adam-x=[/b]\x1b[31m" in out
    assert "\x1b" not in out + err


def test_a_folder_s_name_that_is_no_text(kfbench, runs):
    Path("b").rename("b\udcff")
    write_method(Path("b2\udcff\x1b"), "adam", [(2.0, 0.5), (2.0, 0.6)])
    code, out, err = kfbench("compare", "a", "b\udcff", "b2\udcff\x1b", "--html", "--out", "c")
    assert code == 0 and r"adam (b2\udcff\x1b)" in out and "\x1b" not in out + err
