"""What a method does not precondition is moved by a second optimizer: the very steps that it takes alone."""

import copy
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from kfbench.config.load import dump, load_config
from kfbench.errors import UsageError
from kfbench.step_rules.rest import WithRest, main_of, moved
from kfbench.training.checkpoint import first_unreadable
from kfbench.updates.build import build_data
from kfbench.updates.trainee import Trainee
from tests.properties import equal

CPU = torch.device("cpu")
# Its norms are the rest: a scale and a shift a layer.
NORMED = {"model": "convnet", "width": 2, "norm": "batch", "train_samples": 60, "batch_size": 20}


def _parameters(count=3):
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(4)) for _ in range(count)]


def _gradients(parameters, step):
    generator = torch.Generator().manual_seed(step)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator)


def _pair(parameters, rest):
    main = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    return WithRest(main, torch.optim.Adam(parameters, lr=0.01), lambda: rest)


def test_each_takes_its_own_steps_alone():
    parameters = _parameters()
    alone = copy.deepcopy(parameters)
    both = _pair(parameters, parameters[2:])
    others = torch.optim.SGD(alone[:2], lr=0.1, momentum=0.9), torch.optim.Adam(alone[2:], lr=0.01)
    for step in range(4):
        _gradients(parameters, step)
        _gradients(alone, step)
        both.step()
        assert all(p.grad is not None for p in parameters), "gradients stay where they were"
        for optimizer in others:
            optimizer.step()
        assert all(torch.equal(p, q) for p, q in zip(parameters, alone, strict=True))


def test_a_parameter_may_change_hands_and_each_keeps_what_it_knows():
    """As when a layer is found not to be captured: from then on it is the other's, which begins anew with it."""
    parameters = _parameters(2)
    alone, rest = copy.deepcopy(parameters), [parameters[1]]
    both = _pair(parameters, rest)
    first, second, late = (
        torch.optim.SGD(alone[:1], lr=0.1, momentum=0.9),
        torch.optim.Adam(alone[1:], lr=0.01),
        torch.optim.SGD(alone[1:], lr=0.1, momentum=0.9),
    )
    for step in range(6):
        if step == 3:
            rest.clear()
        _gradients(parameters, step)
        _gradients(alone, step)
        both.step()
        first.step()
        (second if step < 3 else late).step()
        assert all(torch.equal(p, q) for p, q in zip(parameters, alone, strict=True))


def test_a_restored_pair_goes_on_bit_for_bit():
    parameters = _parameters()
    both = _pair(parameters, parameters[2:])
    for step in range(3):
        _gradients(parameters, step)
        both.step()
    state, copied = copy.deepcopy(both.state_dict()), copy.deepcopy(parameters)
    assert first_unreadable(state) is None
    restored = _pair(copied, copied[2:])
    restored.load_state_dict(state)
    # The groups are those of the optimizers still: a schedule's lr is the one that they step with.
    for one in (both, restored):
        one.param_groups[0]["lr"], one.param_groups[1]["lr"] = 0.05, 0.005
    for step in range(3, 6):
        for one, own in ((both, parameters), (restored, copied)):
            _gradients(own, step)
            one.step()
        assert all(torch.equal(p, q) for p, q in zip(parameters, copied, strict=True))


def test_a_schedule_scales_both_learning_rates_and_each_is_told_with_what_it_moves():
    parameters = _parameters()
    both = _pair(parameters, parameters[2:])
    scheduler = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 0.5**step)
    _gradients(parameters, 0)
    parameters[0].grad = None  # frozen
    both.step()
    scheduler.step()
    assert [group["lr"] for group in both.param_groups] == [0.05, 0.005]
    told = [(lr, [id(p) for p in own]) for lr, own in moved(both)]
    assert told == [(0.05, [id(parameters[1])]), (0.005, [id(parameters[2])])]
    assert [(lr, len(own)) for lr, own in moved(both.main)] == [(0.05, 2)] and main_of(both) is both.main


def _trainee(spec, **flags):
    config = load_config(specs=[spec], flags=NORMED | flags)
    return Trainee(config, build_data(config, CPU), 0, CPU)


