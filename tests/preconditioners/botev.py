"""Botev, Ritter & Barber's matrices from their definitions, by loops, sharing no code with kfbench."""

import torch


def output_hessians(p):
    """[N, C, C]: of each sample's own loss with respect to the model's output, by differentiating twice."""
    found = []
    for f, y in zip(p.model(p.x).detach(), p.y, strict=True):
        found.append(torch.autograd.functional.hessian(lambda f, y=y: p.likelihood.loss(f[None], y[None])[0], f))
    return torch.stack(found)


def jacobian(p, layer, x):
    """[C, d_out]: of one sample's output with respect to what the layer returned."""
    seen = []

    def keep(module, args, output):
        seen.append(output)
        return output.clone()

    handle = layer.register_forward_hook(keep)
    outputs = p.model(x[None])[0]
    handle.remove()
    return torch.stack([torch.autograd.grad(f, seen[0], retain_graph=True)[0].flatten() for f in outputs])


def exact_B(p, layer):
    """``1/N sum_n J_n' H_n J_n``."""
    hessians = output_hessians(p)
    pairs = [(jacobian(p, layer, x), H) for x, H in zip(p.x, hessians, strict=True)]
    return sum(J.T @ H @ J for J, H in pairs) / len(p.x)


def recursive_B(p):
    """name -> B by the recursion of Algorithm 1, layer by layer, with the derivatives written out.

    For models whose layers lie in one ``nn.Sequential``: Linear, Tanh, Sigmoid, ReLU, Flatten.
    """
    modules = [(name, m) for name, m in p.model.named_modules() if not list(m.children())]
    values, h = [], p.x
    for _, module in modules:
        values.append(h)  # what the module is given
        h = module(h).detach()
    found, B, phi = {}, output_hessians(p).mean(0), None
    for (name, module), given in reversed(list(zip(modules, values, strict=True))):
        if isinstance(module, torch.nn.Linear):
            if phi is not None:
                B = B * sum(torch.outer(f, f) for f in phi) / len(p.x)
            found[name], W = B, module.weight.detach()
            B, phi = W.T @ B @ W, torch.ones(len(p.x), W.shape[1], dtype=W.dtype)
        elif not isinstance(module, torch.nn.Flatten):
            phi = phi * _slopes(module, given)
    return found


def _slopes(module, h):
    if isinstance(module, torch.nn.Tanh):
        return 1 / torch.cosh(h) ** 2
    if isinstance(module, torch.nn.Sigmoid):
        return torch.exp(-h) / (1 + torch.exp(-h)) ** 2
    assert isinstance(module, torch.nn.ReLU), module
    return (h > 0).to(h.dtype)
