"""Checkpoints: what is written can be read back, and nothing but that is ever continued from."""

import collections
import enum
import io
import os
import random
import shutil
import warnings
from pathlib import Path

import numpy
import pytest
import torch

from kfbench.errors import UsageError
from kfbench.training import seed_run
from kfbench.training.checkpoint import CHECKPOINT, RESERVE, first_unreadable, load_checkpoint, save_checkpoint
from kfbench.training.observer import Observer
from kfbench.training.run import train
from tests.runs import epochs, updates
from tests.training.test_seed_run import _assert_same_run, _frequent_checkpoints, _in_child, _kill_in_update

SPEC, UPDATES = "foof:T=3,momentum=0.9,lr=0.1", 24


def rewritten(path, change, signed=True):
    """The checkpoint with its content changed; not ``signed``: as torch alone writes it."""
    content = torch.load(path, weights_only=True)
    content = change(content) or content
    if not signed:
        torch.save(content, path)
        return
    folder = path.parent / "again"
    folder.mkdir()
    save_checkpoint(folder, content)
    os.replace(folder / CHECKPOINT, path)
    folder.rmdir()


def without(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def with_value(value, *keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


def flipped(bit):
    def damage(path):
        content = bytearray(path.read_bytes())
        at = random.Random(bit).randrange(len(content) * 8)
        content[at // 8] ^= 1 << at % 8
        path.write_bytes(content)

    return damage


def zeroed(path):
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 4096] = bytes(4096)
    path.write_bytes(content)


def saved(content):
    return lambda path: torch.save(content, path)


def signed(change):
    return lambda path: rewritten(path, change)


DAMAGE = {
    **{f"bit {i}": flipped(i) for i in range(8)},
    "zeros": zeroed,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "empty": saved({}),
    "a tensor": saved(torch.ones(3)),
    "text": saved("model"),
    "unsigned": lambda path: rewritten(path, lambda content: None, signed=False),
    "another seed": signed(with_value(1, "seed")),
    "a negative step": signed(with_value(-1, "trainee", "step")),
    "a step beyond the end": signed(with_value(10**6, "trainee", "step")),
    "a word for a step": signed(with_value("two", "trainee", "step")),
    "another version": signed(with_value(7, "schema_version")),
    "epochs without losses": signed(with_value([{}], "epochs")),
    **{f"no {key}": signed(without(key)) for key in ("trajectory", "seed", "trainee", "epochs", "bytes", "clocks")},
    **{f"no {key} of the trainee": signed(without("trainee", key))
       for key in ("step", "model", "optimizer", "scheduler", "preconditioning", "random", "random_device")},
    "no optimizer's state": signed(without("trainee", "optimizer", "param_groups")),
    "ended too early": signed(lambda content: [content["trainee"].pop(key) for key in
                                               ("optimizer", "scheduler", "preconditioning", "random", "random_device")]
                              and None),
}  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run that was killed after several checkpoints, and the same one whole."""
    from tests.runs import Runs

    runs = Runs(tmp_path_factory.mktemp("runs"))
    whole, folder = runs.train(SPEC, updates=UPDATES)[1], runs.path / "killed"
    with pytest.MonkeyPatch.context() as patch:
        _frequent_checkpoints(patch)

        def action():
            _kill_in_update(17)
            runs.train(SPEC, folder, updates=UPDATES)

        assert os.WIFSIGNALED(_in_child(action))
    assert (folder / "seed-0" / RESERVE).exists()
    return folder, whole


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_never_continued_from(runs, killed, damage):
    folder = runs.path / "run"
    shutil.copytree(killed[0], folder)
    damage(folder / "seed-0" / CHECKPOINT)
    (folder / "seed-0" / RESERVE).rename(folder / "reserve")
    before = {path: path.read_bytes() for path in folder.rglob("*.csv")}
    with pytest.raises(UsageError) as caught:
        runs.train(SPEC, folder, resume=True, updates=UPDATES)
    assert f"{folder}/seed-0 can be read: {CHECKPOINT} " in str(caught.value)
    assert str(caught.value).endswith("start anew with --overwrite")
    assert before == {path: path.read_bytes() for path in folder.rglob("*.csv")}
    # The reserve is older, and whole.
    (folder / "reserve").rename(folder / "seed-0" / RESERVE)
    assert runs.train(SPEC, folder, resume=True, updates=UPDATES)[0]["status"] == "done"
    _assert_same_run(folder, killed[1])


def test_of_every_single_bit_none_is_overlooked(tmp_path):
    save_checkpoint(tmp_path, {"value": torch.ones(2)})
    path = tmp_path / CHECKPOINT
    whole = path.read_bytes()
    for bit in range(0, len(whole) * 8, 5):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with pytest.raises(UsageError, match="no checkpoint in"):
            load_checkpoint(tmp_path)


def test_a_checkpoint_of_before_there_were_checksums_goes_on(runs, killed):
    folder = runs.path / "run"
    shutil.copytree(killed[0], folder)
    path = folder / "seed-0" / CHECKPOINT
    rewritten(path, without("schema_version"), signed=False)
    (folder / "seed-0" / RESERVE).unlink()
    old = path.read_bytes()
    zeroed(path)
    with pytest.raises(UsageError, match=rf"{CHECKPOINT} (is damaged|cannot be continued from)"):
        runs.train(SPEC, folder, resume=True, updates=UPDATES)
    path.write_bytes(old)
    assert runs.train(SPEC, folder, resume=True, updates=UPDATES)[0]["status"] == "done"
    _assert_same_run(folder, killed[1])


def test_the_checkpoint_of_another_seed_continues_none(runs, killed):
    folder = runs.path / "run"
    shutil.copytree(killed[0], folder)
    shutil.copytree(folder / "seed-0", folder / "seed-1")
    with pytest.raises(UsageError, match=rf"seed-1 can be read: {CHECKPOINT} is of seed 0, not of 1; "):
        runs.train(SPEC, folder, resume=True, updates=UPDATES, seeds=2)


def test_records_shorter_than_the_checkpoint_says_are_the_reserves_turn(runs, killed):
    folder = runs.path / "run"
    shutil.copytree(killed[0], folder)
    reserve = torch.load(folder / "seed-0" / RESERVE, weights_only=True)
    os.truncate(folder / "seed-0" / "updates.csv", reserve["bytes"][0] + 3)
    assert runs.train(SPEC, folder, resume=True, updates=UPDATES)[0]["status"] == "done"
    _assert_same_run(folder, killed[1])
    (folder / "seed-0" / "summary.json").unlink()
    os.truncate(folder / "seed-0" / "epochs.csv", 10)
    sentence = rf"{CHECKPOINT} was written when epochs\.csv had \d+ bytes, more than now; start anew with --overwrite"
    with pytest.raises(UsageError, match=sentence):
        runs.train(SPEC, folder, resume=True, updates=UPDATES)


def test_among_several_methods_a_damaged_one_begins_that_seed_anew(runs, killed):
    folder = runs.path / "run"
    shutil.copytree(killed[0], folder)
    for name in (CHECKPOINT, RESERVE):
        flipped(3)(folder / "seed-0" / name)
    with pytest.warns(UserWarning, match=r"checksum is another; .*checksum is another; seed 0 is trained anew"):
        summary = train(runs.config(SPEC, updates=UPDATES), folder, Observer(), resume=True, keep_weights=False)
    assert summary["status"] == "done"
    assert updates(folder).equals(updates(killed[1])) and epochs(folder).equals(epochs(killed[1]))


@pytest.mark.parametrize("content", [b"", b'{"schema_ver', b"[]", b"3"])
def test_a_seed_whose_summary_cannot_be_read_has_not_ended(runs, content):
    _, folder = runs.train(SPEC, updates=UPDATES)
    whole = (folder / "seed-0" / "summary.json").read_bytes()
    (folder / "seed-0" / "summary.json").write_bytes(content)
    with pytest.warns(UserWarning, match=r"seed-0/summary\.json"):
        summary, _ = runs.train(SPEC, folder, resume=True, updates=UPDATES)
    assert summary["status"] == "done" and summary["runs"][0]["updates"] == UPDATES
    assert (folder / "seed-0" / "summary.json").read_bytes()[:40] == whole[:40]


def test_no_reserve_stays_after_the_end(runs, monkeypatch):
    _frequent_checkpoints(monkeypatch)
    for spec in (SPEC, "sgd:lr=1e5"):
        _, folder = runs.train(spec, updates=UPDATES)
        assert not (folder / "seed-0" / RESERVE).exists()


# What a method or optimizer keeps.


class Colour(enum.Enum):
    RED = 1


KEPT = {
    "numpy.float64": numpy.float64(0.5),
    "numpy.ndarray": numpy.ones(2),
    "collections.deque": collections.deque([1]),
    "collections.defaultdict": collections.defaultdict(int),
    "pathlib.PosixPath": Path("x"),
    "frozenset": frozenset([1]),
    "function": lambda: 0,
    "Colour": Colour.RED,
    "Generator": torch.Generator(),
    "range": range(3),
}
PLAIN = [collections.OrderedDict(a=1), {1, 2}, torch.float32, torch.Size([1]), 1j, b"x", None, (1, [2.0, "a"])]


class Keeps(torch.optim.SGD):
    """Keeps something from its ``after``-th step on."""

    def __init__(self, params, lr=0.1, what="", after=1):
        super().__init__(params, lr=lr)
        self.what, self.after, self.taken = what, after, 0

    def step(self, closure=None):
        self.taken += 1
        super().step(closure)
        if self.taken >= self.after:
            for p in self.param_groups[0]["params"]:
                self.state[p]["scale"] = KEPT[self.what]


@pytest.mark.parametrize("name", KEPT)
def test_what_could_not_be_read_again_is_refused_at_the_first_update(runs, name):
    with pytest.raises(UsageError) as caught:
        runs.train(f"{__name__}:Keeps:what={name}", epochs=1)
    assert f"Keeps: its state cannot be saved: optimizer.state.0.scale is a {name}" in str(caught.value).replace(
        f"{__name__}.", ""
    ).replace("torch._C.", "")


def test_what_comes_later_fails_the_seed_at_its_checkpoint(runs, monkeypatch):
    _frequent_checkpoints(monkeypatch)
    summary, folder = runs.train(f"{__name__}:Keeps:what=frozenset,after=7", updates=UPDATES)
    assert summary["status"] == "failed"
    assert "optimizer.state.0.scale is a frozenset" in summary["runs"][0]["reason"]
    assert load_checkpoint(folder / "seed-0")["trainee"]["step"] < 7, "the last one that is whole stays"


@pytest.mark.parametrize("value", PLAIN, ids=[str(value)[:20] for value in PLAIN])
def test_plain_values_are_none_of_these(value):
    assert first_unreadable({"kept": value, "tensor": torch.ones(2)}) is None
    buffer = io.BytesIO()
    torch.save(value, buffer)
    assert torch.load(io.BytesIO(buffer.getvalue()), weights_only=True) == value


def test_a_key_that_cannot_be_read_again_is_named():
    assert first_unreadable({"a": {numpy.int64(3): 1}}) == "a.key np.int64(3) is a numpy.int64"


class Silent(torch.optim.SGD):
    """Its state_dict raises, from the ``after``-th call on."""

    calls = 0

    def __init__(self, params, lr=0.1, after=1):
        super().__init__(params, lr=lr)
        self.after = after
        Silent.calls = 0

    def state_dict(self):
        Silent.calls += 1
        if Silent.calls >= self.after:
            raise ValueError("not mine to tell")
        return super().state_dict()


@pytest.mark.parametrize("after", [1, 2])
def test_a_state_that_cannot_be_had_is_a_failure_with_a_summary_and_other_seeds_go_on(runs, after):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        summary, folder = runs.train(f"{__name__}:Silent:after={after}", epochs=1, seeds=2)
    assert summary["status"] == "failed"
    assert [run["reason"] for run in summary["runs"]] == ["ValueError: not mine to tell"] * 2
    assert all((folder / f"seed-{seed}" / "summary.json").exists() for seed in (0, 1))


def test_one_of_before_this_was_asked_is_refused_without_advice_to_trust_it(tmp_path):
    torch.save({"trainee": {"scale": numpy.float64(1)}}, tmp_path / CHECKPOINT)
    with pytest.raises(UsageError, match=rf"{CHECKPOINT} holds more than tensors and plain values, or is damaged; "):
        load_checkpoint(tmp_path)


def test_the_state_is_looked_at_once(runs, monkeypatch):
    """Nothing gets slower with every update."""
    calls = []
    monkeypatch.setattr(seed_run, "first_unreadable", lambda state: calls.append(state))
    runs.train("sgd", epochs=4)
    assert len(calls) == 2, "after the first update, and of what is saved at the end"
