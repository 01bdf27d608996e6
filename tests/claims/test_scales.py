"""The small sizes at which claims are tested."""

import pytest

from kfbench.claims.scales import changes
from kfbench.config.load import load_config
from kfbench.errors import UsageError


def small(overrides=None, scale="small", **flags):
    return changes(load_config(flags=flags, specs=["foof"], command="sweep"), scale, overrides or {})


def test_full_is_as_written():
    assert small(scale="full", dataset="fashion-mnist") == {}


def test_mini_batches_on_a_sixth_of_the_images():
    expected = {"train_samples": 10_000, "epochs": 3, "width": 250}
    assert small(dataset="fashion-mnist", epochs=10) == expected
    assert small(dataset="fashion-mnist", epochs=1, final_epochs=5) == {**expected, "final_epochs": 3}


def test_full_batches_of_fewer_images():
    expected = {"train_samples": 200, "batch_size": 200, "epochs": 100, "width": 250}
    assert small(dataset="fashion-mnist", train_samples=1000, batch_size=1000, epochs=100) == expected
    logistic = small(dataset="fashion-mnist", train_samples=1000, batch_size=1000, model="logistic")
    assert "width" not in logistic


def test_no_more_images_than_there_are():
    assert small(dataset="fashion-mnist-1k")["train_samples"] == 1000


def test_a_claim_may_say_otherwise():
    assert small({"run.epochs": 20}, dataset="curves", model="autoencoder")["epochs"] == 20
    assert "epochs" not in small({"run.updates": 100}, dataset="fashion-mnist")


def test_smoke_is_small_and_quick():
    assert small(scale="smoke", dataset="fashion-mnist") == {**small(dataset="fashion-mnist"), "quick": True}


def test_wrong_keys_of_small_are_named():
    for name in ("run.epoch", "foo.epochs", "similarity.every"):
        with pytest.raises(UsageError, match=f"unknown key of a claim's small '{name}'"):
            small({name: 1}, dataset="fashion-mnist")


def test_small_is_no_larger_than_the_file():
    assert small(dataset="fashion-mnist", width=8)["width"] == 8
