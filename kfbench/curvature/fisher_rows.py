"""The rows whose outer products make the Fisher, multiplied without ever being formed (Benzing 2022, App. I).

With K vectors backpropagated for each of N points, row (k, n) of U [K N, parameters] is the gradient
``u_kn = vec(sum_p g_knp a_np')`` over all layers, and ``F = 1/N U' U``. Everything that the natural
gradient needs follows from the factors a and g: ``U U'`` (its eq 22), ``U v`` (eq 21), ``U' w`` (eq 23).
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import LayerStatistics, Statistics
from kfbench.layers.plane import rows_from_state
from kfbench.layers.sample_rows import SampleRows

# Inner products are taken for so many elements at a time: it bounds memory, stays near the cache, and
# lets a symmetric matrix be multiplied out on one side of its diagonal only.
_CHUNK = 2**22

# The name of the one block of an F that is not block-diagonal; otherwise blocks are named by their layers.
WHOLE_NETWORK = "the whole network"


class LayerRows:
    """One layer's part of every row."""

    def __init__(self, inputs: Tensor | SampleRows, output_gradients: Float[Tensor, "K N P d_out"]) -> None:
        rows = inputs if isinstance(inputs, SampleRows) else SampleRows.of(inputs)
        self.rows, self.output_gradients = rows, output_gradients
        # Inputs are shared with the model, not copied: a change in place would be silent.
        self._version = None if rows.in_memory is None else rows.in_memory._version

    @property
    def inputs(self) -> Float[Tensor, "N P d_in"]:
        """Of a convolution all its patches, made anew at every look."""
        return self.rows.all()

    @property
    def shape(self) -> tuple[int, int]:
        """(d_out, d_in)."""
        return self.output_gradients.shape[3], self.rows.width

    def dot(self, v: LayerGradient) -> Float[Tensor, "K N"]:
        """``<u_kn, v>``: by the rows of v, or by v as a matrix where that is less work."""
        rows, g = self._unchanged(), self.output_gradients
        d_out, d_in = v.shape
        # Without rows, v is known as a matrix alone.
        if 0 < v.rows * (d_out + d_in) < d_out * d_in:
            products = (g @ v.output_gradients.T).mul_(rows.times(v.inputs))  # [K, N, P, rows of v]
            return products.sum(dim=(2, 3)) / v.samples
        return torch.einsum("knpo,npo->kn", g, rows.times(v.dense()))

    def weighted_sum(self, w: Float[Tensor, "K N"]) -> Float[Tensor, "d_out d_in"]:
        """``sum_kn w_kn u_kn``, as a matrix."""
        return self._unchanged().weighted_sum(self._weighted(w))

    def remainder(self, v: LayerGradient, w: Float[Tensor, "K N"], scale: float) -> Float[Tensor, "d_out d_in"]:
        """``scale (v - sum_kn w_kn u_kn)``."""
        rows, g = self._unchanged(), self._weighted(w * -scale)
        if rows.in_memory is None:
            return rows.weighted_sum(g).add_(v.dense(), alpha=scale)
        return v.plus(g.flatten(0, 1), rows.in_memory.flatten(0, 1), scale)

    def add_gram(self, total: Float[Tensor, "M M"]) -> None:
        """Add ``<u_kn, u_k'n'>`` to ``total``, rows in the order of ``dot`` flattened."""
        P, (d_out, d_in) = self.rows.positions, self.shape
        # Multiply-adds for two rows: by pairs of positions, or of their gradients as matrices.
        if P**2 * (d_out + d_in) <= d_out * d_in:
            self._add_gram_by_pairs(total)
        else:
            self._add_gram_by_gradients(total)

    def _add_gram_by_pairs(self, total: Tensor) -> None:
        """``sum_pp' (g_knp . g_k'n'p') (a_np . a_n'p')``, by blocks of points on and below the diagonal."""
        a, g = self.inputs, self.output_gradients
        K, N, P, _ = g.shape
        # A view, so that what is added reaches the caller's matrix.
        total = total.view(K, N, K, N)
        step = max(1, _CHUNK // (K * P * K * N * P))
        for start in range(0, N, step):
            end = min(start + step, N)
            g_products = g[:, start:end].flatten(0, 2) @ g[:, :end].flatten(0, 2).T
            a_products = a[start:end].flatten(0, 1) @ a[:end].flatten(0, 1).T
            shaped = g_products.view(K, end - start, P, K, end, P)
            block = shaped.mul_(a_products.view(end - start, P, 1, end, P)).sum(dim=(2, 5))
            total[:, start:end, :, :end] += block
            # Mirrored to above the diagonal, but for the block on it, which is whole already.
            total[:, :start, :, start:end] += block[..., :start].permute(2, 3, 0, 1)

    def _add_gram_by_gradients(self, total: Tensor) -> None:
        """Each point's gradient as a matrix, a few of its rows at a time: cheaper where P is large."""
        rows, g = self.rows, self.output_gradients
        step = max(1, _CHUNK // (len(total) * rows.width))
        for outputs in g.split(step, dim=3):
            numbers = len(g) * outputs.shape[3] * rows.width
            U = [torch.einsum("knpo,npi->knoi", outputs[:, part], a) for part, a in rows.parts(numbers)]
            flat = torch.cat(U, dim=1).flatten(0, 1).flatten(1)
            total += flat @ flat.T

    def _weighted(self, w: Tensor) -> Float[Tensor, "N P d_out"]:
        """``sum_k w_kn g_knp``: the rows that meet the inputs in ``U' w``."""
        g = self.output_gradients
        # w comes from a solve in float64, rows keep the model's precision.
        return torch.einsum("kn,knpo->npo", w.to(g.dtype), g)

    def _unchanged(self) -> SampleRows:
        # What is made when asked for says so itself.
        if self.rows.in_memory is not None and self.rows.in_memory._version != self._version:
            raise RuntimeError(
                "the inputs of a layer were changed in place while its rows were still in use; "
                "give the model a tensor of its own at every update"
            )
        return self.rows


class FisherRows:
    """All rows of one batch, and the Fisher that they make: of the whole network, or block-diagonal.

    Vectors v are mappings from layer to gradient; what is indexed by rows, M = K N of them in
    float64, has one entry for each diagonal block of F.
    """

    def __init__(self, layers: Mapping[str, LayerRows], block_diagonal: bool = False) -> None:
        self.layers, names = dict(layers), list(layers)
        self.blocks = {name: [name] for name in names} if block_diagonal else {WHOLE_NETWORK: names}

    @classmethod
    def of(cls, statistics: Statistics, block_diagonal: bool) -> "FisherRows":
        """From what was captured of one batch."""
        rows = {}
        for name, layer in statistics.items():
            assert layer.output_gradients is not None, "the method's fisher is 'none', so nothing was backpropagated"
            rows[name] = LayerRows(layer.sample_rows(), layer.output_gradients)
        return cls(rows, block_diagonal)

    def part(self, block: str) -> "FisherRows":
        """One diagonal block alone."""
        return FisherRows({name: self.layers[name] for name in self.blocks[block]})

    @property
    def points(self) -> int:
        """N, which F is a mean over."""
        return self._any().output_gradients.shape[1]

    @property
    def count(self) -> int:
        """M = K N, the number of rows."""
        return self._any().output_gradients.shape[0] * self.points

    def _any(self) -> LayerRows:
        # N and K are the same in all layers.
        return next(iter(self.layers.values()))

    def grams(self) -> dict[str, Float[Tensor, "M M"]]:
        """``U U'`` of every block, in float64: products in the precision of the rows, their sum is not."""
        grams = {}
        for block, names in self.blocks.items():
            grams[block] = self._any().output_gradients.new_zeros(self.count, self.count, dtype=torch.float64)
            for name in names:
                self.layers[name].add_gram(grams[block])
        return grams

    def times(self, v: Mapping[str, LayerGradient]) -> dict[str, Float[Tensor, "M"]]:
        """``U v`` of every block."""
        # The system that they are the right-hand side of is solved in float64.
        dots = {name: layer.dot(v[name]).flatten().double() for name, layer in self.layers.items()}
        return {block: torch.stack([dots[name] for name in names]).sum(0) for block, names in self.blocks.items()}

    def weighted_sum(self, w: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``U' w``: a matrix for every layer."""
        return {name: self.layers[name].weighted_sum(w_kn) for name, w_kn in self._by_layer(w).items()}

    def remainder(self, v: Mapping[str, LayerGradient], w: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
        """``scale (v - U' w)``: a matrix for every layer."""
        return {name: self.layers[name].remainder(v[name], w_kn, scale) for name, w_kn in self._by_layer(w).items()}

    def _by_layer(self, w: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: w[block].view(-1, self.points) for block, names in self.blocks.items() for name in names}

    def fisher_product(self, v: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``F v`` for matrices v, one a layer."""
        w = self.times(as_gradients(v))
        return self.weighted_sum({block: u / self.points for block, u in w.items()})

    def quadratic_form(self, v: Mapping[str, Tensor]) -> Float[Tensor, ""]:
        """``v' F v = |U v|^2 / N`` for matrices v, one a layer."""
        return torch.stack([u.square().sum() for u in self.times(as_gradients(v)).values()]).sum() / self.points


class NewestRows:
    """The rows of the newest batch alone: taken in by ``observe``, in force from the next ``refresh`` on."""

    def __init__(self, block_diagonal: bool) -> None:
        self.block_diagonal = block_diagonal
        self._observed: Statistics | None = None
        self._statistics: Statistics = {}
        self._rows: FisherRows | None = None

    @property
    def rows(self) -> "FisherRows":
        """Those of the last refresh."""
        if self._rows is None:
            raise RuntimeError("the method has no Fisher yet: observe a batch and refresh first")
        return self._rows

    def observe(self, statistics: Statistics, points: int | None = None) -> None:
        """Keep the rows of the first ``points``, or all."""
        kept = {}
        for name, layer in statistics.items():
            kept[name] = layer.first(points)
        self._observed = kept

    def refresh(self) -> "FisherRows":
        """The newest rows, which are in force from now on."""
        # A refresh without a newer batch keeps the rows it has.
        if self._observed is not None:
            self._put(self._observed)
            self._observed = None
        return self.rows

    def clear(self) -> None:
        """As before the first observation."""
        self._observed = None
        self._put({})

    def _put(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._rows = FisherRows.of(statistics, self.block_diagonal) if statistics else None

    def state_dict(self) -> dict[str, Any]:
        """The factors of both generations of rows."""
        return {"observed": _pack(self._observed or {}), "rows": _pack(self._statistics)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore, bit for bit."""
        self._observed = _unpack(state["observed"]) or None
        self._put(_unpack(state["rows"]))


def as_gradients(v: Mapping[str, Tensor]) -> dict[str, LayerGradient]:
    """Matrices, one a layer, as gradients that have no rows."""
    return {name: LayerGradient.from_dense(matrix, 1) for name, matrix in v.items()}


def _pack(statistics: Statistics) -> dict[str, list[Any]]:
    return {name: [layer.sample_rows().state_dict(), layer.output_gradients] for name, layer in statistics.items()}


def _unpack(state: Mapping[str, Any]) -> dict[str, LayerStatistics]:
    # In states of before there were rows that are made when asked for they are tensors.
    return {name: LayerStatistics(rows_from_state(rows), g) for name, (rows, g) in state.items()}
