"""Properties that every method has, as functions that raise AssertionError: tests and mutants call them."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kfbench.problems.likelihoods import Categorical, Likelihood
from kfbench.updates.preconditioning import Preconditioning
from tests import dense
from tests.cases import BATCHES, CHAINS, MODELS, MethodCase, Problem, problem
from tests.situations import Past, Situation, true_vectors

LAMBDA = 0.3
# Float64, solved twice by different algorithms.
TOLERANCE = 1e-10


def assert_close(got: Tensor, wanted: Tensor, tolerance: float = TOLERANCE, what: str = "") -> None:
    """Relative to the norm; the message prints the ratio: a constant one is a missing factor."""
    error = float((got - wanted).norm() / wanted.norm().clamp(min=1e-300))
    if not error <= tolerance:
        ratio = (got / wanted).flatten()
        raise AssertionError(
            f"{what}: relative error {error:.2e} > {tolerance:.0e}; ratio got/wanted: median {ratio.median():.6g}, "
            f"from {ratio.min():.6g} to {ratio.max():.6g}"
        )


def run(
    case: MethodCase, p: Problem, *, updates: int = 1, micro: int | None = None, **options: object
) -> Preconditioning:
    """Precondition ``updates`` times on the same batch, leaving the weights as they are."""
    settings = {"damping": LAMBDA, "T": 1, "order": "same", "likelihood": p.likelihood} | options
    pre = Preconditioning(p.model, case.new(**settings.pop("method", {})), **settings)
    for _ in range(updates):
        backward(pre, p, micro)
    return pre


def backward(pre: Preconditioning, p: Problem, micro: int | None = None) -> None:
    size = micro or len(p.x)
    for x, y in zip(p.x.split(size), p.y.split(size), strict=True):
        with pre.capture():
            output = p.model(x)
        pre.accumulate(p.likelihood.loss(output, y), output)
    pre.finish()


def directions(p: Problem) -> dict[str, Tensor]:
    """What lies in ``.grad``, as one matrix a layer."""
    found = {}
    for name, layer in p.layers.items():
        weight = layer.weight.grad.reshape(len(layer.weight), -1)
        if isinstance(layer, nn.Embedding):
            found[name] = weight.T
            continue
        found[name] = torch.cat([weight, layer.bias.grad[:, None]], 1) if layer.bias is not None else weight.clone()
    return found


def vectors_of(case: MethodCase, p: Problem, seed: int = 0, likelihood: Likelihood | None = None) -> Tensor:
    """What a method backpropagates for its Fisher, with the labels of the same seed."""
    output = p.model(p.x).detach()
    likelihood = likelihood or p.likelihood
    if case.fisher in ("none", "full"):
        return likelihood.full_vectors(output)
    if case.fisher == "columns":
        return combined_columns(likelihood.full_vectors(output), case.options["fisher_columns"], seed)
    if case.fisher == "sampled":
        return likelihood.sampled_vectors(output, torch.Generator().manual_seed(seed))
    return true_vectors(p)


def combined_columns(columns: Tensor, k: int, seed: int) -> Tensor:
    """[k, N, C]: k sums of the columns [K, N, C], each column of each sample with a sign of its own, over sqrt(k)."""
    K, N = columns.shape[:2]
    signs = 2 * torch.randint(2, (k, N, K), generator=torch.Generator().manual_seed(seed)).to(columns.dtype) - 1
    sums = [[sum(signs[j, n, i] * columns[i, n] for i in range(K)) for n in range(N)] for j in range(k)]
    return torch.stack([torch.stack(of_samples) for of_samples in sums]) / k**0.5


def gradient(p: Problem, name: str) -> Tensor:
    """One layer's mean gradient by autograd."""
    return dense.gradient(p.model, p.layers[name], p.likelihood.loss(p.model(p.x), p.y))


def check_against_dense(
    case: MethodCase,
    pre: Preconditioning,
    p: Problem,
    observed: list[tuple[float, Problem, Tensor]],
    what: str,
    last: tuple[Problem, Tensor] | None = None,
    applied: list[Problem] | None = None,
    events: list[tuple[str, Problem | None]] | None = None,
) -> None:
    """The directions in ``.grad`` equal the definition, from loops and a dense solve.

    ``observed`` lists the batches that the factors average: (weight, batch, its vectors); ``last`` is
    the one observed last (by default the last of these), ``applied`` those preconditioned since the
    refresh (by default the own one), ``events`` all that has happened (by default one update in order "same").
    """
    got = directions(p)
    if case.dense_network is not None:
        solved = case.dense_network(observed, {name: gradient(p, name) for name in p.layers}, LAMBDA)
        for name in p.layers:
            assert_close(got[name], solved[name], what=f"{case.name}, {what}, layer {name}")
        return
    events = events or _first(p)
    past = Past(observed, last or observed[-1][1:], applied or [p], events)
    for name, layer in p.layers.items():
        if case.own_factors and isinstance(layer, nn.Embedding):
            continue  # its basis is the identity, of which LAPACK chooses another order
        wanted = _wanted(case, Situation(pre.method, p, name, past, LAMBDA), f"{what}, layer {name}")
        assert_close(got[name], wanted, what=f"{case.name}, {what}, layer {name}")


