"""How near two approximate inverses come to that of the whole Kronecker-factored Fisher (Martens & Grosse 2015, C).

Their F~ has the block ``A_l,n (x) B_l,n`` for every two layers l and n, both factors of the diagonal ones damped (E.3).
Its inverse is compared with what K-FAC and block-tridiagonal K-FAC, made from the same samples, multiply a gradient by.
"""

import itertools

import torch
from torch import Tensor

from kfbench.config.schema import Config
from kfbench.curvature.gradient import LayerGradient
from kfbench.curvature.statistics import Statistics
from kfbench.preconditioners.kfac import KFAC
from kfbench.preconditioners.kfac_tridiagonal import TridiagonalKFAC
from kfbench.updates.build import build_data, prepare_torch
from kfbench.updates.preconditioning import Preconditioning
from kfbench.updates.trainee import Trainee

# Of the network as a whole, and of the diagonal blocks alone.
WHOLE, BLOCKS = "", ", diagonal blocks"
LABELS = tuple(name + part for name in ("kfac", "kfac-tridiagonal") for part in (WHOLE, BLOCKS))


def inverse_errors(config: Config) -> dict[str, dict[int, float]]:
    """LABEL -> seed -> ``|X - F~^-1| / |F~^-1|`` in Frobenius norm, when the first method has trained.

    At the damping then in force, from the factors of one more batch, in float64.
    """
    device = prepare_torch(config.run)
    data = build_data(config, device)
    errors: dict[str, dict[int, float]] = {label: {} for label in LABELS}
    for seed in range(config.run.seed, config.run.seed + config.run.seeds):
        trainee = Trainee(config, data, seed, device)
        trainee.warm_up()
        batches = trainee.batches()
        for x, y in itertools.islice(batches, trainee.total):
            trainee.update(x, y)
        x, y = next(batches)
        for label, error in _errors(trainee, x.double(), y).items():
            errors[label][seed] = error
    return errors


class _Keeping(TridiagonalKFAC):
    """Block-tridiagonal K-FAC, K-FAC within, and the rows that both were made from."""

    statistics: Statistics

    def observe(self, statistics: Statistics) -> None:
        """Keep them, too."""
        self.statistics = statistics
        super().observe(statistics)


def _errors(trainee: Trainee, x: Tensor, y: Tensor) -> dict[str, float]:
    assert trainee.damping is not None
    model, method = trainee.model.double(), _Keeping(ema=0.0)
    preconditioning = Preconditioning(
        model, method, damping=trainee.damping, T=1, order="same", likelihood=trainee.likelihood, seed=trainee.seed
    )
    with preconditioning.capture():
        output = model(x)
    preconditioning.backward(trainee.likelihood.loss(output, y), output)
    wanted, blocks = torch.linalg.inv(_damped_fisher(method, trainee.damping)), _blocks(method)
    errors = {}
    for name, approximate in (("kfac", method.kfac), ("kfac-tridiagonal", method)):
        difference = _as_matrix(approximate, method) - wanted
        errors[name + WHOLE] = float(difference.norm() / wanted.norm())
        own, of_wanted = ([M[place, place] for place in blocks] for M in (difference, wanted))
        errors[name + BLOCKS] = float(_norm(own) / _norm(of_wanted))
    return errors


def _norm(blocks: list[Tensor]) -> Tensor:
    return torch.stack([block.norm() for block in blocks]).norm()


def _damped_fisher(method: _Keeping, damping: float) -> Tensor:
    """F~ [M, M] over all entries of all layers, row-major."""
    lambda_A, lambda_B = method.kfac.heuristic_damping(damping)
    rows = {name: (s.inputs.flatten(0, 1), s.output_gradients) for name, s in method.statistics.items()}

    def block(left: str, right: str) -> Tensor:
        (a, g), (b, h) = rows[left], rows[right]
        assert g is not None and h is not None
        A, B = a.T @ b / len(a), g.flatten(0, 2).T @ h.flatten(0, 2) / len(a)
        if left == right:
            A, B = A + lambda_A[left] * torch.eye(len(A)).to(A), B + lambda_B[left] * torch.eye(len(B)).to(B)
        return torch.kron(B, A)

    return torch.cat([torch.cat([block(left, right) for right in rows], dim=1) for left in rows])


def _shapes(method: _Keeping) -> dict[str, tuple[int, int]]:
    return {name: (method.kfac.B.means.width(name), method.kfac.A.means.width(name)) for name in method.statistics}


def _blocks(method: _Keeping) -> list[slice]:
    """The rows of each layer in the whole matrix."""
    ends = list(itertools.accumulate((d_out * d_in for d_out, d_in in _shapes(method).values()), initial=0))
    return [slice(*pair) for pair in itertools.pairwise(ends)]


def _as_matrix(approximate: KFAC | TridiagonalKFAC, method: _Keeping) -> Tensor:
    """[M, M]: column by column, what the method makes of a gradient that is 1 in one entry."""
    shapes, columns = _shapes(method), []
    zeros = {name: next(iter(method.kfac.A.means.values())).new_zeros(shape) for name, shape in shapes.items()}
    for name, (d_out, d_in) in shapes.items():
        for entry in range(d_out * d_in):
            one = zeros[name].clone()
            one.view(-1)[entry] = 1
            gradients = {n: LayerGradient.from_dense(one if n == name else zero, 1) for n, zero in zeros.items()}
            answer = approximate.apply(gradients)
            columns.append(torch.cat([answer[n].reshape(-1) for n in shapes]))
    return torch.stack(columns, dim=1)
