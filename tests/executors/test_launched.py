"""Which of several processes this is, as its environment says."""

import pytest

from kfbench.errors import UsageError
from kfbench.executors.launched import Launched, launched

GIVEN = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def test_what_torchrun_says():
    assert launched(GIVEN) == Launched(rank=1, size=3, local_rank=0)


@pytest.mark.parametrize("missing", GIVEN)
def test_other_launchers_set_some_of_these(missing):
    assert launched({key: value for key, value in GIVEN.items() if key != missing}) is None


def test_one_process_is_alone():
    assert launched(GIVEN | {"RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"RANK": "first"}, "must be whole numbers, got RANK='first', WORLD_SIZE='3', LOCAL_RANK='0'"),
        ({"RANK": "3"}, "RANK must be from 0 to WORLD_SIZE - 1, got RANK=3, WORLD_SIZE=3"),
        ({"LOCAL_RANK": "-1"}, "RANK must be from 0"),
    ],
)
def test_what_is_no_rank(wrong, sentence):
    with pytest.raises(UsageError, match=sentence):
        launched(GIVEN | wrong)