def _wanted(case: MethodCase, situation: Situation, what: str) -> Tensor:
    if case.dense_of is not None:
        return case.dense_of(situation)
    A, B = situation.factors
    if case.own_factors:
        mine = situation.method.A.means[situation.name], situation.method.B.means[situation.name]
        assert_close(mine[0], A, what=f"{case.name}, A of {what}")
        assert_close(mine[1], B, what=f"{case.name}, B of {what}")
        A, B = mine
    return case.dense(A, B, situation.gradient(), LAMBDA)


def check_dense(case: MethodCase, model: str = "mlp-bias", n: int = 7) -> None:
    """The direction equals the dense solve it stands for; what the method cannot take, it refuses."""
    if model in case.unknown_on:
        return
    p = problem(model, n)
    if case.chain and model not in CHAINS:
        with pytest.raises(ValueError, match="accepted is a chain alone"):
            run(case, p)
        return
    if case.chains_only and model not in CHAINS:
        assert_refused(case, p)
        return
    pre = run(case, p)
    check_against_dense(case, pre, p, [(1.0, p, vectors_of(case, p))], f"{model}, N = {n}")


def assert_refused(case: MethodCase, p: Problem) -> None:
    """One sentence, before anything is written into ``.grad``."""
    try:
        run(case, p)
    except ValueError as error:
        assert "chain of fully connected layers" in str(error), error
        assert all(q.grad is None for q in p.model.parameters())
    else:
        raise AssertionError(f"{case.name} takes what it cannot")


def check_positions(case: MethodCase) -> None:
    """The same where a sample has several rows."""
    check_dense(case, "sequence", 4)


def check_tokens(case: MethodCase) -> None:
    """The same in a transformer, whose embedding has a diagonal input factor and whose samples have several labels."""
    check_dense(case, "tokens", 4)


class FixedDraws(Categorical):
    """Draws the least likely label always, so that the same sample gets the same label anywhere."""

    def sampled_vectors(self, output: Tensor, generator: torch.Generator | None) -> Tensor:
        p = output.softmax(dim=-1)
        return (p - torch.nn.functional.one_hot(p.argmin(-1), p.shape[-1]))[None]

    def root_times(self, output: Tensor, weights: Tensor) -> Tensor:
        return super().root_times(output, torch.ones_like(weights))


def check_duplicated_batch(case: MethodCase) -> None:
    """A batch given twice over is the same batch: everything is a mean over samples."""
    # Rounding may turn the sign of an eigenvector, and with it a direction that depends on signs.
    if case.own_factors or not case.mean_over_samples:
        return
    p = problem("mlp-bias", 4)
    twice = Problem(p.model, torch.cat([p.x, p.x]), torch.cat([p.y, p.y]))
    run(case, p, likelihood=FixedDraws())
    once = directions(p)
    run(case, twice, likelihood=FixedDraws())
    for name, got in directions(twice).items():
        assert_close(got, once[name], what=f"{case.name}, duplicated batch, layer {name}")


def check_micro_batches(case: MethodCase) -> None:
    """Micro-batches, the last one ragged, are one batch."""
    if case.own_factors:
        return
    for model in ("mlp-bias",) if case.chains_only else ("mlp-bias", "mlp" if case.chain else "conv"):
        p = problem(model, 7)
        run(case, p, likelihood=FixedDraws())
        whole = directions(p)
        run(case, p, micro=3, likelihood=FixedDraws())
        for name, got in directions(p).items():
            assert_close(got, whole[name], what=f"{case.name}, micro-batches, layer {name}")


def check_not_a_no_op(case: MethodCase) -> None:
    """The direction is neither the gradient nor a multiple of it."""
    p = problem("mlp-bias", 7)
    run(case, p)
    for name, got in directions(p).items():
        G = gradient(p, name)
        cosine = float((got * G).sum() / (got.norm() * G.norm()))
        assert abs(cosine) < 1 - 1e-4, f"{case.name} leaves the gradient of {name} as it was: cosine {cosine}"


