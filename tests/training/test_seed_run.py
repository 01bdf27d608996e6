"""Nothing is lost: kills at any update, torn checkpoints, other configurations, full disks."""

import errno
import os
import random
import resource
import signal
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from kfbench.cli.app import main
from kfbench.config.identity import differing_keys
from kfbench.errors import UsageError
from kfbench.training import checkpoint, seed_run
from kfbench.training.checkpoint import CHECKPOINT, RESERVE, load_checkpoint, save_checkpoint
from kfbench.updates.trainee import Trainee
from tests.runs import SMALL, STEPS, epochs, updates
from tests.training.test_run import SPECS

UPDATES = 24


def _in_child(action):
    """Run in a forked process that may be killed; returns its exit status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = action() or 0
        except SystemExit as ended:
            code = ended.code or 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def _kill_in_update(update):
    plain = Trainee.update

    def killed(self, *batch):
        if self.step == update:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, *batch)

    Trainee.update = killed


def _frequent_checkpoints(monkeypatch):
    monkeypatch.setattr(seed_run, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(seed_run, "BLOCK", 3)


def _assert_same_run(folder, whole):
    pd.testing.assert_frame_equal(updates(folder), updates(whole))
    pd.testing.assert_frame_equal(epochs(folder), epochs(whole))
    final = [torch.load(f / "seed-0" / CHECKPOINT, weights_only=True)["trainee"]["model"] for f in (folder, whole)]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[1])


@pytest.mark.parametrize(
    "spec",
    [
        *SPECS,
        "adam:lr_schedule=cosine",
        "kfac:T=4,lr_schedule=linear-warmup-cosine,warmup_updates=7",
        "foof:T=4,momentum=0.9,lr=0.01",
        "foof:T=4,momentum=0.9,nesterov=true,momentum_after_epoch=2,lr=0.01",
        "foof:T=4,lr_schedule=step,lr_step_epochs=2,clip_norm=1e-3,clip_decay=0.1",
        "foof:T=4,average=0.9,tau1=0.3",
        "torch.optim:LBFGS:lr=0.1,max_iter=3",
        "torch.optim:LBFGS:lr=0.1,max_iter=3",
    ],
)
def test_killed_run_continues_bit_for_bit(runs, spec, monkeypatch):
    """kill -9 at random updates, with and without a checkpoint before it, three times in the same run."""
    _assert_continues_bit_for_bit(runs, spec, monkeypatch)


@pytest.mark.parametrize("spec", ["kfac:T=2,order=same,T1=2,T2=4,tau1=0.5", "natural:T=2,order=same,T1=3,T2=2"])
def test_killed_run_of_a_step_rule_continues_bit_for_bit(runs, spec, monkeypatch):
    """lambda, gamma, the last step and the growing batches are where they were."""
    rule = "step=rescale-momentum,adapt=damping,gamma,tau2=0.5,damping=0.5,weight_decay=1e-3,average=0.5"
    flags = {"lr": None, "damping": None, "batch_growth": 15}
    _assert_continues_bit_for_bit(runs, f"{spec},{rule}", monkeypatch, **flags)


def test_killed_run_of_a_convolutional_model_continues_bit_for_bit(runs, monkeypatch):
    """With batch normalisation, whose statistics are buffers, and augmentation, which is drawn anew for each update."""
    flags = {"model": "convnet", "width": 2, "norm": "batch", "augment": "flip-crop"}
    _assert_continues_bit_for_bit(runs, "foof:T=4,lr=0.1,damping=10", monkeypatch, **flags)


@pytest.mark.parametrize("spec", ["adam", "foof:T=4", "kfac:T=3", "ekfac:T=6", "natural:T=3,damping=1", "kflr:T=3"])
def test_killed_run_of_a_text_continues_bit_for_bit(runs, spec, monkeypatch, tmp_path):
    """Tokens, their counts, and rows of several positions come back as they were."""
    path = tmp_path / "own.txt"
    path.write_text("to be or not to be\n" * 200)
    flags = {"dataset": str(path), "model": "transformer", "context": 6, "heads": 2, "width": 8, "eval_samples": 20}
    _assert_continues_bit_for_bit(runs, spec, monkeypatch, **flags, lr=1e-4)


def test_killed_run_under_autocast_continues_bit_for_bit(runs, monkeypatch):
    _assert_continues_bit_for_bit(runs, "kfac:T=4", monkeypatch, amp="bfloat16")


def _assert_continues_bit_for_bit(runs, spec, monkeypatch, **flags):
    _frequent_checkpoints(monkeypatch)
    _, whole = runs.train(spec, updates=UPDATES, **flags)
    rng = random.Random(spec)
    folder = runs.path / "killed"
    # One perhaps before the first checkpoint, the others with updates to go after the continuation.
    for kill_at in (rng.randrange(4), rng.randrange(5, 13), rng.randrange(13, 20)):

        def action(kill_at=kill_at):
            _kill_in_update(kill_at)
            runs.train(spec, folder, resume=True, updates=UPDATES, **flags)

        status = _in_child(action)
        assert os.WIFSIGNALED(status), f"{spec} was not killed at update {kill_at}"
    summary, _ = runs.train(spec, folder, resume=True, updates=UPDATES, **flags)
    assert summary["status"] == "done"
    _assert_same_run(folder, whole)


@pytest.mark.parametrize("call", range(1, 5))
def test_kill_while_a_checkpoint_is_written(runs, monkeypatch, call):
    """Between any two renames there is a whole checkpoint to be found."""
    _frequent_checkpoints(monkeypatch)
    _, whole = runs.train("foof:T=3", updates=UPDATES)
    folder = runs.path / "killed"

    def action():
        plain, calls = os.replace, 0

        def replace(source, target):
            nonlocal calls
            if CHECKPOINT in str(target) or RESERVE in str(target):
                calls += 1
                if calls == call + 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            return plain(source, target)

        os.replace = replace
        runs.train("foof:T=3", folder, updates=UPDATES)

    assert os.WIFSIGNALED(_in_child(action))
    runs.train("foof:T=3", folder, resume=True, updates=UPDATES)
    _assert_same_run(folder, whole)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_torn_checkpoint_is_survived_by_the_reserve(tmp_path, damage):
    save_checkpoint(tmp_path, {"value": torch.ones(3)})
    save_checkpoint(tmp_path, {"value": torch.zeros(3)})
    current = tmp_path / CHECKPOINT
    content = current.read_bytes()
    if damage == "missing":
        current.unlink()
    else:
        current.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"x" * 99}[damage])
    assert load_checkpoint(tmp_path)["value"].tolist() == [1, 1, 1]
    (tmp_path / RESERVE).write_bytes(b"also gone")
    if damage != "missing":
        with pytest.raises(UsageError, match=r"no checkpoint in .* can be read"):
            load_checkpoint(tmp_path)


def test_checkpoint_of_code_is_not_executed(tmp_path):
    """weights_only: a pickle that would run something is refused like a torn file."""

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "executed"),))

    torch.save({"value": Evil()}, tmp_path / CHECKPOINT)
    with pytest.raises(UsageError):
        load_checkpoint(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_no_checkpoint_at_all_starts_anew(tmp_path):
    assert load_checkpoint(tmp_path) is None


def test_kill_between_the_last_checkpoint_and_the_summary(runs):
    _, whole = runs.train("foof:T=3", updates=UPDATES)
    _, folder = runs.train("foof:T=3", updates=UPDATES)
    (folder / "seed-0" / "summary.json").unlink()
    summary, _ = runs.train("foof:T=3", folder, resume=True, updates=UPDATES)
    assert summary["status"] == "done"
    assert summary["runs"][0]["final_train_loss"] == float(epochs(whole)["train_loss"].iloc[-1])
    _assert_same_run(folder, whole)


def test_run_of_another_configuration_is_refused_with_the_differing_keys(runs, monkeypatch):
    _frequent_checkpoints(monkeypatch)
    folder = runs.path / "killed"

    def action():
        _kill_in_update(13)
        runs.train("foof:T=3", folder, updates=UPDATES)

    assert os.WIFSIGNALED(_in_child(action))
    before = (folder / "seed-0" / "updates.csv").read_bytes()
    with pytest.raises(UsageError, match=r"differing: problem\.width, method\.damping"):
        runs.train("foof:T=3,damping=2", folder, resume=True, updates=UPDATES, width=17)
    assert (folder / "seed-0" / "updates.csv").read_bytes() == before


def test_differing_keys_are_dotted():
    assert differing_keys({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 3}) == ["a.c", "d", "e"]


def _main(*arguments):
    sys.argv = ["kfbench", *map(str, arguments)]
    main()


def _small_run(folder, *more):
    flags = [word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", value)]
    flags += ["--damping", STEPS["foof"]["damping"], *([] if "--lr" in more else ["--lr", STEPS["foof"]["lr"]])]
    return ("train", "--opt", "foof", "--T", 3, "--epochs", 4, "--out", folder, *flags, *more)


def _assert_one_sentence(captured):
    errors = [line for line in captured.err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1, captured.err
    assert "Traceback" not in captured.err
    return errors[0]


def test_full_disk_is_one_sentence_and_what_was_written_stays_valid(tmp_path, monkeypatch, capfd):
    """A limit on file sizes stands in for a full disk: the kernel refuses the write in the same place."""
    monkeypatch.setattr(seed_run, "CHECKPOINT_SECONDS", 0.0)

    def action():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        _main(*_small_run(tmp_path / "run"))

    status = _in_child(action)
    assert os.WEXITSTATUS(status) == 2
    sentence = _assert_one_sentence(capfd.readouterr())
    assert os.strerror(errno.EFBIG) in sentence
    assert CHECKPOINT in sentence
    table = pd.read_csv(tmp_path / "run" / "seed-0" / "updates.csv")
    assert len(table) == 5
    assert table["loss"].notna().all()
    assert not list(Path(tmp_path).rglob("*.tmp"))


def test_full_disk_can_be_continued(tmp_path, monkeypatch, capfd):
    _main_in_child = _in_child(lambda: _main(*_small_run(tmp_path / "whole")))
    assert _main_in_child == 0
    monkeypatch.setattr(seed_run, "CHECKPOINT_SECONDS", 0.0)
    plain, calls = checkpoint.write_atomically, 0

    def full(path, content):
        nonlocal calls
        calls += 1
        if calls > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        plain(path, content)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "write_atomically", full)
        with pytest.raises(SystemExit) as ended:
            _main(*_small_run(tmp_path / "run"))
    assert ended.value.code == 2
    assert "No space left" in _assert_one_sentence(capfd.readouterr())
    with pytest.raises(SystemExit) as ended:
        _main("train", "--resume", "--out", tmp_path / "run")
    assert ended.value.code == 0
    _assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("place", ["/proc/kfbench", "/dev/null/run"])
def test_folder_that_cannot_be_made_is_one_sentence(place, capfd):
    with pytest.raises(SystemExit) as ended:
        _main(*_small_run(place))
    assert ended.value.code == 2
    assert place.split("/")[1] in _assert_one_sentence(capfd.readouterr())


def test_folder_that_vanishes_is_one_sentence(tmp_path, monkeypatch, capfd):
    import shutil

    monkeypatch.setattr(seed_run, "CHECKPOINT_SECONDS", 0.0)
    plain = Trainee.update

    def vanishing(self, *batch):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return plain(self, *batch)

    monkeypatch.setattr(Trainee, "update", vanishing)
    with pytest.raises(SystemExit) as ended:
        _main(*_small_run(tmp_path / "run"))
    assert ended.value.code == 2
    _assert_one_sentence(capfd.readouterr())


def test_interrupted_command_says_how_to_continue(tmp_path, monkeypatch, capfd):
    plain = Trainee.update

    def interrupted(self, *batch):
        if self.step == 7:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainee, "update", interrupted)
        with pytest.raises(SystemExit) as ended:
            _main(*_small_run(tmp_path / "run"))
    assert ended.value.code == 130
    line = next(line for line in capfd.readouterr().err.splitlines() if "continue with" in line)
    with pytest.raises(SystemExit) as ended:
        _main(*line.split("kfbench ")[1].split())
    assert ended.value.code == 0
    assert len(pd.read_csv(tmp_path / "run" / "seed-0" / "updates.csv")) == 20


def test_diverged_command_exits_with_3(tmp_path, capfd):
    with pytest.raises(SystemExit) as ended:
        _main(*_small_run(tmp_path / "run", "--lr", 1e6, "--seeds", 2))
    assert ended.value.code == 3
    captured = capfd.readouterr()
    assert "seed 0 diverged" in captured.err
    assert "seed 1 diverged" in captured.err


def test_factor_that_is_not_positive_definite_is_damped_more_and_counted(runs):
    """Without damping the factor of 90 samples in 784 dimensions is singular."""
    with pytest.warns(UserWarning, match="was damped more") as caught:
        summary, _ = runs.train("foof:damping=0,lr=1e-4,T=2", updates=6)
    assert len([w for w in caught if "damped more" in str(w.message)]) == 1
    assert summary["runs"][0]["damping_retries"] > 0
