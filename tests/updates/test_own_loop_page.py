"""What docs/own-loop.md says beyond tests/updates/test_own_loop.py, sentence by sentence."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from kfbench.updates.preconditioning import Preconditioning
from tests.properties import assert_close
from tests.updates.test_own_loop import _batch, _flat, _make, _model, _update


def test_two_backwards_do_not_add_up_and_accumulate_does():
    x, y = _batch()
    ended = []
    for parts in ("whole", "accumulate", "backward"):
        model = _model()
        foof = _make(model, "foof", T=100)
        foof.warm_up([(x, y)])
        for part in (slice(None),) if parts == "whole" else (slice(0, 4), slice(4, 8)):
            with foof.capture():
                output = model(x[part])
            losses = cross_entropy(output, y[part], reduction="none")
            foof.backward(losses, output) if parts == "backward" else foof.accumulate(losses, output)
        if parts != "backward":
            foof.finish()
        ended.append(_flat(model))
    assert_close(ended[0], ended[1], 1e-10)
    assert (ended[2] - ended[0]).norm() > 0.1 * ended[0].norm()


def test_ignored_samples_count_in_A_and_are_zero_rows_in_B():
    x, y = _batch()
    y[4:] = -100
    model = _model()
    kfac = _make(model, "kfac", ema=0.0, fisher="empirical")
    with kfac.capture():
        output = model(x)
    kfac.backward(cross_entropy(output, y, reduction="none", ignore_index=-100), output)
    with_ones = torch.cat([x, torch.ones(8, 1).double()], 1)
    assert_close(kfac.method.A.means["0"], with_ones.T @ with_ones / 8, 1e-12)
    p = output.detach().softmax(-1)
    g = torch.where(torch.arange(8)[:, None] < 4, p - nn.functional.one_hot(y.clamp(min=0), 3), 0.0)
    assert_close(kfac.method.B.means["2"], g.T @ g / 8, 1e-12)


def test_weights_inside_a_loss_are_squared_in_the_empirical_fisher_alone():
    x, y = _batch()
    B = {}
    for fisher in ("empirical", "full"):
        for weight in (1.0, 3.0):
            model = _model()
            kfac = _make(model, "kfac", ema=0.0, fisher=fisher)
            _update(kfac, model, x, y, losses=lambda loss, weight=weight: weight * loss)
            B[fisher, weight] = kfac.method.B.means["2"]
    assert_close(B["empirical", 3.0], 9 * B["empirical", 1.0], 1e-12)
    assert_close(B["full", 3.0], B["full", 1.0], 1e-12)


def test_hooks_on_parameters():
    model, called = _model(), []
    model[0].weight.register_post_accumulate_grad_hook(called.append)
    model[2].weight.register_hook(lambda grad: 2 * grad)
    foof = _make(model, "foof")
    with pytest.warns(UserWarning, match=r"2 \(a hook changes its gradient\)"):
        _update(foof, model, *_batch())
    assert called == [] and list(foof.layers) == ["0"]


class _Checkpointed(nn.Module):
    def __init__(self, use_reentrant):
        super().__init__()
        self.a, self.b, self.use_reentrant = nn.Linear(4, 6), nn.Linear(6, 3), use_reentrant

    def forward(self, x):
        return self.b(checkpoint(lambda h: self.a(h).tanh(), x, use_reentrant=self.use_reentrant))


def test_checkpointing_with_a_graph_is_served():
    model, (x, y) = _Checkpointed(False).double(), _batch()
    foof = _make(model, "foof")
    _update(foof, model, x, y)
    assert list(foof.layers) == ["a", "b"] and not foof.left_out


def test_reentrant_checkpointing_is_named_and_gives_no_gradient():
    """torch's own autograd.grad refuses it; the graph of what is checkpointed is hidden."""
    model, (x, y) = _Checkpointed(True).double(), _batch()
    foof = _make(model, "foof")
    with pytest.warns(UserWarning, match=r"a \(its forward ran without a graph\)"):
        _update(foof, model, x.requires_grad_(), y)
    assert list(foof.layers) == ["b"] and model.a.weight.grad is None


def test_a_frozen_part_under_no_grad_keeps_no_gradient():
    """Called without a graph: named, and its parameters are left to the caller."""
    model = _model()
    foof = _make(model, "foof")
    x, y = _batch()
    with foof.capture():
        with torch.no_grad():
            h = model[1](model[0](x))
        output = model[2](h)
    with pytest.warns(UserWarning, match=r"0 \(its forward ran without a graph\)"):
        foof.backward(cross_entropy(output, y, reduction="none"), output)
    assert model[0].weight.grad is None and model[2].weight.grad is not None


def test_a_compiled_model_that_was_warm_before_is_an_error():
    torch._dynamo.reset()
    model = torch.compile(_model(), backend="eager")
    x, y = _batch()
    model(x)  # a look at the untrained loss, before the first capture
    foof = Preconditioning(model, "foof", damping=0.1)
    with foof.capture():
        output = model(x)
    with pytest.raises(ValueError, match=r"no layer is left to precondition.*torch\.compile"):
        foof.backward(cross_entropy(output, y, reduction="none"), output)