def check_descent(case: MethodCase) -> None:
    """A positive definite preconditioner gives a descent direction: in every layer if it is block-diagonal."""
    p = problem("mlp-bias", 7)
    run(case, p)
    products = {name: float((got * gradient(p, name)).sum()) for name, got in directions(p).items()}
    if case.dense_network is not None:  # layers may be coupled: then only the whole direction must descend
        products = {"*": sum(products.values())}
    for name, product in products.items():
        if case.descends:
            assert product > 0, f"{case.name}: no descent in layer {name}"


def check_large_damping(case: MethodCase) -> None:
    """For large damping the direction tends to G / lambda."""
    if not case.limit_is_gradient:
        return
    p = problem("mlp-bias", 7)
    huge = 1e12
    run(case, p, damping=huge)
    for name, got in directions(p).items():
        G = gradient(p, name)
        assert_close(got * huge, G, tolerance=1e-4, what=f"{case.name}, large damping, layer {name}")


def check_one_sample(case: MethodCase) -> None:
    """For N = P = 1 the Kronecker product is the Fisher, so the direction is exact."""
    if not case.exact_on_one_sample:
        return
    p = problem("mlp-bias", 1)
    vectors = vectors_of(case, p)
    if len(vectors) > 1:  # several labels: only the last layer, or one class direction, factorises
        return
    run(case, p)
    for name, got in directions(p).items():
        layer = p.layers[name]
        G = gradient(p, name)
        F = dense.fisher_block(p.model, layer, p.x, vectors)
        F = F + LAMBDA * torch.eye(len(F), dtype=F.dtype)
        wanted = torch.linalg.solve(F, G.reshape(-1)).reshape(G.shape)
        assert_close(got, wanted, what=f"{case.name}, one sample, layer {name}")


def check_averages(case: MethodCase) -> None:
    """Two batches average with the normalised weights m (1 - m) and (1 - m)."""
    if not case.averages:
        return
    old, new = _two_batches()
    m = 0.6
    pre = Preconditioning(old.model, case.new(ema=m), damping=LAMBDA, T=1, order="same")
    backward(pre, old)
    vectors = vectors_of(case, old)
    pre.label_generator.manual_seed(5)
    backward(pre, new)
    weights = (m / (1 + m), 1 / (1 + m))
    observed = [(weights[0], old, vectors), (weights[1], new, vectors_of(case, new, seed=5))]
    check_against_dense(case, pre, new, observed, "averages", events=[*_first(old), *_first(new)])


def check_no_memory_without_ema(case: MethodCase) -> None:
    """ema = 0, or no average at all, keeps only the newest batch: sub-sampled K-FAC, natural gradient."""
    old, new = _two_batches()
    pre = Preconditioning(old.model, case.newest_only(), damping=LAMBDA, T=1, order="same")
    backward(pre, old)
    pre.label_generator.manual_seed(5)
    backward(pre, new)
    newest = [(1.0, new, vectors_of(case, new, seed=5))]
    check_against_dense(case, pre, new, newest, "ema = 0", events=[*_first(old), *_first(new)])


def _first(p: Problem) -> list[tuple[str, Problem | None]]:
    """What happens in an update that refreshes in order "same"."""
    return [("observe", p), ("refresh", None), ("apply", p)]


def check_independent_order(case: MethodCase) -> None:
    """With "independent" the direction at update t uses statistics up to t - 1; with "same" up to t."""
    if case.own_points or _trained_order(case) != "independent":  # see check_own_points
        return
    old, new = _two_batches()
    pre = Preconditioning(old.model, case.newest_only(), damping=LAMBDA, T=1, order="independent")
    backward(pre, old)  # nothing was refreshed yet, so this one is, before it is applied
    own = copy.deepcopy(pre)  # the factors that the coming direction uses
    backward(pre, new)
    events = [*_first(old), ("apply", new)]
    observed = [(1.0, old, vectors_of(case, old))]
    check_against_dense(case, own, new, observed, "order independent", applied=[old, new], events=events)


