"""Second moments: however a batch is cut up, and in whatever form it is kept, the matrix is the same."""

import math

import pytest
import torch
from torch import nn

from kfbench.layers import sample_rows
from kfbench.layers.convolution_layer import ConvolutionLayer
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.moments import (
    JoinedMoment,
    MeasuredMoment,
    MomentOfChunks,
    MomentOfInputs,
    MomentOfRows,
)
from kfbench.layers.shifts import Shifts
from tests.properties import assert_close

SHIFTS = Shifts.of(2, (5, 4), (3, 3), (1, 1), (1, 1), True)


def _images(n=3):
    return torch.randn(n, 2, 5, 4, dtype=torch.float64)


def _matrix(moment, kept):
    return kept if moment.form is None else moment.form.assemble(kept)


def _rows(x):
    conv = nn.Conv2d(2, 3, 3, padding=1).double()
    return ConvolutionLayer("", conv).input_rows(x).flatten(0, 1)


WHICH = ["rows", "chunks", "images", "two calls", "measured", "joined", "joined unlike", "joined unlike, dense first"]


def _moments():
    """Name -> (moment, its matrix)."""
    a, b = _images(), _images(2)
    rows, more = _rows(a), _rows(b)
    A, B, C = (each.T @ each for each in (rows, more, _rows(a.flip(2))))
    images = [MomentOfInputs([x], SHIFTS) for x in (a, b)]
    return {
        "rows": (MomentOfRows(rows), A),
        "chunks": (MomentOfChunks(lambda: iter(rows.split(7))), A),
        "images": (images[0], A),
        "two calls": (MomentOfInputs([a, a.flip(2)], SHIFTS), A + C),
        "measured": (MeasuredMoment(A.clone()), A),
        "joined": (JoinedMoment.of(images), A + B),
        "joined unlike": (JoinedMoment.of([images[0], MomentOfRows(more)]), A + B),
        "joined unlike, dense first": (JoinedMoment.of([MomentOfRows(more), images[0]]), A + B),
    }


@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("keep", [0.0, 0.4, 1.0])
def test_added_to_what_is_kept(which, keep):
    moment, matrix = _moments()[which]
    kept = torch.zeros_like(moment.add_to(None, 0.0, 1.0)).normal_()
    if moment.form is None:
        kept = kept + kept.T
    before = _matrix(moment, kept.clone())
    got = moment.add_to(kept, keep, 0.7)
    assert got.data_ptr() == kept.data_ptr(), "in place, where there is something kept"
    assert_close(_matrix(moment, got), keep * before + 0.7 * matrix, 1e-13)


@pytest.mark.parametrize("which", WHICH)
def test_added_to_nothing(which):
    moment, matrix = _moments()[which]
    assert_close(_matrix(moment, moment.add_to(None, 0.3, 0.5)), 0.5 * matrix, 1e-13)


@pytest.mark.parametrize("which", WHICH)
def test_what_counts_for_nothing_may_be_anything(which):
    moment, matrix = _moments()[which]
    kept = torch.full_like(moment.add_to(None, 0.0, 1.0), math.nan)
    assert_close(_matrix(moment, moment.add_to(kept, 0.0, 1.0)), matrix, 1e-13)


def test_alike_moments_stay_compact_and_unlike_ones_do_not():
    moments = _moments()
    assert moments["joined"][0].form == SHIFTS
    assert moments["joined unlike"][0].form is None


@pytest.mark.parametrize("conv", [{"padding": 1}, {"stride": 2, "padding": 1}, {"kernel_size": 1}], ids=str)
@pytest.mark.parametrize(("bias", "ones"), [(True, True), (False, True), (False, False)])
def test_moment_of_a_convolution_whatever_the_chunk(conv, ones, bias, monkeypatch):
    """By shifts, by patches of a few samples, by pixels: always the product of its rows."""
    layer = ConvolutionLayer("", nn.Conv2d(2, 3, **({"kernel_size": 3} | conv), bias=bias).double())
    x, y = _images(7), _images(7)
    rows = torch.cat([layer.rows_with(ones, images).flatten(0, 1) for images in (x, y)])
    monkeypatch.setattr("kfbench.layers.sample_rows._CHUNK", 50)
    cut = layer.input_moment([x, y], ones, EXACT)
    monkeypatch.undo()
    whole = layer.input_moment([x, y], ones, EXACT)
    kept = [_matrix(moment, moment.add_to(None, 0.0, 1.0)) for moment in (cut, whole)]
    assert_close(kept[0], kept[1], 1e-14)
    assert_close(kept[0], rows.T @ rows, 1e-13)


def test_calls_on_images_of_two_sizes_are_one_moment():
    layer = ConvolutionLayer("", nn.Conv2d(2, 3, 3, padding=1).double())
    x, y = _images(), torch.randn(3, 2, 3, 6, dtype=torch.float64)
    moment = layer.input_moment([x, y], True, EXACT)
    rows = torch.cat([layer.input_rows(images).flatten(0, 1) for images in (x, y)])
    assert_close(_matrix(moment, moment.add_to(None, 0.0, 1.0)), rows.T @ rows, 1e-13)


def test_rows_in_parts_are_all_rows(monkeypatch):
    rows = torch.randn(7, 4, 3)
    monkeypatch.setattr(sample_rows, "_CHUNK", 30)
    parts = list(sample_rows.SampleRows.of(rows).parts(2))
    assert [part.stop - part.start for part, _ in parts] == [2, 2, 2, 1]
    assert torch.equal(torch.cat([found for _, found in parts]), rows)


@pytest.mark.parametrize("estimate", [Estimate(spatial="sua"), Estimate(groups=2), Estimate(sharing="reduce")], ids=str)
def test_calls_on_images_of_two_sizes_are_one_moment_of_any_estimate(estimate):
    layer = ConvolutionLayer("", nn.Conv2d(2, 3, 3, padding=1).double())
    x, y = _images(), torch.randn(3, 2, 3, 6, dtype=torch.float64)
    both = layer.input_moment([x, y], True, estimate)
    got = _matrix(both, both.add_to(None, 0.0, 1.0))
    if estimate.sharing == "reduce":
        sums = layer.input_rows(x).sum(1) + layer.input_rows(y).sum(1)
        wanted = sums.T @ sums
    else:
        parts = [layer.input_moment([each], True, estimate) for each in (x, y)]
        wanted = sum(_matrix(part, part.add_to(None, 0.0, 1.0)) for part in parts)
    assert_close(got, wanted, 1e-13)