SPECS = ["foof:T=2,warmup_batches=1", "kfac:T=2,warmup_batches=1", "natural:T=2", "foof-per-sample", "soap:T=2", "muon"]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("rest", ["adamw", "sgd"])
def test_of_every_method_the_rest_takes_the_steps_of_that_optimizer(spec, rest):
    """At its default learning rate, along the plain gradients; the layers take those that they take without."""
    separator = "," if ":" in spec else ":"
    trainee = _trainee(f"{spec}{separator}rest={rest},lr=1e-3,weight_decay=0.1")
    plain = _trainee(f"{spec}{separator}rest=plain,lr=1e-3,weight_decay=0.1")
    kinds = {"adamw": (torch.optim.AdamW, {"lr": 3.4e-4}), "sgd": (torch.optim.SGD, {"lr": 0.012, "momentum": 0.9})}
    kind, options = kinds[rest]
    for one in (trainee, plain):
        one.warm_up()
    rest_names = {n for n, m in trainee.model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert rest_names
    own = [p for n in rest_names for p in trainee.model.get_submodule(n).parameters()]
    copies = [nn.Parameter(p.detach().clone()) for p in own]
    alone = kind(copies, **options, **({"weight_decay": 0.1} if rest == "adamw" else {}))
    batches = trainee.batches()
    for step in range(3):
        x, y = next(batches)
        trainee.backward(x, y)
        if step == 0:  # at equal weights and gradients
            plain.update(x, y)
        trainee.form_direction()
        for p, q in zip(own, copies, strict=True):
            q.grad = p.grad.clone()
        if rest == "sgd":
            with torch.no_grad():
                for q in copies:
                    q *= 1 - 0.012 * 0.1
        alone.step()
        trainee._move(len(x))
        for p, q in zip(own, copies, strict=True):
            assert torch.allclose(p, q, rtol=1e-5, atol=1e-7)
        if step == 0:
            moved_apart = {id(p) for p in own}
            for p, q in zip(trainee.model.parameters(), plain.model.parameters(), strict=True):
                assert torch.equal(p, q) == (id(p) not in moved_apart)


def test_a_continued_run_is_the_unbroken_one():
    spec = "foof:T=3,warmup_batches=1,rest=adamw,rest_lr=0.01,lr=0.01,damping=10,lr_schedule=cosine,weight_decay=0.1"
    whole, broken = _trainee(spec, updates=8), _trainee(spec, updates=8)
    for one in (whole, broken):
        one.warm_up()
    for trainee in (whole, broken):
        for i, (x, y) in enumerate(trainee.batches()):
            if i == 4:
                break
            trainee.update(x, y)
    continued = _trainee(spec, updates=8)
    continued.load_state_dict(copy.deepcopy(broken.state_dict()))
    for trainee in (whole, continued):
        batches = trainee.batches()
        for _ in range(4):
            trainee.update(*next(batches))
    assert equal(dict(whole.model.state_dict()), dict(continued.model.state_dict()))
    assert equal(whole.optimizer.state_dict(), continued.optimizer.state_dict())
    assert whole.state_memory_bytes() > 0


def test_the_default_is_as_it_was():
    """One torch SGD, and no word of it in a record, also where it is said."""
    for spec in ("foof", "foof:rest=plain"):
        trainee = _trainee(spec)
        assert type(trainee.optimizer) is torch.optim.SGD
    said, unsaid = (dump(load_config(specs=[spec])) for spec in ("kfac:rest=plain", "kfac"))
    assert said == unsaid and "rest" not in said["methods"][0]
    assert dump(load_config(specs=["soap:rest=plain"]))["methods"][0]["rest"] == "plain"


def test_records_say_it(kfbench):
    code, _, err = kfbench(
        "train", "--opt", "foof", "--rest", "adamw", "--rest-lr", "0.001", "--quick", "--width", "8", "--out", "o"
    )
    assert code == 0, err
    (method,) = yaml.safe_load(Path("o/config.yaml").read_text())["methods"]
    assert method["rest"] == "adamw" and method["rest_lr"] == 0.001


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("foof:rest_lr=0.1", "'foof': rest_lr needs rest 'adamw' or 'sgd', got rest_lr 0.1 with rest 'plain'"),
        ("soap:rest=plain,rest_lr=0.1", "'soap': rest_lr needs rest 'adamw' or 'sgd', got rest_lr 0.1"),
        ("foof:rest=adamw,clip_norm=0.1", "'foof': clip_norm is of one step of all parameters, and rest 'adamw' takes"),
        ("kfac:rest=sgd,step=rescale", "'kfac': step finds one step for all parameters, and rest 'sgd' takes another"),
        ("foof:rest=lion", "'foof'"),
        ("sgd:rest=adamw", "rest"),
        ("soap:momentum=0.9", "momentum"),
        ("muon:momentum=0.9", "momentum"),
        ("muon:damping=0.1", "damping"),
    ],
)
def test_what_does_not_fit_is_one_sentence(spec, sentence):
    with pytest.raises(UsageError, match=sentence) as error:
        load_config(specs=[spec])
    assert "\n" not in str(error.value)
