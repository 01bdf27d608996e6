"""Tables: the same figures in four formats, none of them cut or interpreted."""

import csv
import io
import json
import math

import pytest

from kfbench.results.records import read_json, write_json
from kfbench.results.tables import number, print_table
from kfbench.training.tables import summary_rows

_ROWS = [
    {"method": "foof-lr=0.3", "loss": "0.1234", "place": "/a/[b]/c", "empty": ""},
    {"method": "kfac, standard", "loss": "inf", "place": "[red]/d", "empty": ""},
]
_RECORD = {"runs": [{"loss": math.inf}]}


@pytest.fixture
def printed(capsys):
    def show(format, rows=_ROWS):
        print_table(rows, format, _RECORD)
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return show


def test_csv(printed):
    assert list(csv.DictReader(io.StringIO(printed("csv")))) == _ROWS


def test_json_is_the_whole_record_and_standard(printed):
    def refuse(constant):
        raise AssertionError(constant)

    assert json.loads(printed("json"), parse_constant=refuse) == {"runs": [{"loss": "inf"}]}


def test_markdown(printed):
    lines = printed("markdown").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0] == list(_ROWS[0]) and set("".join(cells[1])) == {"-"}
    assert cells[2:] == [list(row.values()) for row in _ROWS]


def test_markdown_keeps_a_bar_inside_its_cell(printed):
    lines = printed("markdown", [{"a": "x|y", "b": "z"}]).splitlines()
    assert lines[2].replace(r"\|", "").count("|") == lines[0].count("|")


def test_a_table_in_a_pipe_has_no_escapes_and_cuts_nothing(printed):
    lines = printed("table").splitlines()
    assert len(lines) == 3
    for value in ("foof-lr=0.3", "0.1234", "/a/[b]/c", "kfac, standard", "inf", "[red]/d"):
        assert sum(value in line for line in lines) == 1, f"{value} is not shown as it is"
    assert "\x1b" not in "".join(lines)


def test_markup_that_does_not_close_is_text(printed):
    assert "[/nothing]" in printed("table", [{"place": "[/nothing]"}])


def test_numbers_stand_right_and_text_left(printed):
    lines = printed("table", [{"name": "a", "n": "1"}, {"name": "bcd", "n": "1000"}, {"name": "x", "n": ""}])
    assert [line.rstrip() for line in lines.splitlines()] == ["name     n", "a        1", "bcd   1000", "x"]


@pytest.mark.parametrize("format", ["table", "csv", "markdown", "json"])
def test_no_rows(printed, format):
    printed(format, [])


@pytest.mark.parametrize(
    ("value", "digits", "factor", "text"),
    [
        (None, 4, 1.0, ""),
        (0.123456, 4, 1.0, "0.1235"),
        (1234.5678, 4, 1e-3, "1.235"),
        (math.inf, 4, 1e3, "inf"),
        (math.nan, 4, 1.0, "nan"),
        (300, 6, 1.0, "300"),
        (0, 4, 1.0, "0"),
    ],
)
def test_number(value, digits, factor, text):
    assert number(value, digits, factor) == text


def _run(seed, status="done", loss=0.5):
    return {"seed": seed, "status": status, "final_train_loss": loss, "seconds_per_update": 0.002, "updates": 300}


def test_one_seed_is_one_row():
    [row] = summary_rows({"method": "foof", "status": "done", "runs": [_run(3)], "mean": {}, "std": {}})
    assert (row["method"], row["seed"], row["status"]) == ("foof", "3", "done")
    assert (row["final train loss"], row["ms/update"], row["updates"]) == ("0.5", "2", "300")
    assert row["peak MB"] == "", "what was not measured is empty"


def test_several_seeds_end_with_mean_and_deviation():
    summary = {
        "method": "foof",
        "status": "done",
        "runs": [_run(0), _run(1, loss=0.7)],
        "mean": {"final_train_loss": 0.6},
        "std": {"final_train_loss": 0.1},
    }
    rows = summary_rows(summary)
    assert [(row["seed"], row["final train loss"]) for row in rows] == [
        ("0", "0.5"),
        ("1", "0.7"),
        ("mean", "0.6"),
        ("std", "0.1"),
    ]


def test_a_diverged_seed_that_was_read_back_from_its_file(tmp_path):
    """What --resume does with a seed that diverged before: its loss is infinite, not text."""
    write_json(tmp_path / "summary.json", _run(0, "diverged", math.inf))
    run = read_json(tmp_path / "summary.json")
    [row] = summary_rows({"method": "foof", "status": "diverged", "runs": [run], "mean": {}, "std": {}})
    assert row["final train loss"] == "inf"


@pytest.mark.parametrize("format", ["table", "csv", "markdown"])
def test_labels_of_others_neither_steer_the_terminal_nor_end_the_table(printed, format):
    label = "X-mode=[/b]\x1b[31m\x07\r\u202e\udcff"
    shown = printed(format, [{f"final loss / {label}": label, "n": 1}])
    assert shown.count(r"X-mode=[/b]\x1b[31m\x07\r\u202e\udcff") == 2
    assert not {"\x1b", "\x07", "\r", "\u202e"} & set(shown)
