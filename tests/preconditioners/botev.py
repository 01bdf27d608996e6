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
