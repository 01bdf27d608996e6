"""Running averages of the factors of all layers, and damped inverses of those that are kept in blocks."""

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.counts import cholesky, eigh
from kfbench.curvature.eigenbasis import KroneckerEigenbasis
from kfbench.curvature.linalg import DampedInverse, DiagonalInverse, damped_inverses, eigenbasis
from kfbench.curvature.statistics import Statistics
from kfbench.layers.embedding_layer import Counts
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.moments import Form, Moment, MomentOfRows
from kfbench.layers.outer_products import from_lower_half, lower_half
from kfbench.layers.shifts import Shifts
from kfbench.layers.structured import ChannelGroups, TapMean

_FORMS: dict[str, Callable[..., Form]] = {Shifts.kind: Shifts.of} | {
    form.kind: form for form in (TapMean, ChannelGroups, Counts)
}


class BlockInverse:
    """``(M + lambda I)^-1`` of a matrix that is kept in blocks, acting on rows."""

    def __init__(self, form: Form, blocks: list[DampedInverse]) -> None:
        self.form, self.blocks = form, blocks

    def __call__(self, rows: Float[Tensor, "R d"]) -> Float[Tensor, "R d"]:
        """``rows (M + lambda I)^-1``."""
        return self.form.on_blocks(rows, self.blocks)

    def state_dict(self) -> dict[str, Any]:
        """Those of the blocks, and how they make the matrix."""
        return {"form": self.form.describe(), "blocks": [block.state_dict() for block in self.blocks]}


# What damps and inverts a mean, by its structure.
Inverse = DampedInverse | DiagonalInverse | BlockInverse


@runtime_checkable  # tests check annotations at run time
class Placement(Protocol):
    """Which of several processes does which part of a refresh, so that all have the results."""

    def divided(
        self,
        costs: Mapping[str, float],
        sizes: Mapping[str, list[int]],
        work: Callable[[list[str]], Mapping[str, list[Tensor]]],
        like: Tensor,
    ) -> Mapping[str, list[Tensor]]:
        """Flat tensors of these ``sizes`` for each name, of the multiply-adds ``costs``; ``work`` makes those of some.

        They have the precision and the device of ``like``.
        """


def inverse_from_state(state: dict[str, Any]) -> Inverse:
    """Restore any, bit for bit."""
    if "diagonal" in state:
        return DiagonalInverse(state["diagonal"])
    if "blocks" not in state:
        return DampedInverse.from_state(state)
    return BlockInverse(form_of(state["form"]), [DampedInverse.from_state(block) for block in state["blocks"]])


def form_of(values: list[Any]) -> Form:
    """As ``describe`` told it; lists, which a file may have made of tuples, are tuples again."""
    kind, *fields = values
    return _FORMS[str(kind)](*(tuple(value) if isinstance(value, list) else value for value in fields))


class Means(MutableMapping[str, Tensor]):
    """Layer -> matrix [d, d]; one that is kept in a compact form is assembled whenever it is asked for."""

    def __init__(self) -> None:
        self.kept: dict[str, Tensor] = {}
        self.forms: dict[str, Form] = {}

    def __getitem__(self, name: str) -> Tensor:
        form = self.forms.get(name)
        return self.kept[name] if form is None else form.assemble(self.kept[name])

    def __setitem__(self, name: str, matrix: Tensor) -> None:
        self.forms.pop(name, None)
        self.kept[name] = matrix

    def __delitem__(self, name: str) -> None:
        self.forms.pop(name, None)
        del self.kept[name]

    def __contains__(self, name: object) -> bool:
        return name in self.kept  # the inherited one would assemble it

    def __iter__(self) -> Iterator[str]:
        return iter(self.kept)

    def __len__(self) -> int:
        return len(self.kept)

    def structure(self, name: str) -> Form | None:
        """The form of a matrix that is not one block; None of any other, however it is kept."""
        form = self.forms.get(name)
        return None if form is None or form.input_blocks == ((form.d_in, 1),) else form

    def trace(self, name: str) -> Float[Tensor, ""]:
        """``tr``, without assembling."""
        form = self.forms.get(name)
        return self.kept[name].trace() if form is None else form.trace(self.kept[name])

    def diagonal(self, name: str) -> Float[Tensor, "d"] | None:
        """Of a matrix that is diagonal by its structure."""
        form = self.forms.get(name)
        return None if form is None else form.diagonal(self.kept[name])

    def width(self, name: str) -> int:
        """d."""
        form = self.forms.get(name)
        return len(self.kept[name]) if form is None else form.d_in


