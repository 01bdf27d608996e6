"""Records read back: whatever stands in a file, it is taken as it is or refused in one sentence that names it."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kfbench.errors import UsageError
from kfbench.results.reading import DamagedError, number_of, read_record, read_table, record_or_empty
from kfbench.results.records import load, read_rows, write_yaml
from kfbench.results.schemas import Cell, Environment, SeedSummary, SweepSummary, TrialNote, Verdict, WallclockSummary
from tests.fuzzing import fuzz, result_or_one_sentence

KINDS = (Cell, Environment, SeedSummary, SweepSummary, TrialNote, Verdict, WallclockSummary)
SOUND = b'{"seed": 0, "status": "done", "final_train_loss": 0.5}'
BROKEN = {
    "empty": b"",
    "cut": SOUND[:20],
    "a list": b"[]",
    "a number": b"3",
    "null": b"null",
    "text": b'"text"',
    "nested": b"[" * 100_000 + b"]" * 100_000,
    "nested less": b'{"a":' * 500 + b"1" + b"}" * 500,
    "no text": b"\xff\xfe\x00",
    "another encoding": SOUND.decode().encode("utf-16"),
    "zeros": bytes(4096),
    "a lone surrogate": SOUND.replace(b'"done"', b'"done", "reason": "\\ud800"'),
    "a lone surrogate as a key": b'{"\\ud800": 1}',
    "a number without end": SOUND.replace(b"0.5", b"1" * 10_000),
    "a number that no float holds": SOUND.replace(b"0.5", b"1" + b"0" * 400),
    "another version": SOUND.replace(b"{", b'{"schema_version": 2, '),
    "text for a number": SOUND.replace(b"0.5", b'"much"'),
    "true for a number": SOUND.replace(b"0.5", b"true"),
    "a list for a number": SOUND.replace(b"0.5", b"[0.5]"),
    "a negative seed": SOUND.replace(b"0,", b"-1,"),
    "an unknown status": SOUND.replace(b"done", b"fine"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_record_is_one_sentence_that_names_the_file(tmp_path, content):
    path = tmp_path / "summary.json"
    path.write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        read_record(path, SeedSummary)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_a_sound_one_comes_back_as_it_is_also_behind_a_byte_order_mark(tmp_path):
    path = tmp_path / "summary.json"
    assert record_or_empty(path, SeedSummary) == {}
    for mark in (b"", b"\xef\xbb\xbf"):
        path.write_bytes(mark + SOUND.replace(b"{", b'{"new": [1], '))
        assert read_record(path, SeedSummary) == {"seed": 0, "status": "done", "final_train_loss": 0.5, "new": [1]}
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedError, match=r"summary\.json cannot be read"):
        record_or_empty(path, SeedSummary)


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["nan", "inf", "-inf", "done"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@fuzz
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_any_json_is_taken_or_refused(tmp_path, kind, data):
    keys = st.sampled_from([*kind.model_fields, "other"])
    path = tmp_path / "record.json"
    path.write_text(json.dumps(data.draw(st.dictionaries(keys, _VALUES) | _VALUES)))
    result_or_one_sentence(lambda: read_record(path, kind))


# Tables.

TABLE = b"seed,loss,method\n0,0.5,sgd\n1,,sgd\n"
TORN = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "another encoding": TABLE.decode().encode("utf-16"),
    "zeros": bytes(4096),
    "a column less": b"seed,method\n0,sgd\n",
    "a column twice": b"seed,loss,method,loss\n0,1,sgd,1\n",
    "a cell less": TABLE.replace(b"1,,sgd", b"1,sgd"),
    "a cell more": TABLE.replace(b"1,,sgd", b"1,,sgd,1"),
    "a huge cell": TABLE.replace(b"0.5", b"x" * 200_000),
    "an open quotation": TABLE.replace(b"0.5", b'"0.5'),
    "a word for a number": TABLE.replace(b"0.5", b"half"),
    "digits that only Python reads": TABLE.replace(b"0.5", b"0_5"),
    "digits of another script": TABLE.replace(b"0.5", "\u0663".encode()),
    "a seed that is none": TABLE.replace(b"1,", b"nan,"),
    "a seed of thousands of digits": TABLE.replace(b"1,", b"1" * 5000 + b","),
}


@pytest.mark.parametrize("content", TORN.values(), ids=TORN)
def test_what_is_no_table_is_one_sentence_that_names_the_file(tmp_path, content):
    path = tmp_path / "trials.csv"
    path.write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        read_table(path, ("seed", "loss"), ("seed",), ("loss",))
    assert str(path) in str(caught.value) and len(str(caught.value)) < 1000 and "\n" not in str(caught.value)


def test_a_sound_table_also_behind_a_byte_order_mark_and_with_a_torn_last_line(tmp_path):
    path = tmp_path / "trials.csv"
    rows = [{"seed": "0", "loss": "0.5", "method": "sgd"}, {"seed": "1", "loss": "", "method": "sgd"}]
    for content in (TABLE, b"\xef\xbb\xbf" + TABLE, TABLE + b"2,0.2"):
        path.write_bytes(content)
        assert read_table(path, ("seed", "loss"), ("seed",), ("loss",)) == rows == read_rows(path)
    with pytest.raises(DamagedError, match="torn"):
        read_table(path, ("seed",), torn=False)


@pytest.mark.parametrize(("cell", "value"), [("1e-3", 1e-3), ("-inf", -math.inf), ("1_0", None), (" 1", None)])
def test_numbers_are_those_that_were_written(cell, value):
    assert number_of(cell) == value


# For a notebook.


@pytest.mark.parametrize("name", ["config.yaml", "summary.json", "environment.json", "seed-0/epochs.csv"])
def test_load_names_what_it_cannot_read(tmp_path, name):
    write_yaml(tmp_path / "config.yaml", {})
    (tmp_path / "seed-0").mkdir()
    (tmp_path / name).write_bytes(b'{"\xff')
    with pytest.raises(ValueError, match="cannot be read") as caught:
        load(tmp_path)
    assert str(tmp_path / name) in str(caught.value) and not isinstance(caught.value, UsageError)
