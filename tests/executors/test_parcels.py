"""What travels: only what is new, in an order in which a kill harms nothing."""

import os

import pytest

from kfbench.executors.parcels import Parcel, Piece, Sender, contents, unpack


def write(folder, **files):
    for name, text in files.items():
        path = folder / "seed-0" / name.replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def node(tmp_path):
    (tmp_path / "node").mkdir()
    return tmp_path / "node"


@pytest.fixture
def home(tmp_path):
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def test_what_is_unpacked_is_what_was_there(node, home):
    write(node, updates_csv="a\n1\n", checkpoint_pt="first", summary_json="{}")
    unpack(Sender(node, {}).parcel(), home)
    assert contents(home) == contents(node) and len(contents(home)) == 3


def test_nothing_is_sent_twice_and_of_what_grew_only_the_new_part(node, home):
    write(node, updates_csv="a\n1\n", log_txt="hello")
    sender = Sender(node, {})
    unpack(sender.parcel(), home)
    assert sender.parcel() == Parcel()
    write(node, updates_csv="a\n1\n2\n")
    parcel = sender.parcel()
    assert parcel.pieces == (Piece("seed-0/updates.csv", 4, b"2\n"),)
    unpack(parcel, home)
    assert contents(home) == contents(node)


def test_what_came_from_home_is_not_sent_back(node, home):
    write(home, updates_csv="a\n1\n", checkpoint_pt="first")
    write(node, updates_csv="a\n1\n", checkpoint_pt="first")
    sender = Sender(node, contents(home))
    assert sender.parcel() == Parcel() and not sender.is_due()


def test_a_file_that_was_cut_back_or_changed_is_sent_whole(node, home):
    write(node, updates_csv="a\n1\n2\n", epochs_csv="b\n1\n")
    sender = Sender(node, {})
    unpack(sender.parcel(), home)
    write(node, updates_csv="a\n1\n", epochs_csv="b\n9\n8\n")
    unpack(sender.parcel(), home)
    assert contents(home) == contents(node)


def test_what_is_gone_on_the_node_goes_at_home(node, home):
    write(node, checkpoint_pt="first", updates_csv="a\n")
    sender = Sender(node, {})
    unpack(sender.parcel(), home)
    (node / "seed-0" / "checkpoint.pt").unlink()
    unpack(sender.parcel(), home)
    assert list(contents(home)) == ["seed-0/updates.csv"]


def test_every_new_checkpoint_is_due_once(node):
    write(node, checkpoint_pt="first")
    sender = Sender(node, {})
    assert not sender.is_due(), "that is how it began"
    write(node, next_pt="second")
    os.replace(node / "seed-0" / "next.pt", node / "seed-0" / "checkpoint.pt")
    assert sender.is_due()
    sender.parcel()
    assert not sender.is_due()


def test_reserves_and_what_is_half_written_stay_where_they_are(node):
    write(node, checkpoint_pt="1", checkpoint_previous_pt="0", checkpoint_pt_new="2", config_yaml_tmp="torn")
    assert list(contents(node)) == ["seed-0/checkpoint.pt"]


def test_rows_come_before_their_checkpoint_and_the_summary_last(node, home, monkeypatch):
    """So that whatever of it a kill leaves can be continued, and is never taken for ended too early."""
    from kfbench.executors import parcels

    write(node, summary_json="{}", checkpoint_pt="x", updates_csv="a\n")
    written, plain = [], parcels.write_atomically
    monkeypatch.setattr(parcels, "write_atomically", lambda path, c: (written.append(path.name), plain(path, c)))
    unpack(Sender(node, {}).parcel(), home)
    assert written == ["updates.csv", "checkpoint.pt", "summary.json"]


def test_a_piece_that_does_not_fit_what_is_home_is_an_error_of_the_disk(home):
    write(home, updates_csv="a\n")
    with pytest.raises(OSError, match=r"has 2 bytes, of which 4 are known"):
        unpack(Parcel((Piece("seed-0/updates.csv", 4, b"2\n"),)), home)
    assert (home / "seed-0" / "updates.csv").read_text() == "a\n"
