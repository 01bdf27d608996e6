"""Refreshes are divided by what they cost, handed on once, and fail together."""

import pytest
import torch

from kfbench.updates.ranks.placed import Placed, assigned
from tests.updates.ranks.meeting import together

LIKE = torch.zeros(1, dtype=torch.float64)


def test_the_dearest_first_each_to_whoever_has_least():
    costs = {"a": 1.0, "b": 5.0, "c": 4.0, "d": 3.0, "e": 3.0}
    assert assigned(costs, 2) == {"b": 0, "c": 1, "d": 1, "e": 0, "a": 1}
    assert assigned(costs, 1) == dict.fromkeys(costs, 0)
    assert assigned(dict(reversed(costs.items())), 2) == assigned(costs, 2)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_no_share_is_above_four_thirds_of_the_best(size):
    generator = torch.Generator().manual_seed(size)
    costs = {str(i): float(c) for i, c in enumerate(torch.rand(17, generator=generator) ** 3)}
    loads = [0.0] * size
    for name, owner in assigned(costs, size).items():
        loads[owner] += costs[name]
    assert max(loads) <= 4 / 3 * max(sum(costs.values()) / size, *costs.values())


@pytest.mark.parametrize("size", [2, 3, 7])
def test_each_part_is_made_once_and_everybody_has_all(size):
    costs = {f"part {i}": float(i + 1) for i in range(5)}
    sizes = {name: [i + 1, 2] for i, name in enumerate(costs)}
    made = []

    def work(names):
        made.extend(names)
        return {name: [torch.full((n,), costs[name], dtype=torch.float64) for n in sizes[name]] for name in names}

    found = together(size, lambda transport: Placed(transport).divided(costs, sizes, work, LIKE))
    assert sorted(made) == sorted(costs)
    for one in found:
        assert list(one) == list(costs)
        for name, parts in one.items():
            assert [len(part) for part in parts] == sizes[name] and all((part == costs[name]).all() for part in parts)


@pytest.mark.parametrize(("error", "met"), [(torch.linalg.LinAlgError, FloatingPointError), (KeyError, RuntimeError)])
def test_what_one_cannot_do_ends_it_for_all(error, met):
    costs, sizes = {"a": 2.0, "b": 1.0}, {"a": [1], "b": [1]}

    def work(names):
        if "b" in names:
            raise error("of b")
        return {"a": [torch.ones(1, dtype=torch.float64)]}

    def tried(transport):
        with pytest.raises((error, met), match="of b"):
            Placed(transport).divided(costs, sizes, work, LIKE)
        return transport.bytes_sent

    assert together(2, tried) == [0, 0]
