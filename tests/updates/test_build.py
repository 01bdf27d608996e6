"""The data set that a process remembers: made once, and again when anything that it was made from changes."""

import pytest
import torch

from kfbench.config.load import load_config
from kfbench.errors import UsageError
from kfbench.updates.build import build_data
from kfbench.updates.trainee import Trainee
from tests.problems.idx_files import small_arrays, write_files

CPU = torch.device("cpu")


def _data(**flags):
    flags = {"dataset": "mnist", "data_dir": "here", "batch_size": 5, **flags}
    return build_data(load_config(specs=["sgd"], flags=flags), CPU)


def test_the_same_data_set_is_read_once():
    write_files("here")
    first = _data()
    assert _data(batch_size=7, model="logistic", eval_samples=3).train_inputs is first.train_inputs


@pytest.mark.parametrize("change", [{"train_samples": 8}, {"normalize": "own"}, {"dtype": "float64"}])
def test_another_one_is_not_mistaken_for_it(change):
    write_files("here")
    first, other = _data(), _data(**change)
    assert other.train_inputs is not first.train_inputs
    assert (
        len(other.train_inputs) != 20
        or not torch.equal(other.train_inputs.float(), first.train_inputs)
        or (other.train_inputs.dtype == torch.float64)
    )


def test_changed_files_are_read_again():
    write_files("here")
    first = _data()
    arrays = small_arrays()
    write_files("here", [255 - arrays[0], *arrays[1:]])
    assert not torch.equal(_data().train_inputs, first.train_inputs)


def test_sizes_are_checked_every_time():
    write_files("here")
    _data()
    with pytest.raises(UsageError, match="batch_size is 21, above the 20 training samples"):
        _data(batch_size=21)


def _trainee(spec):
    flags = {"train_samples": 60, "batch_size": 20, "width": 5, "epochs": 3}
    config = load_config(specs=[spec], flags=flags)
    return Trainee(config, build_data(config, CPU), 0, CPU)


@pytest.mark.parametrize(("option", "refreshes"), [("", [1, 1, 1, 1, 2]), (",early_refreshes=3", [1, 2, 3, 3, 4])])
def test_early_refreshes(option, refreshes):
    trainee = _trainee(f"kfac:T=5,order=same,warmup_batches=0{option}")
    trainee.warm_up()
    seen = []
    for _, (x, y) in zip(refreshes, trainee.batches(), strict=False):
        trainee.update(x, y)
        seen.append(trainee.preconditioning.turn.refreshes)
    assert seen == refreshes


def test_early_refreshes_are_not_of_points_drawn_anew():
    with pytest.raises(UsageError, match="early_refreshes needs order 'same' where points are drawn anew, got 2"):
        _trainee("natural:T=5,early_refreshes=2")
    assert _trainee("natural:T=5,order=same,early_refreshes=2").preconditioning.turn.schedule.early == 2
