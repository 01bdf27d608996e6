"""Dense references by loops and ``torch.kron``, written from the definitions and sharing no code with kfbench.

Row-major vec throughout: ``vec(B V A) = kron(B, A) vec(V)`` for symmetric A.
"""

import scipy.linalg
import torch
from torch import Tensor, nn


def kron_solve(left: Tensor, right: Tensor, G: Tensor, damping: float = 0.0) -> Tensor:
    """``(left (x) right + damping I)^-1 vec G``, as a matrix."""
    M = torch.kron(left, right)
    M = M + damping * torch.eye(len(M), dtype=M.dtype)
    return torch.linalg.solve(M, G.reshape(-1)).reshape(G.shape)


def _eye(n: int, like: Tensor) -> Tensor:
    return torch.eye(n, dtype=like.dtype)


def foof(A: Tensor, B: Tensor, G: Tensor, damping: float) -> Tensor:
    return kron_solve(_eye(len(G), G), A + damping * _eye(len(A), A), G)


def heuristic_damping(A: Tensor, B: Tensor, damping: float) -> tuple[Tensor, Tensor]:
    """lambda_A lambda_B = damping and lambda_A / lambda_B = the ratio of mean eigenvalues."""
    ratio = torch.linalg.eigvalsh(A).mean() / torch.linalg.eigvalsh(B).mean()
    lambda_B = (damping / ratio) ** 0.5
    return damping / lambda_B, lambda_B


def kfac_heuristic(A: Tensor, B: Tensor, G: Tensor, damping: float) -> Tensor:
    lambda_A, lambda_B = heuristic_damping(A, B, damping)
    return kron_solve(B + lambda_B * _eye(len(B), B), A + lambda_A * _eye(len(A), A), G)


def foof_by_lambda_B(A: Tensor, B: Tensor, G: Tensor, damping: float) -> Tensor:
    """K-FAC with lambda_A and lambda_B of both factors, but nothing else of B."""
    lambda_A, lambda_B = heuristic_damping(A, B, damping)
    return kron_solve(lambda_B * _eye(len(B), B), A + lambda_A * _eye(len(A), A), G)


def foof_with_kfac_norm(A: Tensor, B: Tensor, G: Tensor, damping: float) -> Tensor:
    direction = foof_by_lambda_B(A, B, G, damping)
    return direction / direction.norm() * kfac_heuristic(A, B, G, damping).norm()


def kfac_standard(A: Tensor, B: Tensor, G: Tensor, damping: float) -> Tensor:
    return kron_solve(B, A, G, damping)


def kfac_as_released(A: Tensor, B: Tensor, G: Tensor, damping: float) -> Tensor:
    """Both left bases transposed; the eigenvectors are those that LAPACK returns."""
    s_A, U_A = torch.linalg.eigh(A)
    s_B, U_B = torch.linalg.eigh(B)
    rotated = torch.kron(U_B.contiguous(), U_A.T.contiguous()) @ G.reshape(-1)
    scaled = rotated / (torch.outer(s_B, s_A).reshape(-1) + damping)
    return (torch.kron(U_B.T.contiguous(), U_A.contiguous()) @ scaled).reshape(G.shape)


def power(M: Tensor, damping: float, exponent: float) -> Tensor:
    """``(M + damping I)^exponent``, by the Schur form of SciPy, which knows nothing of symmetry."""
    whole = (M + damping * _eye(len(M), M)).numpy()
    return torch.from_numpy(scipy.linalg.fractional_matrix_power(whole, exponent).real.copy())


def in_basis(U: Tensor, denominator: Tensor, G: Tensor) -> Tensor:
    """``U diag(denominator)^-1 U' vec G`` for the columns of U [d_out d_in, d_out d_in]."""
    return (U @ ((U.T @ G.reshape(-1)) / denominator.reshape(-1))).reshape(G.shape)


