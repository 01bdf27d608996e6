"""The state of one method of a sweep: its grid as extended so far, what was tried, what is best."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, get_args

from kfbench.sweep.grids import Side
from kfbench.sweep.losses import Losses, Row, best_of, key, mean_loss, near_edge, ranked
from kfbench.sweep.plan import Point, Swept, Trial
from kfbench.sweep.suggest import Known, suggester

Rows = Mapping[str, Row]
# Where the best is known to four digits, points around it repeat.
_ATTEMPTS = 10


@dataclass
class Tuning:
    """One method: its axes, its trials of every round but the final one, and those of the final one."""

    method: Swept
    trials: list[Trial] = field(default_factory=list)
    finals: list[Trial] = field(default_factory=list)
    unplanned: int = 0  # trials that will be wanted, of which is not yet known where they lie
    seconds: list[float] = field(default_factory=list)  # that trials took, start to end
    predicted: float = 0.0

    def points(self) -> list[Point]:
        """Every point tried, once each, in the order of trying."""
        return list({key(t.point): t.point for t in self.trials}.values())

    def losses(self, rows: Rows, final: bool = False, rounds: Collection[str] | None = None) -> Losses:
        """Cell -> mean loss over its seeds: of what was tried for tuning (in those rounds), or of the final round."""
        by_cell: dict[tuple[Any, ...], list[Row | None]] = {}
        for tried in self.finals if final else self.trials:
            if rounds is not None and tried.round not in rounds:
                continue
            by_cell.setdefault(key(tried.point), []).append(rows.get(tried.hash))
        return {cell: mean_loss(own) for cell, own in by_cell.items()}

    def best(self, rows: Rows) -> Point | None:
        """The point of lowest loss: with fresh seeds where there are some, else as tuned."""
        cell = best_of(self.losses(rows, final=True)) or best_of(self.losses(rows))
        return None if cell is None else self._point(cell)

    def leading(self, rows: Rows, count: int) -> list[Point]:
        """The best points as tuned, the first first."""
        return [self._point(cell) for cell in ranked(self.losses(rows))[:count]]

    def wanting_fresh_seeds(self, rows: Rows, top: int, replacements: int) -> list[Point]:
        """The next points to be run again, until ``top`` of those that were did not diverge."""
        again = self.losses(rows, final=True)
        # Those that diverged count as tried, so that there is an end to replacing them.
        wanted = min(top - len(ranked(again)), top + replacements - len(again))
        left = [point for point in self.leading(rows, top + replacements) if key(point) not in again]
        return left[: max(wanted, 0)]

    def _point(self, cell: tuple[Any, ...]) -> Point:
        return dict(zip((axis.name for axis in self.method.axes), cell, strict=True))

    def edges(self, rows: Rows, near: float) -> list[tuple[str, Side]]:
        """The sides of the grid along which some cell is optimal, or near optimal (FOOF paper, D.2)."""
        return self._edges_of(self.losses(rows), near)

    def best_edges(self, rows: Rows) -> list[str]:
        """The sides of the grid at which the best point lies, as tuned or with fresh seeds: "lower damping".

        Its loss is then an upper bound of what a wider grid may have.
        """
        points = (*self.leading(rows, 1), self.best(rows))
        chosen: Losses = {key(point): 0.0 for point in points if point is not None}
        # A single value was not searched, so it has no edges.
        searched = {axis.name for axis in self.method.axes if len(axis.values) > 1}
        return [f"{side} {name}" for name, side in self._edges_of(chosen, near=1.0) if name in searched]

    def _edges_of(self, losses: Losses, near: float) -> list[tuple[str, Side]]:
        return [
            (axis.name, side)
            for index, axis in enumerate(self.method.axes)
            for side in get_args(Side)
            if axis.extendable and near_edge(losses, index, axis.edge(side), near, side == "upper")
        ]

    def grow(self, rows: Rows, near: float) -> list[Point]:
        """Extend the grid past those sides; returns the new cells. Where these diverge it ends by itself."""
        before = {key(point) for point in self.method.cells()}
        # The edges of the grid as it was judged: they are a list before it grows.
        for name, side in self.edges(rows, near):
            self.method = self.method.with_axis(self.method.axis(name).extended(side))
        return [point for point in self.method.cells() if key(point) not in before]

    def suggestions(self, rows: Rows, sampler: str, seed: int, earlier: list[Point], count: int) -> Iterator[Point]:
        """Further points, lazily, so that a sampler may learn from what has ended meanwhile.

        ``earlier`` are those that it gave before an interruption: what it has learned since would
        lead it elsewhere.
        """
        best = self.leading(rows, 1)
        if not best or not any(axis.step for axis in self.method.axes):
            return
        suggest = suggester(sampler, self.method, best[0], seed)
        for index in range(count):
            yield earlier[index] if index < len(earlier) else self._new(suggest, index, count, rows)

    def _new(self, suggest: Callable[[int, Known], Point], index: int, count: int, rows: Rows) -> Point:
        """A suggestion that was not tried yet, or after some attempts one that was."""
        tried = {key(point) for point in self.points()}
        for attempt in range(_ATTEMPTS):
            # In steps of count, so that another attempt takes no later point's place.
            point = suggest(index + attempt * count, self._known(rows))
            if key(point) not in tried:
                break
        return point

    def _known(self, rows: Rows) -> Known:
        losses = self.losses(rows)
        return [(point, losses[key(point)]) for point in self.points()]

    def seconds_left(self, rows: Rows) -> float:
        """Of what is known to be wanted, by what trials took, or are predicted to take."""
        each = fmean(self.seconds) if self.seconds else self.predicted
        return each * (self.unplanned + sum(t.hash not in rows for t in (*self.trials, *self.finals)))

    @property
    def total(self) -> int:
        """How many trials are known to be wanted."""
        return len(self.trials) + len(self.finals) + self.unplanned