class FactorAverages:
    """Running averages of one kind of factor, one matrix a layer.

    ``x <- m x + (1 - m) new``, divided by its accumulated weight, so that the first observation
    counts fully (FOOF paper, appendix D.1). What is stored is that normalised mean. m = 0 keeps
    only the newest batch.
    """

    def __init__(self, ema: float, estimate: Estimate = EXACT) -> None:
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be in [0, 1), got {ema}")
        self.ema, self.estimate = ema, estimate
        self.means = Means()
        self._weights: dict[str, float] = {}
        self._placement: Placement | None = None

    def place(self, placement: Placement) -> None:
        """From now on what is cubic is divided over processes, all of which keep the same averages."""
        self._placement = placement

    def add(self, name: str, rows: Float[Tensor, "... d"], divisor: int) -> None:
        """Average in ``sum of row row' / divisor``."""
        self.add_moment(name, MomentOfRows(rows), divisor)

    def add_moment(self, name: str, moment: Moment, divisor: int) -> None:
        """Average in ``moment / divisor``."""
        old_weight = self.ema * self._weights.get(name, 0.0)
        weight = old_weight + 1 - self.ema
        keep, scale = old_weight / weight, (1 - self.ema) / weight / divisor
        kept, form = self.means.kept.get(name), self.means.forms.get(name)
        if form != moment.form and keep == 0:  # nothing older counts, in whatever form it is
            self.forget([name])
            kept = None
        if kept is None or form == moment.form:
            self.means.kept[name] = moment.add_to(kept, keep, scale)
            if moment.form is not None:
                self.means.forms[name] = moment.form
        else:  # images of another size: from now on the matrix itself is averaged
            new = moment.add_to(None, 0.0, scale)
            new = new if moment.form is None else moment.form.assemble(new)
            self.means[name] = self.means[name].mul_(keep).add_(new)
        self._weights[name] = weight

    def add_inputs(self, statistics: Statistics) -> None:
        """Average in the input factor A of every layer."""
        for name, layer in statistics.items():
            by_row = self.estimate.sharing == "reduce"
            counted = layer.counted_rows(self.estimate) if by_row else layer.counted(self.estimate)
            self.add_moment(name, layer.input_moment(estimate=self.estimate), counted)

    def add_output_gradients(self, statistics: Statistics) -> None:
        """Average in the output factor B of every layer."""
        for name, layer in statistics.items():
            # N P, without K: over vectors it is a sum.
            self.add_moment(name, layer.output_moment(self.estimate), layer.counted_rows(self.estimate))

    def damped_inverses(self, damping: Mapping[str, Tensor | float]) -> tuple[dict[str, Inverse], list[str]]:
        """``(M + lambda I)^-1`` of every mean, and what needed more damping; see ``linalg.damped_inverses``."""
        blocks = _Blocks(self.means)
        own = {block: damping[name] for name, names in blocks.of.items() for block in names}
        inverses, retried = self._damped_inverses(blocks, own)
        whole: dict[str, Inverse] = {}
        for name in self.means:
            diagonal, form = self.means.diagonal(name), self.means.structure(name)
            if diagonal is not None:
                whole[name] = DiagonalInverse.of(diagonal, damping[name])
                continue
            parts = [inverses[block] for block in blocks.of[name]]
            whole[name] = parts[0] if form is None else BlockInverse(form, parts)
        return whole, retried

    def _damped_inverses(
        self, blocks: "_Blocks", damping: Mapping[str, Tensor | float]
    ) -> tuple[dict[str, DampedInverse], list[str]]:
        placement, like = self._placement, next(iter(self.means.kept.values()), None)
        if placement is None or like is None:
            return damped_inverses(blocks, damping)

        def work(names: list[str]) -> dict[str, list[Tensor]]:
            made, retried = damped_inverses({block: blocks[block] for block in names}, damping)
            # What stands above the diagonal of a Cholesky factor is never read.
            return {n: [lower_half(made[n].factor), like.new_full((1,), float(n in retried))] for n in names}

        widths = {block: blocks.width(block) for block in blocks}
        costs = {block: cholesky(d) for block, d in widths.items()}
        found = placement.divided(costs, {block: [d * (d + 1) // 2, 1] for block, d in widths.items()}, work, like)
        flags = torch.cat([like.new_empty(0), *(flag for _, flag in found.values())]).tolist()
        inverses = {block: DampedInverse(from_lower_half(half, symmetric=False)) for block, (half, _) in found.items()}
        return inverses, [block for block, flag in zip(found, flags, strict=True) if flag]

    def eigenbasis(self, name: str) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
        """Eigenvalues and eigenvectors of one mean: of a structured one block by block, in its structure.

        In the whole matrix each eigenvalue of SUA's ``C (x) I`` is there for every tap, and any basis of these as good.
        """
        diagonal, form = self.means.diagonal(name), self.means.structure(name)
        if diagonal is not None:  # its own basis, which no rounding turns
            return diagonal.clone(), torch.eye(len(diagonal), dtype=diagonal.dtype, device=diagonal.device)
        if form is None:
            return eigenbasis(self.means[name])
        kept = self.means.kept[name]
        parts = [eigenbasis(form.block(kept, index)) for index in range(form.blocks)]
        values, vectors = ([torch.diag(s).flatten() for s, _ in parts], [U.flatten() for _, U in parts])
        return form.assemble(torch.cat(values)).diagonal().clone(), form.assemble(torch.cat(vectors))

    def forget(self, names: Collection[str]) -> None:
        """These layers are others now: their next observation counts fully."""
        for name in names:
            if name in self.means:
                del self.means[name]  # pop would assemble it first
            self._weights.pop(name, None)

    def state_dict(self) -> dict[str, Any]:
        """Means, compact where they are kept so, and their accumulated weights."""
        forms = {name: form.describe() for name, form in self.means.forms.items()}
        return {"means": self.means.kept, "weights": self._weights, "forms": forms}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self.means.kept, self._weights = dict(state["means"]), dict(state["weights"])
        # States of before there were compact ones hold matrices alone.
        self.means.forms = {name: form_of(values) for name, values in state.get("forms", {}).items()}


def joint_eigenbases(B: FactorAverages, A: FactorAverages) -> dict[str, KroneckerEigenbasis]:
    """Of ``B (x) A`` of every layer: everything cubic is here."""
    placement, like = A._placement, next(iter(A.means.kept.values()), None)
    if placement is None or like is None:
        return {name: KroneckerEigenbasis.joined(B.eigenbasis(name), A.eigenbasis(name)) for name in A.means}
    of = {f"{side} of {name}": (factor, name) for name in A.means for side, factor in (("B", B), ("A", A))}
    dense = {key: at for key, at in of.items() if at[0].means.diagonal(at[1]) is None}
    widths = {key: factor.means.width(name) for key, (factor, name) in dense.items()}

    def work(keys: list[str]) -> dict[str, list[Tensor]]:
        found = {key: of[key][0].eigenbasis(of[key][1]) for key in keys}
        return {key: [values, vectors.flatten()] for key, (values, vectors) in found.items()}

    costs = {key: eigh(d) for key, d in widths.items()}
    found = placement.divided(costs, {key: [d, d * d] for key, d in widths.items()}, work, like)
    whole = {key: factor.eigenbasis(name) for key, (factor, name) in of.items() if key not in dense}
    whole |= {key: (values, vectors.view(len(values), -1)) for key, (values, vectors) in found.items()}
    return {name: KroneckerEigenbasis.joined(whole[f"B of {name}"], whole[f"A of {name}"]) for name in A.means}


class _Blocks(Mapping[str, Tensor]):
    """Every block of every mean that is more than a diagonal, by its name in a message; assembled when asked for."""

    def __init__(self, means: Means) -> None:
        self._means = means
        self.of = {name: self._names(name) for name in means if means.diagonal(name) is None}
        self._places = {block: (name, i) for name, blocks in self.of.items() for i, block in enumerate(blocks)}

    def _names(self, name: str) -> list[str]:
        form = self._means.forms.get(name)
        if form is None or form.blocks == 1:
            return [name]
        return [f"{name}, block {i}" for i in range(form.blocks)]

    def __getitem__(self, block: str) -> Tensor:
        name, index = self._places[block]
        form = self._means.forms.get(name)
        return self._means.kept[name] if form is None else form.block(self._means.kept[name], index)

    def width(self, block: str) -> int:
        """d, without assembling."""
        name, index = self._places[block]
        form = self._means.forms.get(name)
        return self._means.width(name) if form is None else form.input_blocks[index][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
