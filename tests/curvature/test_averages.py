"""Running averages: in a compact form or not they are the same, and they survive sizes that change, files, pieces."""

import io
import math

import pytest
import torch
from torch import nn

from kfbench.curvature.averages import FactorAverages
from kfbench.curvature.statistics import CapturedStatistics, join_statistics
from kfbench.layers.convolution_layer import ConvolutionLayer
from kfbench.layers.estimate import EXACT, Estimate
from kfbench.layers.moments import MomentOfRows
from kfbench.layers.sample_rows import SampleRows
from tests.properties import assert_close, equal

CONV = {"shifts": {"padding": 1}, "chunks": {"stride": 2}, "pixels": {"kernel_size": 1}}
ESTIMATES = {
    "exact": EXACT,
    "sua": Estimate(spatial="sua"),
    "groups": Estimate(groups=2),
    "reduce": Estimate(sharing="reduce"),
    "samples": Estimate(samples=2),
}


def _layer(which="shifts"):
    return ConvolutionLayer("c", nn.Conv2d(2, 3, **({"kernel_size": 3} | CONV[which])).double())


def _images(n=3, size=(6, 5)):
    return torch.randn(n, 2, *size, dtype=torch.float64)


def _moment(layer, x, estimate=EXACT):
    return layer.input_moment([x], True, estimate)


def _add(averages, layer, x, rows_only=False):
    moment = MomentOfRows(layer.input_rows(x)) if rows_only else _moment(layer, x)
    averages.add_moment("c", moment, len(x))


@pytest.mark.parametrize("which", CONV)
@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_every_form_averages_to_the_same(which, ema):
    layer, batches = _layer(which), [_images(n) for n in (3, 5, 2)]
    compact, plain = FactorAverages(ema), FactorAverages(ema)
    for x in batches:
        _add(compact, layer, x)
        _add(plain, layer, x, rows_only=True)
    assert bool(compact.means.forms) == (which == "shifts")
    assert_close(compact.means["c"], plain.means["c"], 1e-13)
    assert_close(compact.means.trace("c"), plain.means["c"].trace(), 1e-13)
    assert compact.means.width("c") == plain.means.width("c") == layer.d_in


@pytest.mark.parametrize("ema", [0.0, 0.7])
def test_images_of_another_size_are_averaged_all_the_same(ema):
    layer = _layer()
    compact, plain = FactorAverages(ema), FactorAverages(ema)
    for x in (_images(), _images(), _images(size=(4, 7)), _images(size=(4, 7)), _images()):
        _add(compact, layer, x)
        _add(plain, layer, x, rows_only=True)
        assert_close(compact.means["c"], plain.means["c"], 1e-13)


def test_newest_alone_reads_nothing_older():
    """Of another size too: what went before may not be finite."""
    layer, averages = _layer(), FactorAverages(0.0)
    _add(averages, layer, _images() * math.inf)
    new = _images(size=(4, 7))
    _add(averages, layer, new)
    rows = layer.input_rows(new).flatten(0, 1)
    assert_close(averages.means["c"], rows.T @ rows / len(new), 1e-13)
    assert averages.means.forms, "and it is compact again"


def test_a_batch_given_twice_over_is_the_same_batch():
    layer, x = _layer(), _images()
    once, twice = FactorAverages(0.5), FactorAverages(0.5)
    _add(once, layer, x)
    _add(twice, layer, torch.cat([x, x]))
    assert_close(twice.means["c"], once.means["c"], 1e-14)


@pytest.mark.parametrize("which", ESTIMATES)
def test_state_goes_through_a_file_bit_for_bit(which):
    layer, estimate = _layer(), ESTIMATES[which]
    averages, restored = FactorAverages(0.7, estimate), FactorAverages(0.7, estimate)
    for n in (3, 4):
        averages.add_moment("c", _moment(layer, _images(n), estimate), n)
    file = io.BytesIO()
    torch.save(averages.state_dict(), file)
    file.seek(0)
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(restored.means["c"], averages.means["c"])
    x = _images()
    for each in (averages, restored):
        each.add_moment("c", _moment(layer, x, estimate), 3)
    assert equal(restored.state_dict(), averages.state_dict())
    assert restored.means.forms == averages.means.forms
    inverses = [each.damped_inverses({"c": 0.1})[0]["c"] for each in (averages, restored)]
    rows = layer.input_rows(x).flatten(0, 1)
    assert torch.equal(inverses[0](rows), inverses[1](rows))


def test_state_of_before_there_were_compact_forms_holds_matrices():
    averages = FactorAverages(0.5)
    A = torch.eye(3, dtype=torch.float64)
    averages.load_state_dict({"means": {"a": A}, "weights": {"a": 0.5}})
    assert torch.equal(averages.means["a"], A)


@pytest.mark.parametrize("which", ESTIMATES)
def test_inverse_is_that_of_the_assembled_matrix(which):
    layer, averages = _layer(), FactorAverages(0.0, ESTIMATES[which])
    averages.add_moment("c", _moment(layer, _images(), ESTIMATES[which]), 3)
    M = averages.means["c"] + 0.3 * torch.eye(layer.d_in, dtype=torch.float64)
    rows = torch.randn(4, layer.d_in, dtype=torch.float64)
    inverses, retried = averages.damped_inverses({"c": 0.3})
    assert not retried
    assert_close(inverses["c"](rows), torch.linalg.solve(M, rows.T).T, 1e-12)


def _statistics(layer, x):
    rows = SampleRows.of(layer.input_rows(x))
    return {
        "c": CapturedStatistics(
            rows=rows,
            has_bias=True,
            moment=lambda ones, estimate: layer.input_moment([x], ones, estimate),
            raw=[x],
            vectors=0,
            output_gradients=None,
            output_moments=None,
        )
    }


@pytest.mark.parametrize("which", ESTIMATES)
@pytest.mark.parametrize("sizes", [(3, 2), (1, 1, 3), (5,)])
def test_micro_batches_are_one_batch(which, sizes):
    """But where each counts its first samples alone: then they are a batch of these."""
    layer, x, estimate = _layer(), _images(5), ESTIMATES[which]
    parts = x.split(list(sizes))
    counted = torch.cat([part[: estimate.samples] for part in parts])
    whole, cut = FactorAverages(0.5, Estimate(None, *_but_samples(estimate))), FactorAverages(0.5, estimate)
    whole.add_inputs(_statistics(layer, counted))
    cut.add_inputs(join_statistics([_statistics(layer, part) for part in parts]))
    assert_close(cut.means["c"], whole.means["c"], 1e-13)


def _but_samples(estimate):
    return estimate.sharing, estimate.spatial, estimate.groups


def test_what_is_forgotten_starts_anew():
    layer, averages = _layer(), FactorAverages(0.5)
    _add(averages, layer, _images())
    averages.forget(["c", "never met"])
    assert not averages.means and not averages.means.forms
    x = _images(size=(4, 7))
    _add(averages, layer, x)
    rows = layer.input_rows(x).flatten(0, 1)
    assert_close(averages.means["c"], rows.T @ rows / len(x), 1e-13)
