"""Every method gives one direction on every device, and no update waits for one where it need not."""

import copy
from dataclasses import replace

import pandas as pd
import pytest
import torch

from kfbench.updates.preconditioning import Preconditioning
from tests.cases import CHAINS, METHODS, Problem, problem
from tests.properties import LAMBDA, FixedDraws, assert_close, directions, run

CUDA = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"))
# On the CPU the same is computed twice: that is to keep the test itself in order where there is no other device.
DEVICES = ["cpu", CUDA]
MODELS = ("mlp-bias", "sequence", "conv", "tokens", "autoencoder-sigmoid")


def _on(device, p):
    return Problem(copy.deepcopy(p.model).to(device), p.x.to(device), p.y.to(device), p.likelihood)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
def test_directions_are_those_of_the_cpu(case, device):
    """After three updates, in float64; labels that are drawn are always the least likely, signs are no one's choice."""
    if case.fisher == "columns" or case.own_factors:
        pytest.skip("each device draws its own signs")
    for model in MODELS:
        if (model not in CHAINS and (case.chain or case.chains_only)) or model in case.unknown_on:
            continue
        p = problem(model, 7)
        if case.fisher == "sampled":
            if model.startswith("autoencoder"):
                continue  # real labels are drawn
            p = replace(p, likelihood=FixedDraws(class_dim=p.likelihood.class_dim))
        q = _on(device, p)
        for one in (p, q):
            run(case, one, updates=3)
        for name, got in directions(q).items():
            assert got.device.type == device
            assert_close(got.cpu(), directions(p)[name], 1e-8, f"{case.name} on {device}, {model}, layer {name}")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("spec", ["sgd", "foof:T=3,S=2", "kfac:T=3,fisher=empirical", "soap:T=3,damping=0.1"])
def test_a_run_on_a_device_is_that_of_the_cpu(kfbench, spec, device):
    """Epochs, checkpoints and records included; float64, the losses of twelve updates."""
    flags = {"width": 16, "train_samples": 90, "eval_samples": 50, "batch_size": 20, "updates": 12, "dtype": "float64"}
    given = [word for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", value)]
    losses = []
    for where in ("cpu", device):
        code, _, err = kfbench("train", "--opt", spec, *given, "--device", where, "--out", where, "--overwrite")
        assert code == 0, err
        losses.append(pd.read_csv(f"{where}/seed-0/updates.csv")["loss"].tolist())
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("model", ["mlp-bias", "conv"])
@pytest.mark.parametrize("case", METHODS, ids=lambda case: case.name)
def test_updates_between_refreshes_wait_for_nothing(case, model):
    """No value of the device is asked for while it computes, neither layer by layer nor once."""
    if case.chains_only or (case.chain and model == "conv") or case.name.startswith("gn-cg"):
        pytest.skip("not for this model; or iterations that stop by a value")
    p = _on("cuda", problem(model, 7))
    settings = {"damping": LAMBDA, "likelihood": p.likelihood, "T": 50}
    pre = Preconditioning(p.model, case.new(), **settings)

    def update():
        with pre.capture():
            output = p.model(p.x)
        pre.accumulate(p.likelihood.loss(output, p.y), output)
        pre.finish()

    for _ in range(3):  # the first refreshes, the next may allocate
        update()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
