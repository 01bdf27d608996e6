"""Who refreshes what: each part of a refresh by one process, by its counted cost, its result handed on once."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from kfbench.errors import described
from kfbench.updates.ranks.transport import Transport


def assigned(costs: Mapping[str, float], size: int) -> dict[str, int]:
    """Name -> process: the dearest first, each to whoever has least so far (Graham 1969, longest processing time).

    Its longest share is at most 4/3 of the best there is. Depends on names and costs alone, so all processes agree.
    """
    loads, owners = [0.0] * size, dict.fromkeys(costs, 0)
    for name in sorted(costs, key=lambda name: (-costs[name], name)):
        owners[name] = loads.index(min(loads))
        loads[owners[name]] += costs[name]
    return owners


class Placed:
    """What ``curvature/averages.Placement`` asks for, over a transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def divided(
        self,
        costs: Mapping[str, float],
        sizes: Mapping[str, list[int]],
        work: Callable[[list[str]], Mapping[str, list[Tensor]]],
        like: Tensor,
    ) -> dict[str, list[Tensor]]:
        """Flat tensors of these ``sizes`` for each name; ``work`` makes those of this process.

        What it raises here, all others raise too, as a FloatingPointError where numbers were the reason.
        """
        owners = assigned(costs, self._transport.size)
        named = [[name for name in costs if owners[name] == rank] for rank in range(self._transport.size)]
        made, error = self._tried(work, named[self._transport.rank])
        self._raise_together(error)
        flats = []
        for rank, names in enumerate(named):
            if rank == self._transport.rank:
                flats.append(torch.cat([like.new_empty(0), *(tensor for name in names for tensor in made[name])]))
            else:
                flats.append(like.new_empty(sum(sum(sizes[name]) for name in names)))
        self._transport.hand_on(flats)
        found: dict[str, list[Tensor]] = {}
        for names, flat in zip(named, flats, strict=True):
            split = iter(flat.split([size for name in names for size in sizes[name]]))
            found |= {name: [next(split) for _ in sizes[name]] for name in names}
        return {name: found[name] for name in costs}  # in the order in which they were asked for

    def _tried(
        self, work: Callable[[list[str]], Mapping[str, list[Tensor]]], names: list[str]
    ) -> tuple[Mapping[str, list[Tensor]], Exception | None]:
        try:
            return work(names), None
        except Exception as error:
            return {}, error

    def _raise_together(self, error: Exception | None) -> None:
        """Nobody may wait for a result that will never come."""
        if not self._transport.largest(int(error is not None)):
            return
        told = (
            None
            if error is None
            else (isinstance(error, (ArithmeticError, torch.linalg.LinAlgError)), described(error))
        )
        numerical, sentence = next(each for each in self._transport.all_objects(told) if each is not None)
        if error is not None:
            raise error
        raise (FloatingPointError if numerical else RuntimeError)(sentence.partition(": ")[2] or sentence)
