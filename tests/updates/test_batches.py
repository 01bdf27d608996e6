"""Batches: augmented or not, they follow from the seed and the number of an update alone."""

from dataclasses import replace
from itertools import islice

import pytest
import torch

from kfbench.problems.datasets import load_dataset
from kfbench.updates.batches import fisher_batches, training_batches, warmup_batches
from tests.runs import epochs, updates


@pytest.fixture(scope="module")
def plain():
    return load_dataset("fashion-mnist-1k").first(50)


@pytest.fixture
def varied(plain):
    return replace(plain, augment="flip-crop")


def _inputs(batches, count):
    return [x for x, _ in islice(batches, count)]


def _equal(a, b):
    return len(a) == len(b) and all(map(torch.equal, a, b))


def test_the_order_and_the_targets_are_those_without_augmentation(plain, varied):
    for (x, y), (varied_x, varied_y) in zip(
        islice(training_batches(plain, 20, 0), 7), training_batches(varied, 20, 0), strict=False
    ):
        assert torch.equal(y, varied_y) and x.shape == varied_x.shape and not torch.equal(x, varied_x)


def test_a_run_that_goes_on_sees_the_same(varied):
    """From within an epoch, and from the beginning of one; 50 images in batches of 20 are 3 updates an epoch."""
    whole = _inputs(training_batches(varied, 20, 7), 9)
    for first in (1, 3, 5):
        assert _equal(_inputs(training_batches(varied, 20, 7, first), 9 - first), whole[first:])
    assert not _equal(_inputs(training_batches(varied, 20, 8), 9), whole)


def test_the_same_images_are_varied_anew_each_time(varied):
    one_epoch_a_batch = _inputs(training_batches(varied, 50, 0), 2)
    first, second = (sorted(x.flatten(1).sum(1).tolist()) for x in one_epoch_a_batch)
    assert first != second


def test_points_of_a_refresh_do_not_depend_on_their_chunks(plain, varied):
    whole, chunks, other = (
        torch.cat([x for x, _ in fisher_batches(varied, 30, chunk, 0, refresh)])
        for chunk, refresh in ((30, 1), (7, 1), (30, 2))
    )
    assert torch.equal(whole, chunks) and not torch.equal(whole, other)
    untouched = torch.cat([x for x, _ in fisher_batches(plain, 30, 7, 0, 1)])
    assert untouched.shape == whole.shape and not torch.equal(untouched, whole)


def test_warm_up_is_drawn_apart(plain, varied):
    warm = _inputs(warmup_batches(varied, 20, 0, 4), 4)
    assert _equal(_inputs(warmup_batches(varied, 20, 0, 2), 2), warm[:2])
    assert not torch.equal(warm[0], _inputs(training_batches(varied, 20, 0), 1)[0])
    assert not torch.equal(warm[0], _inputs(warmup_batches(plain, 20, 0, 1), 1)[0])


def test_the_global_generator_is_left_alone(varied):
    before = torch.get_rng_state()
    _inputs(training_batches(varied, 20, 0), 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_training_sees_varied_images_and_evaluation_the_images_themselves(runs):
    _, plain = runs.train("sgd", updates=6)
    _, varied = runs.train("sgd", updates=6, augment="flip-crop")
    assert updates(plain)["loss"].tolist() != updates(varied)["loss"].tolist()
    assert epochs(plain).iloc[0].equals(epochs(varied).iloc[0])


@pytest.mark.parametrize("spec", ["foof:T=4,S=2", "foof:T=7,S=7", "natural:T=2,fisher_data=10"])
def test_what_a_method_observes_does_not_change_what_others_see(runs, spec):
    """The first loss of each batch order is the untrained network's on the same augmented images."""
    still = {"updates": 6, "augment": "flip-crop", "lr": 1e-12}
    _, alone = runs.train("sgd", **still)
    _, beside = runs.train(spec, **still)
    first, second = (updates(folder)["loss"].astype(float) for folder in (alone, beside))
    assert first.tolist() == pytest.approx(second.tolist(), rel=1e-5)
