"""The transformer: what each logit depends on, attention from its definition, and everything that goes through it."""

import pytest
import torch
from torch import nn

from kfbench.problems.likelihoods import Categorical
from kfbench.problems.sequences.transformer import Attention, transformer
from kfbench.step_rules.tangents import tangents
from kfbench.updates.preconditioning import Preconditioning
from tests.properties import assert_close


def _model(**options):
    torch.manual_seed(0)
    model = transformer((6,), 5, **{"width": 8, "heads": 2, "depth": 2, **options}).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model


def _tokens(n=3):
    return torch.randint(5, (n, 6), generator=torch.Generator().manual_seed(1))


def test_logits_depend_on_the_past_and_on_their_own_token_alone():
    model, x = _model(), _tokens()
    before = model(x)
    assert before.shape == (3, 6, 5)
    for t in range(6):
        changed = x.clone()
        changed[:, t] = (changed[:, t] + 1) % 5
        after = model(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert ((before[:, t:] - after[:, t:]).abs().amax(dim=(0, 2)) > 1e-6).all()


def test_attention_is_its_definition():
    torch.manual_seed(0)
    attention, x = Attention(6, heads=2, bias=True).double(), torch.randn(2, 4, 6).double()
    q, k, v = attention.qkv(x).split(6, dim=2)
    mixed = torch.zeros_like(x)
    for n in range(2):
        for head in (slice(0, 3), slice(3, 6)):
            for t in range(4):
                scores = torch.stack([q[n, t, head] @ k[n, s, head] for s in range(t + 1)]) / 3**0.5
                mixed[n, t, head] = sum(w * v[n, s, head] for s, w in enumerate(scores.softmax(0)))
    assert_close(attention(x), attention.output(mixed), 1e-13)


def test_the_same_graph_goes_backward_twice_and_forward_mode_goes_through():
    model, x = _model(), _tokens()
    output = model(x)
    parameters = list(model.parameters())
    v = torch.randn_like(output)
    once = torch.autograd.grad(output, parameters, v, retain_graph=True)
    again = torch.autograd.grad(output, parameters, v)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    direction = {p: torch.randn_like(p) for p in parameters}
    _, moved = tangents(model, x, [direction])
    assert_close((moved * v).sum(), sum((direction[p] * g).sum() for p, g in zip(parameters, once, strict=True)), 1e-12)


def test_sizes_and_start():
    torch.manual_seed(0)
    model = transformer((64,), 80)
    assert (
        sum(p.numel() for p in model.parameters()) == 2 * 80 * 64 + 64 * 64 + 2 * (12 * 64**2 + 9 * 64 + 4 * 64) + 128
    )
    assert float(model.blocks[0].mlp.up.weight.std()) == pytest.approx(0.02, rel=0.05)
    assert float(model.blocks[0].mlp.down.weight.std()) == pytest.approx(0.01, rel=0.05)
    assert not model.blocks[1].attention.qkv.bias.any()
    assert all("bias" not in name for name, _ in transformer((4,), 5, bias=False).named_parameters())
    with pytest.raises(ValueError, match="its width must be a multiple of its 5 heads, got 64"):
        transformer((64,), 80, heads=5)


@pytest.mark.parametrize("method", ["foof", "kfac", "ekfac"])
def test_tied_weights_are_named_and_keep_their_plain_gradient(method):
    model, x, y = _model(tied=True), _tokens(), _tokens().flip(0)
    assert model.output.weight is model.embedding.weight
    likelihood = Categorical(class_dim=-1)
    pre = Preconditioning(model, method, damping=0.1, T=1, order="same", likelihood=likelihood)
    with pytest.warns(UserWarning, match=r"embedding, output \(it shares a parameter with another module\)"):
        with pre.capture():
            output = model(x)
        losses = likelihood.loss(output, y)
        wanted = torch.autograd.grad(losses.mean(), model.embedding.weight, retain_graph=True)[0]
        pre.backward(losses, output)
    assert_close(model.embedding.weight.grad, wanted, 1e-13)
    assert set(pre.layers) == {f"blocks.{i}.{n}" for i in (0, 1) for n in _BLOCK}


_BLOCK = ("attention.qkv", "attention.output", "mlp.up", "mlp.down")


def test_what_is_left_plain_is_named():
    model = _model()
    pre = Preconditioning(model, "foof", damping=0.1, likelihood=Categorical(class_dim=-1))
    assert set(pre.layers) == {"embedding", "output", *(f"blocks.{i}.{n}" for i in (0, 1) for n in _BLOCK)}
    assert set(pre.left_out) == {
        "positions",
        "norm",
        *(f"blocks.{i}.norm_{n}" for i in (0, 1) for n in ("attention", "mlp")),
    }
