"""The input factor from shifted images against patches and against loops, over every geometry."""

import itertools

import pytest
import torch
from torch import nn
from torch.nn.functional import unfold

from kfbench.curvature.averages import form_of
from kfbench.layers import shifts as shifting
from kfbench.layers.shifts import Shifts
from tests import dense
from tests.properties import assert_close

KERNELS = list(itertools.product(range(1, 6), range(1, 6)))
WAYS = {"products": 1, "weight-gradient": 10**9}


def _images(shifts, n=2):
    return torch.randn(n, shifts.channels, *shifts.size, dtype=torch.float64)


def _by_unfold(shifts, x):
    rows = unfold(x, shifts.kernel, shifts.dilation, shifts.padding).transpose(1, 2).flatten(0, 1)
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if shifts.ones else rows
    return rows.T @ rows


def _geometries(kernel):
    """Paddings none, half, more than the kernel reaches; dilated or not; images that some kernels reach beyond."""
    half, much = tuple(k // 2 for k in kernel), (2 * kernel[0], 3)
    for padding, dilation, size in itertools.product([(0, 0), half, much], [(1, 1), (1, 2), (3, 1)], [(7, 6), (2, 3)]):
        axes = zip(size, padding, dilation, kernel, strict=True)
        if all(length + 2 * p - d * (k - 1) > 0 for length, p, d, k in axes):
            yield Shifts.of(2, size, kernel, padding, dilation, sum(padding) % 2 == 0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{k[0]}x{k[1]}")
def test_factor_by_shifts_is_the_one_by_unfold(kernel, way, monkeypatch):
    monkeypatch.setattr(shifting, "_PRODUCTS_FROM", WAYS[way])
    geometries = list(_geometries(kernel))
    assert len(geometries) >= 3
    for shifts in geometries:
        x = _images(shifts)
        kept = shifts.measure(x)
        A = _by_unfold(shifts, x)
        assert kept.shape == (shifts.length,)
        # Relative to the images: where every tap reads padding alone, A is zero and what is left is rounding.
        scale = x.square().sum()
        assert (shifts.assemble(kept) - A).norm() < 1e-13 * scale, shifts
        assert (shifts.trace(kept) - A.trace()).abs() < 1e-13 * scale, shifts


@pytest.mark.parametrize(
    ("kernel", "padding", "dilation", "size"),
    [
        ((3, 3), (1, 1), (1, 1), (5, 4)),
        ((2, 3), (2, 0), (1, 1), (3, 5)),  # padding beyond the kernel's reach: positions that read nothing
        ((4, 1), (1, 1), (2, 3), (6, 2)),
        ((5, 5), (2, 2), (1, 1), (2, 2)),  # no position has the kernel inside the image
    ],
)
def test_factor_by_shifts_is_the_one_by_loops(kernel, padding, dilation, size):
    conv = nn.Conv2d(2, 1, kernel, padding=padding, dilation=dilation).double()
    shifts = Shifts.of(2, size, kernel, padding, dilation, True)
    x = _images(shifts)
    A = torch.zeros(shifts.d_in, shifts.d_in, dtype=torch.float64)
    for a in (a for image in x for a in dense.Rows(conv, conv)._positions(image)):
        A += torch.outer(a, a)
    assert_close(shifts.assemble(shifts.measure(x)), A, 1e-13)


def test_column_of_ones_holds_sums_and_the_number_of_positions():
    shifts = Shifts.of(3, (5, 4), (3, 2), (1, 1), (1, 1), True)
    x = _images(shifts, 4)
    A = shifts.assemble(shifts.measure(x))
    patches = unfold(x, shifts.kernel, shifts.dilation, shifts.padding)
    assert_close(A[-1, :-1], patches.sum((0, 2)), 1e-13)
    assert torch.equal(A[-1], A[:, -1])
    assert A[-1, -1] == 4 * shifts.positions


@pytest.mark.parametrize("positions", [1, 40, 60])
def test_number_of_samples_a_call_changes_nothing(positions, monkeypatch):
    shifts = Shifts.of(3, (5, 4), (3, 3), (1, 1), (1, 1), True)
    x = _images(shifts, 7)
    whole = shifts.measure(x)
    monkeypatch.setattr(shifting, "_POSITIONS_PER_CALL", positions)
    assert_close(shifts.measure(x), whole, 1e-14)


def test_a_batch_given_twice_over_doubles_what_is_kept():
    shifts = Shifts.of(2, (5, 4), (3, 3), (1, 1), (1, 1), True)
    x = _images(shifts, 3)
    assert_close(shifts.measure(torch.cat([x, x])) / 2, shifts.measure(x), 1e-14)


def test_what_is_kept_is_linear_in_the_products():
    """So that averages of it are averages of factors."""
    shifts = Shifts.of(2, (5, 4), (3, 3), (1, 1), (1, 1), True)
    x, y = _images(shifts, 3), _images(shifts, 2)
    mixed = 0.7 * shifts.measure(x) + 0.3 * shifts.measure(y)
    assert_close(shifts.assemble(mixed), 0.7 * _by_unfold(shifts, x) + 0.3 * _by_unfold(shifts, y), 1e-14)


@pytest.mark.parametrize("ones", [False, True])
def test_plain_values_make_it_again(ones):
    shifts = Shifts.of(2, (5, 4), (3, 2), (1, 0), (1, 2), ones)
    kind, *fields = shifts.describe()
    assert form_of([kind, *(list(f) if isinstance(f, tuple) else f for f in fields)]) == shifts


def test_usual_kernel_needs_few_products():
    """3x3 with padding 1: 15 products of the image, 16 strips (formulas for convolutions, section 3)."""
    shifts = Shifts.of(4, (8, 8), (3, 3), (1, 1), (1, 1), False)
    strips = len(shifts.strips)
    assert strips == 16
    assert shifts.length == (15 + strips) * 16


@pytest.mark.parametrize(("way", "tolerance"), [("weight-gradient", 1e-6), ("products", 1e-5)])
def test_float32_keeps_its_digits_over_many_positions(way, tolerance, monkeypatch):
    """In one call the library would add 102,400 positions in order, and lose one digit more (of 64 channels two)."""
    monkeypatch.setattr(shifting, "_PRODUCTS_FROM", WAYS[way])
    shifts = Shifts.of(4, (32, 32), (3, 3), (1, 1), (1, 1), True)
    x = torch.randn(100, 4, 32, 32).relu()
    A = _by_unfold(shifts, x.double())
    assert_close(shifts.assemble(shifts.measure(x)).double(), A, tolerance)