def ekfac_shift(s_A: Tensor, s_B: Tensor, damping: float, init: str) -> Tensor:
    """[d_out, d_in]: what EKFAC's appendix C adds to the scales, entry by entry."""
    lambda_A = lambda_B = damping**0.5
    if init == "factors-pi":
        lambda_A, lambda_B = heuristic_damping(s_A.diag(), s_B.diag(), damping)
    shift = torch.full((len(s_B), len(s_A)), damping, dtype=s_A.dtype)
    if init != "plain":
        for i in range(len(s_B)):
            for j in range(len(s_A)):
                shift[i, j] += (s_B[i] + lambda_B) * (s_A[j] + lambda_A) - s_B[i] * s_A[j] - lambda_A * lambda_B
    return shift


class Rows:
    """Rows of one layer for single samples, by running the model on one sample at a time."""

    def __init__(self, model: nn.Module, layer: nn.Module) -> None:
        self.model, self.layer = model, layer

    def one_sample(self, x: Tensor, vector: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """(a, g) at every position, for the scalar ``vector . output``."""
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            seen.append((args[0].detach().clone(), output))
            return output.clone()  # what follows may work in place

        handle = self.layer.register_forward_hook(keep)
        output = self.model(x[None])
        handle.remove()
        scalar = (output[0] * vector).sum()
        found = torch.autograd.grad(scalar, [kept for _, kept in seen], allow_unused=True)
        inputs: list[Tensor] = []
        gradients: list[Tensor] = []
        for (given, kept), gradient in zip(seen, found, strict=True):
            inputs += self._positions(given[0])
            g = torch.zeros_like(kept[0]) if gradient is None else gradient[0]
            rows = g.flatten(1).T if isinstance(self.layer, nn.Conv2d) else g.reshape(-1, g.shape[-1])
            gradients += list(rows)
        return inputs, gradients

    def _positions(self, given: Tensor) -> list[Tensor]:
        layer = self.layer
        if isinstance(layer, nn.Embedding):
            return list(torch.eye(layer.num_embeddings, dtype=layer.weight.dtype)[given])
        rows = _patches(layer, given) if isinstance(layer, nn.Conv2d) else list(given.reshape(-1, given.shape[-1]))
        if layer.bias is not None:
            rows = [torch.cat([row, torch.ones(1, dtype=row.dtype)]) for row in rows]
        return rows


def _patches(conv: nn.Conv2d, image: Tensor) -> list[Tensor]:
    """Input patches by slicing a padded image, in the order of the output's positions."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    padded = nn.functional.pad(image, (pw, pw, ph, ph))
    height = (padded.shape[1] - dh * (kh - 1) - 1) // sh + 1
    width = (padded.shape[2] - dw * (kw - 1) - 1) // sw + 1
    rows = []
    for i in range(height):
        for j in range(width):
            patch = padded[:, i * sh : i * sh + dh * (kh - 1) + 1 : dh, j * sw : j * sw + dw * (kw - 1) + 1 : dw]
            rows.append(patch.reshape(-1))
    return rows


def factors(model: nn.Module, layer: nn.Module, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """(A, B) by loops; ``vectors`` [K, N, C] are backpropagated for B."""
    rows, n = Rows(model, layer), len(x)
    A = B = None
    for i in range(n):
        for k, vector in enumerate(vectors[:, i]):
            inputs, gradients = rows.one_sample(x[i], vector)
            b = sum(torch.outer(g, g) for g in gradients) / (n * len(gradients))
            B = b if B is None else B + b
            if k == 0:
                a = sum(torch.outer(a, a) for a in inputs) / n
                A = a if A is None else A + a
    return A, B


def kronecker_network(
    model: nn.Module, layers: list[nn.Module], batches: list[tuple[float, Tensor, Tensor]], damping: float
) -> list[list[tuple[Tensor, Tensor]]]:
    """(B, A) = (E g h', E a b') of every pair of layers that give one row a sample, all of the same vectors [K, N, C].

    Averaged over (weight, x, vectors) by loops; those on the diagonal are damped heuristically.
    """
    pairs: list[list[tuple[Tensor, Tensor]]] = [[(0, 0) for _ in layers] for _ in layers]  # type: ignore[misc]
    for weight, x, vectors in batches:
        for k, vector in enumerate(vectors):
            for n in range(len(x)):
                rows = [Rows(model, layer).one_sample(x[n], vector[n]) for layer in layers]
                for i, ((a,), (g,)) in enumerate(rows):
                    for j, ((b,), (h,)) in enumerate(rows):
                        B, A = pairs[i][j]
                        A = A + weight * torch.outer(a, b) / len(x) if k == 0 else A
                        pairs[i][j] = (B + weight * torch.outer(g, h) / len(x), A)
    for i in range(len(layers)):
        B, A = pairs[i][i]
        lambda_A, lambda_B = heuristic_damping(A, B, damping)
        pairs[i][i] = (B + lambda_B * _eye(len(B), B), A + lambda_A * _eye(len(A), A))
    return pairs


def joined_blocks(blocks: list[list[Tensor]]) -> Tensor:
    """One matrix."""
    return torch.cat([torch.cat(row, dim=1) for row in blocks])


def tridiagonal(pairs: list[list[tuple[Tensor, Tensor]]]) -> tuple[Tensor, list[int]]:
    """Martens & Grosse 2015, section 3.3: the covariance of their graphical model, and the size of each layer's block.

    ``Xi^-1 Lambda^-1 Xi^-T`` with ``Psi_l,n = B_l,n B_n^-1 (x) A_l,n A_n^-1`` beside the diagonal of Xi (negative), and
    ``Sigma_l = B_l (x) A_l - Psi_l,n (B_n (x) A_n) Psi_l,n'``, of the last layer without the latter, in Lambda^-1.
    """
    L = len(pairs)
    full = [[torch.kron(B.contiguous(), A.contiguous()) for B, A in row] for row in pairs]
    sizes = [len(full[i][i]) for i in range(L)]
    Xi = [[torch.zeros(sizes[i], sizes[j], dtype=full[0][0].dtype) for j in range(L)] for i in range(L)]
    Sigma = [[block.clone() for block in row] for row in Xi]
    for i in range(L):
        Xi[i][i] = torch.eye(sizes[i], dtype=full[0][0].dtype)
        Sigma[i][i] = full[i][i]
        if i + 1 < L:
            Psi = full[i][i + 1] @ torch.linalg.inv(full[i + 1][i + 1])
            Xi[i][i + 1] = -Psi
            Sigma[i][i] = full[i][i] - Psi @ full[i + 1][i + 1] @ Psi.T
    inverse = torch.linalg.inv(joined_blocks(Xi))
    return inverse @ joined_blocks(Sigma) @ inverse.T, sizes


def gradient(model: nn.Module, layer: nn.Module, losses: Tensor) -> Tensor:
    """The mean gradient of weight and bias in one matrix, by autograd."""
    bias = getattr(layer, "bias", None)
    found = torch.autograd.grad(losses.mean(), [layer.weight] + ([] if bias is None else [bias]), retain_graph=True)
    if isinstance(layer, nn.Embedding):  # a token's vector is a column
        return found[0].T
    weight = found[0].reshape(len(found[0]), -1)
    return torch.cat([weight, found[1][:, None]], dim=1) if len(found) > 1 else weight


def point_gradients(model: nn.Module, layers: list[nn.Module], x: Tensor, vectors: Tensor) -> Tensor:
    """[K N, parameters of all layers]: ``vec(sum_p g a')``, layer after layer, of every vector and sample."""
    found = []
    for vector in vectors:
        for i in range(len(x)):
            parts = []
            for layer in layers:
                inputs, gradients = Rows(model, layer).one_sample(x[i], vector[i])
                parts.append(sum(torch.outer(b, a) for a, b in zip(inputs, gradients, strict=True)).reshape(-1))
            found.append(torch.cat(parts))
    return torch.stack(found)


def fisher(model: nn.Module, layers: list[nn.Module], x: Tensor, vectors: Tensor) -> Tensor:
    """``1/N sum_n sum_k vec(G_nk) vec(G_nk)'`` over all layers, G_nk = sum_p g a'."""
    total = 0
    for u in point_gradients(model, layers, x, vectors):
        total = total + torch.outer(u, u) / len(x)
    return total


def centred_factor(model: nn.Module, layer: nn.Module, batches: list[tuple[float, Tensor]]) -> Tensor:
    """``sum_p (a - c)(a - c)'`` averaged over weighted batches, c the weighted mean of their inputs."""
    rows, weighted = Rows(model, layer), []
    for weight, x in batches:
        for sample in x:
            inputs, _ = rows.one_sample(sample, x.new_zeros(()))
            weighted += [(weight / len(x), a) for a in inputs]
    total = sum(w for w, _ in weighted)
    mean = sum(w * a for w, a in weighted) / total
    return sum(w * torch.outer(a - mean, a - mean) for w, a in weighted)


def foof_per_sample(model: nn.Module, layer: nn.Module, x: Tensor, vectors: Tensor, damping: float) -> Tensor:
    """Each sample's own FOOF update, solved alone, then averaged; ``vectors`` [N, C] of the true labels."""
    rows, total = Rows(model, layer), 0
    for sample, vector in zip(x, vectors, strict=True):
        inputs, gradients = rows.one_sample(sample, vector)
        A = sum(torch.outer(a, a) for a in inputs)
        G = sum(torch.outer(g, a) for a, g in zip(inputs, gradients, strict=True))
        total = total + foof(A, None, G, damping) / len(x)
    return total


def fisher_block(model: nn.Module, layer: nn.Module, x: Tensor, vectors: Tensor) -> Tensor:
    """The Fisher of one layer."""
    return fisher(model, [layer], x, vectors)


def damped_solve(F: Tensor, v: dict[str, Tensor], damping: float) -> dict[str, Tensor]:
    """``(F + damping I)^-1 v`` for v given as one matrix a layer, in the order of F."""
    flat = torch.cat([matrix.reshape(-1) for matrix in v.values()])
    solved = torch.linalg.solve(F + damping * _eye(len(F), F), flat)
    parts = solved.split([matrix.numel() for matrix in v.values()])
    return {name: part.reshape(v[name].shape) for name, part in zip(v, parts, strict=True)}


class Part:
    """One group of any convolution, from what the module itself computes: no patch is ever made.

    The row of a position is the derivative of one output with respect to the weights that lead to it.
    """

    def __init__(self, model: nn.Module, module: nn.Module, group: int) -> None:
        self.model, self.module, self.group = model, module, group
        self.transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Of tensors in the shape of the module's parameters, this group's part."""
        own = weight.chunk(self.module.groups)[self.group]
        own = (own.transpose(0, 1) if self.transposed else own).flatten(1)
        return own if bias is None else torch.cat([own, bias.chunk(self.module.groups)[self.group][:, None]], dim=1)

    def factors(self, x: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(A, B) by loops over samples, positions and vectors."""
        A = B = 0
        for i, sample in enumerate(x):
            seen: list[tuple[Tensor, Tensor]] = []
            handle = self.module.register_forward_hook(lambda m, args, out, seen=seen: seen.append((args[0], out)))
            output = self.model(sample[None])[0]
            handle.remove()
            ((given, out),) = seen
            outputs = self.module(given.detach())[0].chunk(self.module.groups)[self.group].flatten(1)
            for p in range(outputs.shape[1]):
                a = self._row(outputs[0, p])
                A = A + torch.outer(a, a) / len(x)
            for vector in vectors[:, i]:
                (g,) = torch.autograd.grad((output * vector).sum(), out, retain_graph=True)
                for row in g[0].chunk(self.module.groups)[self.group].flatten(1).T:
                    B = B + torch.outer(row, row) / len(x) / outputs.shape[1]
        return A, B

    def _row(self, output: Tensor) -> Tensor:
        (weight,) = torch.autograd.grad(output, self.module.weight, retain_graph=True)
        row = self.matrix(weight, None)[0]
        return row if self.module.bias is None else torch.cat([row, row.new_ones(1)])


def parameter_fisher(model: nn.Module, x: Tensor, vectors: Tensor) -> Tensor:
    """``1/N sum_n sum_k grad grad'`` over all parameters, from single backward passes."""
    parameters, total = list(model.parameters()), 0
    for i, sample in enumerate(x):
        for vector in vectors[:, i]:
            found = torch.autograd.grad((model(sample[None])[0] * vector).sum(), parameters)
            u = torch.cat([g.reshape(-1) for g in found])
            total = total + torch.outer(u, u) / len(x)
    return total