def check_own_points(case: MethodCase) -> None:
    """Points of its own give the curvature at the weights of the update that begins a period, used by that update."""
    if not case.own_points:
        return
    p, T = problem("mlp-bias", 7), 2
    own = [problem("mlp-bias", 8, seed=seed) for seed in (1, 2)]
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.5)
    pre = Preconditioning(
        p.model,
        case.new(),
        damping=LAMBDA,
        T=T,
        order="independent",
        likelihood=FixedDraws(),
        fisher_batches=lambda refresh: zip(own[refresh].x.split(3), own[refresh].y.split(3), strict=True),
    )
    for update in range(2 * T):
        if update % T == 0:
            used = Problem(copy.deepcopy(p.model), own[update // T].x, own[update // T].y)
            vectors = vectors_of(case, used, likelihood=FixedDraws())
        backward(pre, p)
        check_against_dense(case, pre, p, [(1.0, used, vectors)], f"own points, update {update}")
        optimizer.step()


def check_amortised(case: MethodCase) -> None:
    """Between refreshes the direction is that of the last refresh, however the statistics moved."""
    old, new = _two_batches()
    pre = Preconditioning(old.model, case.newest_only(), damping=LAMBDA, T=3, S=3, order="same")
    backward(pre, old)  # nothing was refreshed yet, so this one is
    own = copy.deepcopy(pre)
    pre.label_generator.manual_seed(5)
    backward(pre, new)
    last = (new, vectors_of(case, new, seed=5))  # observed, not averaged in by any refresh
    events = [*_first(old), ("observe", new), ("apply", new)]
    check_against_dense(case, own, new, [(1.0, old, vectors_of(case, old))], "amortised", last, [old, new], events)


def _trained_order(case: MethodCase) -> str:
    return "independent" if "independent" in case.make.orders else case.make.orders[0]


def _two_batches() -> tuple[Problem, Problem]:
    """Different batches, of different sizes, of one model."""
    old, new = problem("mlp-bias", 4, seed=1), problem("mlp-bias", 7, seed=1)
    return old, Problem(old.model, new.x, new.y)


def check_evaluation_leaves_state(case: MethodCase) -> None:
    """Forwards outside ``capture`` change nothing, bit for bit."""
    p = problem("mlp-bias", 7)
    pre = run(case, p)
    before = copy.deepcopy(pre.state_dict())
    p.model(p.x * 3)
    with torch.no_grad():
        p.model(p.x * 2)
    assert equal(before, pre.state_dict()), f"{case.name}: an evaluation changed the state"


def check_repeatable(case: MethodCase) -> None:
    """The same batches and seed give the same bits."""
    found = []
    for _ in range(2):
        p = problem("mlp-bias", 7)
        run(case, p, updates=3, T=2)
        found.append(directions(p))
    assert equal(*found), f"{case.name} is not repeatable"


def check_state_restores(case: MethodCase) -> None:
    """A restored method continues bit for bit, in any phase of the schedule."""
    for done in range(1, 5):
        p, other = problem("mlp-bias", 7), problem("mlp-bias", 7, seed=1)
        options = {"damping": LAMBDA, "T": 3, "S": 2, "order": _trained_order(case), "fisher_batches": _own_points(p)}
        pre = run(case, p, updates=done, **options)
        state = copy.deepcopy(pre.state_dict())
        restored = Preconditioning(p.model, case.new(), seed=99, **options)
        restored.load_state_dict(copy.deepcopy(state))
        for batch in (other, p, other, p):
            p = Problem(p.model, batch.x, batch.y)
            backward(pre, p)
            expected = directions(p)
            backward(restored, p)
            assert equal(expected, directions(p)), f"{case.name} continues differently after {done} updates"


def _own_points(p: Problem) -> Callable[[int], list[tuple[Tensor, Tensor]]]:
    """Points for methods that draw their own: other ones at every refresh."""
    return lambda refresh: [(p.x[refresh % 3 :], p.y[refresh % 3 :])]


def golden_loss(case: MethodCase) -> float:
    """The loss after six updates from a fixed start, in the order that training uses."""
    p = problem("mlp-bias", 7)
    optimizer = torch.optim.SGD(p.model.parameters(), lr=0.05, momentum=0.9)
    options = {"damping": LAMBDA, "T": 3, "S": 2, "order": _trained_order(case), "fisher_batches": _own_points(p)}
    pre = Preconditioning(p.model, case.new(), seed=3, **options)
    for _ in range(6):
        backward(pre, p)
        optimizer.step()
    return float(cross_entropy(p.model(p.x), p.y))


def check_golden(case: MethodCase) -> None:
    """A short trajectory as it was when the method was proven: whatever changes it is noticed."""
    if case.golden is None:
        return
    got = golden_loss(case)
    assert abs(got / case.golden - 1) < 1e-8, f"{case.name}: loss {got!r}, was {case.golden!r}"


def equal(a: object, b: object) -> bool:
    """Bit-equality of nested states."""
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


# Every method goes through all of these; mutants must be caught by at least one.
CHECKS: list[Callable[[MethodCase], None]] = [
    check_dense,
    check_positions,
    check_tokens,
    check_duplicated_batch,
    check_micro_batches,
    check_not_a_no_op,
    check_descent,
    check_large_damping,
    check_one_sample,
    check_averages,
    check_no_memory_without_ema,
    check_independent_order,
    check_own_points,
    check_amortised,
    check_evaluation_leaves_state,
    check_repeatable,
    check_state_restores,
    check_golden,
]
DENSE_CASES = [(model, n) for model in MODELS for n in BATCHES]
