"""Batches that grow, statistics of a part of each, and the average of the weights."""

import copy

import pytest
import torch

from kfbench.curvature.statistics import LayerStatistics
from kfbench.errors import UsageError
from kfbench.updates.batches import growing_batches
from kfbench.updates.build import build_data
from kfbench.updates.trainee import Trainee

CPU = torch.device("cpu")


def _trainee(runs, spec, **flags):
    config = runs.config(spec, **flags)
    return Trainee(config, build_data(config, CPU), 0, CPU)


def test_sizes_grow_exponentially_to_the_whole_set(runs):
    data = build_data(runs.config("sgd"), CPU)
    batches = growing_batches(data, 10, 5, seed=0)
    sizes = [len(next(batches)[0]) for _ in range(7)]
    assert sizes == [10, 17, 30, 52, 90, 90, 90], "10 * 9 ** (step / 4), of 90 samples"
    later = growing_batches(data, 10, 5, seed=0, first_update=3)
    fourth = growing_batches(data, 10, 5, seed=0)
    for _ in range(3):
        next(fourth)
    assert torch.equal(next(later)[0], next(fourth)[0]), "known from the number of the update alone"


def test_epochs_are_counted_in_samples(runs):
    _, folder = runs.train("sgd", batch_growth=4, updates=6)
    rows = [line.split(",") for line in (folder / "seed-0" / "updates.csv").read_text().splitlines()]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    assert [row["samples"] for row in table] == ["0", "20", "53", "108", "198", "288"]
    assert [row["epoch"] for row in table] == ["0", "0", "0", "1", "2", "3"]


def test_growing_batches_need_a_number_of_updates(runs):
    with pytest.raises(UsageError, match="batch_growth 4 needs updates, since epochs differ, got none"):
        runs.config("sgd", batch_growth=4)


@pytest.mark.parametrize("spec", ["kfac:T=1,order=same,ema=0", "foof:T=1,order=independent,ema=0", "ekfac:T=1,ema=0"])
@pytest.mark.parametrize("micro", [None, 4])
def test_statistics_are_of_the_first_part(runs, spec, micro):
    trainee = _trainee(runs, f"{spec},tau1=0.25", micro_batch_size=micro)
    trainee.warm_up()
    seen, own = [], trainee.preconditioning.method.observe
    trainee.preconditioning.method.observe = lambda statistics: seen.append(statistics) or own(statistics)
    x, y = next(trainee.batches())
    trainee.update(x, y)
    (statistics,) = seen
    first: LayerStatistics = next(iter(statistics.values()))
    assert first.samples == 5, "a quarter of 20"
    assert torch.equal(first.sample_rows().all()[:, 0], x[:5].flatten(1))


def test_a_part_that_is_all_of_it_changes_little_else(runs):
    """The same samples in a pass of their own: FOOF, which draws no labels, ends where it ends."""
    whole, part = (_trainee(runs, f"foof:T=2{more}", dtype="float64") for more in ("", ",tau1=1.0"))
    for trainee in (whole, part):
        trainee.warm_up()
        for _, batch in zip(range(4), trainee.batches(), strict=False):
            trainee.update(*batch)
    for a, b in zip(whole.model.parameters(), part.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_average_is_exponential_and_evaluated_beside_the_iterate(runs):
    trainee = _trainee(runs, "sgd:average=0.75,lr=0.1", dtype="float64")
    before = trainee.evaluate()
    assert before["averaged_train_loss"] == before["train_loss"], "nothing to average yet"
    wanted = None
    for _, batch in zip(range(3), trainee.batches(), strict=False):
        trainee.update(*batch)
        now = [w.detach().clone() for w in trainee.model.parameters()]
        wanted = now if wanted is None else [0.75 * a + 0.25 * b for a, b in zip(wanted, now, strict=True)]
    for a, b in zip(trainee.average.module.parameters(), wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-14)
    figures, twin = trainee.evaluate(), copy.deepcopy(trainee)
    with torch.no_grad():
        for w, value in zip(twin.model.parameters(), wanted, strict=True):
            w.copy_(value)
    assert figures["averaged_test_loss"] == pytest.approx(twin.evaluate()["test_loss"])
    assert figures["averaged_train_loss"] != figures["train_loss"]


def test_average_is_in_records_where_it_is_asked_for(runs):
    summary, folder = runs.train("sgd:average=0.9", updates=6)
    assert "averaged_test_accuracy" in (folder / "seed-0" / "epochs.csv").read_text().splitlines()[0]
    assert summary["runs"][0]["averaged_train_loss"] > 0
    summary, folder = runs.train("sgd", updates=6)
    assert "averaged" not in (folder / "seed-0" / "epochs.csv").read_text()
    assert "averaged_train_loss" not in summary["runs"][0]
