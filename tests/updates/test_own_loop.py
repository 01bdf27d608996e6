"""In a user's own loop: what public reports on such libraries say goes wrong, against autograd and explicit solves."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune

from kfbench.config.method_table import METHODS
from kfbench.preconditioners.contract import Traits
from kfbench.updates.preconditioning import Preconditioning, make_preconditioner
from tests.properties import assert_close

NAMES = [name for name, entry in METHODS.items() if entry.preconditioner]
# Without those that take chains of layers alone, which no network of branches is.
ANYWHERE = [name for name in NAMES if not Traits.of(make_preconditioner(name)).chain]
SIZES = (4, 6, 3)


def _model(bias=True, seed=1, dtype=torch.float64):
    torch.manual_seed(seed)
    a, b = nn.Linear(SIZES[0], SIZES[1], bias=bias), nn.Linear(SIZES[1], SIZES[2], bias=bias)
    return nn.Sequential(a, nn.Tanh(), b).to(dtype)


def _batch(n=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, SIZES[0], generator=generator).to(dtype), torch.randint(3, (n,), generator=generator)


def _make(model, name, **options):
    entry = METHODS[name]
    more = {"order": "same"} if "order" in entry.options else {}
    return Preconditioning(model, name, damping=0.1, **{"T": 1, **more, **options})


def _update(pre, model, x, y, losses=None):
    with pre.capture():
        output = model(x)
    loss = cross_entropy(output, y, reduction="none")
    pre.backward(loss if losses is None else losses(loss), output)


def _flat(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


# .grad is laid out like its parameter.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_have_the_layout_of_their_parameters(name, bias):
    model = _model(bias)
    _update(_make(model, name), model, *_batch())
    for parameter in model.parameters():
        grad = parameter.grad
        assert (grad.shape, grad.stride(), grad.dtype) == (parameter.shape, parameter.stride(), parameter.dtype)
        others = [p.grad.untyped_storage().data_ptr() for p in model.parameters() if p is not parameter]
        assert grad.untyped_storage().data_ptr() not in others
        grad.view(-1)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adagrad])
def test_fused_optimizers_take_the_steps_of_unfused_ones(name, kind):
    ended = []
    for fused in (False, True):
        model = _model()
        optimizer, pre = kind(model.parameters(), lr=0.01, fused=fused), _make(model, name)
        for seed in range(3):
            _update(pre, model, *_batch(seed=seed))
            optimizer.step()
        ended.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert_close(*ended, 1e-10)


def test_convolutions_too():
    model = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(27, 3)).double()
    x, y = torch.randn(5, 1, 4, 4).double(), torch.randint(3, (5,))
    for name in ("foof", "kfac", "ekfac"):
        _update(_make(model, name), model, x, y)
        assert all(p.grad.stride() == p.stride() for p in model.parameters())


# A failed or abandoned update leaves nothing behind.


def _second_update(first):
    torch.manual_seed(1)
    model = nn.Linear(4, 3).double()
    foof = Preconditioning(model, "foof", damping=0.1, order="same", T=1, ema=0.0)
    first(foof, model)
    for seed in (2, 3):
        x, y = _batch(4, seed)
        with foof.capture():
            output = model(x)
        foof.accumulate(cross_entropy(output, y, reduction="none"), output)
    foof.finish()
    return model.weight.grad


def _gives_up_in_the_forward(foof, model):
    x, y = _batch(4, 7)
    with foof.capture():
        output = model(x)
    foof.accumulate(cross_entropy(output, y, reduction="none"), output)
    with pytest.raises(torch.OutOfMemoryError), foof.capture():
        model(x)
        raise torch.OutOfMemoryError


def _discards(foof, model):
    x, y = _batch(4, 7)
    with foof.capture():
        output = model(x)
    foof.accumulate(cross_entropy(output, y, reduction="none"), output)
    foof.discard()


def _fails_in(verb):
    def fail(foof, model):
        own = getattr(foof.method, verb)

        def raises(*args):
            setattr(foof.method, verb, own)
            raise torch.OutOfMemoryError

        setattr(foof.method, verb, raises)
        with pytest.raises(torch.OutOfMemoryError):
            _update(foof, model, *_batch(4, 7))

    return fail


@pytest.mark.parametrize(
    "first",
    [_gives_up_in_the_forward, _discards, *map(_fails_in, ("apply", "observe", "refresh"))],
    ids=["forward", "discard", "apply", "observe", "refresh"],
)
def test_what_failed_or_was_given_up_is_no_part_of_the_next_update(first):
    assert_close(_second_update(first), _second_update(lambda foof, model: None), 1e-12)


# A forward that the losses do not use.


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_that_the_losses_do_not_use_counts_nowhere(name):
    ended = []
    for teacher in (False, True):
        model = _model()
        pre = _make(model, name)
        x, y = _batch()
        with pre.capture():
            if teacher:
                model(10 * x)
            output = model(x)
        pre.backward(cross_entropy(output, y, reduction="none"), output)
        ended.append(_flat(model))
    assert_close(*ended, 1e-10)


# What changes after the first update.


def _plain_gradient(losses, model):
    return torch.autograd.grad(losses.mean(), list(model.parameters()), retain_graph=True)


def test_a_penalty_switched_on_later_is_not_lost():
    model = _model()
    foof = Preconditioning(model, "foof", damping=1e12, order="same", T=1)  # direction = gradient / damping
    x, y = _batch()
    for coefficient in (0.0, 1.0):
        with foof.capture():
            output = model(x)
        losses = cross_entropy(output, y, reduction="none")
        if coefficient:
            losses = losses + coefficient * sum((p**2).sum() for p in model.parameters())
        right = _plain_gradient(losses, model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            foof.backward(losses, output)
        for p, g in zip(model.parameters(), right, strict=True):
            scale = 1e12 if not coefficient else 1.0  # once it is found, the layer keeps its plain gradient
            assert_close(p.grad * scale, g, 1e-6)
        assert bool(caught) == bool(coefficient)
    assert set(foof.left_out) == {"0", "2"}


def test_a_decoder_tied_later_is_not_lost():
    model = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)}).double()
    foof = Preconditioning(model, "foof", damping=1e12, order="same", T=1)
    x, y = _batch()[0], torch.randint(4, (8,))
    for tied in (False, True):
        with foof.capture():
            h = model["a"](x).tanh()
            output = model["b"](h) + (h @ model["a"].weight if tied else 0)
        losses = cross_entropy(output, y, reduction="none")
        right = dict(zip(("a", "b"), _plain_gradient(losses, model), strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            foof.backward(losses, output)
        for name, g in right.items():
            scale = 1.0 if name in foof.left_out else 1e12
            assert_close(model[name].weight.grad * scale, g, 1e-6)
    assert set(foof.left_out) == {"a"}


def _skipping(use_b, model, x):
    h = x + model["a"](x).tanh()
    return model["c"](h + model["b"](h).tanh() if use_b else h)


def _modules():
    torch.manual_seed(3)
    return nn.ModuleDict({name: nn.Linear(4, 4) for name in "abc"}).double()


# A residual connection is no chain, see tests/preconditioners/test_kfra.py.
@pytest.mark.parametrize("name", [name for name in ANYWHERE if name != "kfra"])
@pytest.mark.parametrize("pattern", [[False, True, True], [True, False, True]])
def test_a_layer_that_is_skipped_now_and_then(name, pattern):
    """Zero where it is skipped; its factors are those of the batches that used it."""
    model = _modules()
    pre, x, y = _make(model, name, **({"T": 2} if name != "foof-per-sample" else {})), *_batch()
    for use_b in pattern:
        with pre.capture():
            output = _skipping(use_b, model, x)
        losses = cross_entropy(output, y, reduction="none")
        pre.backward(losses, output)
        grads = [p.grad for p in model.parameters()]
        assert all(g is not None and torch.isfinite(g).all() for g in grads)
        if not use_b and name in ("foof", "kfac", "foof-centred"):
            assert not model["b"].weight.grad.any() and not model["b"].bias.grad.any()
    assert set(pre.layers) == {"a", "b", "c"} and not pre.left_out


def test_factors_of_a_skipped_layer_are_of_the_batches_that_used_it():
    model = _modules()
    foof = Preconditioning(model, "foof", damping=0.1, order="same", T=1)
    A = []
    for use_b in (True, False):
        x, _ = _batch(seed=int(use_b))
        with foof.capture():
            output = _skipping(use_b, model, x)
        foof.backward(cross_entropy(output, torch.zeros(8, dtype=torch.long), reduction="none"), output)
        A.append({name: mean.clone() for name, mean in foof.method.A.means.items()})
    assert torch.equal(A[0]["b"], A[1]["b"]) and not torch.equal(A[0]["a"], A[1]["a"])


@pytest.mark.parametrize("name", ["foof", "kfac", "ekfac", "natural", "gn-cg"])
def test_a_layer_that_is_frozen_or_thawed_later(name):
    for start in (True, False):
        model = _modules()
        model["a"].requires_grad_(start)
        pre, (x, y) = _make(model, name), _batch()
        for trained in (start, not start, start):
            model["a"].requires_grad_(trained)
            model.zero_grad()
            with pre.capture():
                output = _skipping(True, model, x)
            pre.backward(cross_entropy(output, y, reduction="none"), output)
            assert ("a" in pre.layers) == trained
            assert (model["a"].weight.grad is not None) == trained
            assert not pre.left_out


@pytest.mark.parametrize("name", ["foof", "kfac", "ekfac", "natural", "gn-cg"])
def test_a_layer_that_is_replaced_starts_anew(name):
    model, (x, y) = _model(), _batch()
    options = {"fisher": "full"} if name in ("kfac", "natural") else {}  # no labels to draw
    pre = _make(model, name, **options)
    _update(pre, model, x, y)
    model[2] = nn.Linear(6, 5).double()
    for _ in range(2):
        _update(pre, model, x, y)
    assert model[2].weight.grad.shape == (5, 6) and torch.isfinite(_flat(model)).all()
    fresh = _make(model, name, **options)
    if name == "gn-cg":
        return  # its conjugate gradient begins at the last direction
    got = _flat(model)
    _update(fresh, model, x, y)
    rows = model[2].weight.grad.flatten()
    assert_close(got[-35:-5], rows, 1e-8)


def test_plain_parameters_are_those_that_there_are_now():
    """Between updates too, when another optimizer is made for them."""
    model, (x, y) = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)).double(), _batch()
    foof = _make(model, "foof")
    _update(foof, model, x, y)
    model[1] = nn.LayerNorm(6).double()
    assert [id(p) for p in foof.plain_parameters()] == [id(model[1].weight), id(model[1].bias)]
    model[1].bias.requires_grad_(False)
    assert [id(p) for p in foof.plain_parameters()] == [id(model[1].weight)]
    _update(foof, model, x, y)
    assert model[1].weight.grad is not None and model[1].bias.grad is None


def test_a_later_batch_along_another_dimension_is_noticed():
    """As many tokens as samples at first: only a batch of another size shows that tokens come first."""
    a, b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    model = nn.ModuleList([a, b])
    foof = Preconditioning(model, "foof", damping=0.05, order="same", T=1)
    for N in (6, 3):
        x, y = torch.randn(N, 6, 4).double(), torch.randint(3, (N,))
        with foof.capture():
            output = b(a(x.transpose(0, 1)).tanh().mean(0))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            foof.backward(cross_entropy(output, y, reduction="none"), output)
    assert "batch does not lie along the first dimension" in foof.left_out["0"]


# Rows of single samples.


def _contrastive(z):
    identity = torch.eye(len(z), dtype=z.dtype)
    return cross_entropy(z @ z.T - 10 * identity, (torch.arange(len(z)) + 1) % len(z), reduction="none")


@pytest.mark.parametrize("name", ["natural", "ekfac", "gn-cg", "foof-per-sample"])
def test_losses_that_couple_samples_are_named(name):
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4)).double()
    pre = _make(model, name)
    with pre.capture():
        output = model(torch.randn(6, 6).double())
    with pytest.warns(UserWarning, match="no row is the gradient of a single sample"):
        pre.backward(_contrastive(output), output)


def test_time_first_batches_are_named_where_rows_must_be_samples():
    a, b = nn.Linear(4, 5).double(), nn.Linear(5, 3).double()
    model = nn.ModuleList([a, b])
    pre = Preconditioning(model, "natural", damping=0.05, order="same", T=1)
    x, y = torch.randn(6, 6, 4).double(), torch.randint(3, (6,))
    with pre.capture():
        output = b(a(x.transpose(0, 1)).tanh().mean(0))
    with pytest.warns(UserWarning, match="no row is the gradient of a single sample"):
        pre.backward(cross_entropy(output, y, reduction="none"), output)


def test_uncoupled_losses_are_not_warned_of():
    model = _model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _update(_make(model, "natural"), model, *_batch())


# Parameters by name.


@pytest.mark.parametrize("name", ["foof", "kfac", "gn-cg"])
def test_weight_and_bias_are_found_by_name(name):
    ended = []
    for pruned in (False, True):
        model = _model()
        if pruned:
            prune.random_unstructured(model[0], "weight", amount=0)
            prune.remove(model[0], "weight")  # an ordinary Linear again, its parameters in the order bias, weight
        _update(_make(model, name), model, *_batch())
        ended.append(torch.cat([getattr(model[i], part).grad.flatten() for i in (0, 2) for part in ("weight", "bias")]))
    assert_close(*ended, 1e-12)


# States.


@pytest.mark.parametrize("name", NAMES)
def test_a_state_is_a_snapshot(name):
    model = _model()
    pre = _make(model, name)
    _update(pre, model, *_batch())
    state = pre.state_dict()
    kept = copy.deepcopy(state)
    _update(pre, model, *_batch(seed=5))

    def same(a, b):
        if isinstance(a, torch.Tensor):
            assert torch.equal(a, b)
        elif isinstance(a, dict):
            assert a.keys() == b.keys() and all(same(a[k], b[k]) is None for k in a)
        elif isinstance(a, (list, tuple)):
            assert len(a) == len(b) and all(same(x, y) is None for x, y in zip(a, b, strict=True))
        else:
            assert a == b

    same(state, kept)


@pytest.mark.parametrize(
    ("make", "method", "part"),
    [
        (lambda: nn.Sequential(_model()), "foof", "layers 0.0, 0.2"),
        (lambda: _model(), "kfac", "method KFAC"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), "foof", "shape"),
        (lambda: _model(dtype=torch.float32), "foof", "float32"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_in_one_sentence(make, method, part):
    old = make()
    pre = _make(old, method)
    x, y = _batch(dtype=next(old.parameters()).dtype)
    _update(pre, old, x, y)
    with pytest.raises(ValueError, match="state") as caught:
        _make(_model(), "foof").load_state_dict(pre.state_dict())
    assert part in str(caught.value) and "\n" not in str(caught.value)


# Wrapped models, half precision.


def test_wrapped_models_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"DataParallel.* give model\.module"):
        Preconditioning(nn.DataParallel(_model()), "foof", damping=1.0)


def test_nothing_left_to_precondition_is_an_error():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.PReLU())
    with pytest.raises(ValueError, match=r"no layer of the model can be preconditioned: 0 \(BatchNorm1d"):
        Preconditioning(model, "foof", damping=0.1)


HALF = [name for name in NAMES if name != "foof-per-sample"]


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("inside", [False, True])
def test_autocast_gives_nearly_the_direction_of_float32(name, inside):
    ended = []
    for enabled in (False, True):
        model = _model(dtype=torch.float32)
        pre, (x, y) = _make(model, name), _batch(64, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            with pre.capture():
                output = model(x)
            losses = cross_entropy(output.float(), y, reduction="none")
            if inside:
                pre.backward(losses, output)
        if not inside:
            pre.backward(losses, output)
        ended.append(_flat(model))
    assert torch.isfinite(ended[1]).all()
    assert torch.cosine_similarity(*ended, dim=0) > 0.97


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_keeps_factors_in_float32(dtype):
    model = _model(dtype=torch.float32).to(dtype)
    for name in ("foof", "kfac", "ekfac"):
        pre, (x, y) = _make(model, name), _batch(64, dtype=torch.float32)
        with pre.capture():
            output = model(x.to(dtype))
        pre.backward(cross_entropy(output.float(), y, reduction="none"), output)
        assert all(mean.dtype == torch.float32 for mean in pre.method.A.means.values())
        assert all(p.grad.dtype == dtype and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"fisher": "empirical"}])
def test_a_loss_scale_is_taken_out_of_everything(options):
    ended = []
    for scale in (1.0, 1024.0):
        model = _model()
        pre, (x, y) = _make(model, "kfac", **options), _batch()
        with pre.capture():
            output = model(x)
        pre.backward(scale * cross_entropy(output, y, reduction="none"), output, loss_scale=scale)
        ended.append(_flat(model))
    assert_close(*ended, 1e-12)


# Numbers that are not finite, and dampings that mean nothing.


@pytest.mark.parametrize("name", NAMES)
def test_one_corrupt_batch_does_not_end_a_method_for_good(name):
    model = _model(dtype=torch.float32)
    pre = _make(model, name, **({"T": 2} if name != "foof-per-sample" else {}))
    seen = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for update in range(8):
            x, y = _batch(seed=update, dtype=torch.float32)
            if update == 3:
                x[0, 0] = float("inf")
            _update(pre, model, x, y)
            seen.append(bool(torch.isfinite(_flat(model)).all()))
    assert seen == [True] * 3 + [False] + [True] * 4, "the corrupt batch shows, and no other does"
    if name not in ("foof-per-sample",):
        assert sum("are not finite" in str(w.message) for w in caught) == 1
        assert pre.skipped_batches == 1


def test_a_corrupt_batch_may_stop_instead():
    model = _model()
    foof = Preconditioning(model, "foof", damping=0.1, T=1, on_nonfinite="stop")
    x, y = _batch()
    x[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="layer '0'"):
        _update(foof, model, x, y)
    with pytest.raises(ValueError, match="on_nonfinite must be one of skip, stop, got 'ignore'"):
        Preconditioning(model, "foof", damping=0.1, on_nonfinite="ignore")


@pytest.mark.parametrize(("name", "options"), [("kfac", {"damping_kind": "standard", "fisher": "full"}), ("ekfac", {})])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_damping_below_rounding_is_warned_of_once(name, options, dtype):
    torch.manual_seed(0)
    x, y = torch.randn(3, 10).to(dtype), torch.randint(3, (3,))  # fewer samples than inputs: A is singular
    for damping, warned in ((1e-3, 0), (1e-9 if dtype == torch.float32 else 1e-18, 1), (0.0, 1)):
        model = nn.Linear(10, 3).to(dtype)
        pre = Preconditioning(model, name, damping=damping, order="same", ema=0.0, T=1, **options)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(2):
                with pre.capture():
                    output = model(x)
                pre.backward(cross_entropy(output, y, reduction="none"), output)
        assert sum("below what" in str(w.message) for w in caught) == warned, damping


# A method's first answers.


class Answers:
    """A method that answers what it is told to."""

    fisher, orders = "none", ("independent",)

    def __init__(self, change):
        self.change = change

    def observe(self, statistics):
        pass

    def refresh(self, damping):
        pass

    def apply(self, gradients):
        return self.change({name: G.dense() for name, G in gradients.items()})

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda d: {**d, "nine": d["0"]}, "for nine, which"),
        (lambda d: {"0": d["0"]}, "none for 2"),
        (lambda d: {**d, "0": d["0"][:1]}, r"shape \[1, 5\] for 0, expected \[6, 5\]"),
        (lambda d: {**d, "0": d["0"].float()}, "float32 for 0, expected float64"),
        (lambda d: {**d, "0": d["0"].requires_grad_()}, "a graph for 0, expected a detached tensor"),
        (lambda d: {**d, "0": d["0"].tolist()}, "list for 0, expected a tensor"),
        (lambda d: list(d.values()), "list, expected a mapping"),
    ],
)
def test_first_answers_are_checked(change, part):
    model = _model()
    pre = Preconditioning(model, Answers(change), damping=0.1, T=1)
    with pytest.raises(TypeError, match=part):
        _update(pre, model, *_batch())
