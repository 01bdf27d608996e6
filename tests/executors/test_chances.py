"""Who is started once more: a job that failed, anew; one whose place was lost, from what came home."""

import pytest

from kfbench.executors.chances import Chances
from kfbench.executors.contract import Job, Outcome


class Starts:
    """An executor that only notes what it is given."""

    def __init__(self):
        self.jobs = []

    def submit(self, job):
        self.jobs.append(job)


@pytest.fixture
def begun():
    executor, sentences = Starts(), []
    chances = Chances(executor, sentences.append)
    chances.start(Job("a", "math:sqrt", (1.0,)))
    return chances, executor, sentences


def ended(kind, value="why"):
    return Outcome("a", kind, value, 1.0)


def test_one_that_failed_begins_anew_and_only_once(begun):
    chances, executor, sentences = begun
    assert chances.again(ended("crashed"), "why")
    assert [job.anew for job in executor.jobs] == [False, True]
    assert not chances.again(ended("crashed"), "why")
    assert sentences == ["a: why; it is tried once more"]


def test_one_that_was_lost_goes_on_and_keeps_its_second_chance(begun):
    chances, executor, sentences = begun
    assert chances.again(ended("lost", "gone"), "gone") and chances.again(ended("crashed"), "why")
    assert chances.again(ended("lost", "gone"), "gone"), "of the second attempt"
    assert [job.anew for job in executor.jobs] == [False, False, True, False]
    assert sentences[0] == "a: gone; it goes on elsewhere"


def test_one_that_brings_every_node_down_is_given_up(begun):
    chances, executor, _ = begun
    while chances.again(ended("lost"), "gone"):
        assert len(executor.jobs) < 100
    assert len(executor.jobs) == 21


@pytest.mark.parametrize(("kind", "reason"), [("returned", None), ("late", "took longer than 8 s")])
def test_one_that_is_done_or_was_late_is_not_started_again(begun, kind, reason):
    chances, executor, _ = begun
    assert not chances.again(ended(kind), reason) and len(executor.jobs) == 1
