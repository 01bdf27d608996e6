"""`wallclock` on real methods: counts, restored starts, tasks, composition, files."""

import contextlib
import copy
import dataclasses
import json
import signal
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kfbench.cli.app import main
from kfbench.config.load import load_config
from kfbench.config.method_table import METHODS
from kfbench.curvature.counts import LayerShape, forward_backward, label_backward
from kfbench.preconditioners.natural import NaturalGradient
from kfbench.step_rules.tangents import tangents
from kfbench.updates import timed
from kfbench.updates.build import build_data
from kfbench.updates.schedule import PARTS
from kfbench.updates.timed import PartContestant, TraineeContestant, preload
from kfbench.updates.trainee import Trainee
from kfbench.wallclock.bench import Bench
from kfbench.wallclock.ratios import WINDOW_COLUMNS
from kfbench.wallclock.tasks import TASKS, layer_shapes, measured_tasks, predicted_tasks, products_of_activations
from tests.properties import equal
from tests.runs import STEPS

CPU = torch.device("cpu")


def _config(spec, **flags):
    wanted = {"width": 20, "warmup_batches": 2} | flags
    if not METHODS[spec.split(":")[0]].accepts("warmup_batches"):
        wanted.pop("warmup_batches")
    return load_config(specs=[spec], flags=STEPS.get(spec.split(":")[0], {}) | wanted)


def _contestant(spec, periods=1, **flags):
    config = _config(spec, **flags)
    data = build_data(config, CPU)
    trainee = Trainee(config, data, 0, CPU)
    contestant = TraineeContestant(spec, trainee, preload(data, config.run.batch_size, 0))
    contestant.warm_up(periods)
    return contestant


# Millions of multiply-adds for 784-1000-1000-1000-10 at N = 100 (shared formulas, "Counts"), and the
# ratio to SGD. Where a Cholesky inverse (d^3 / 2) stands there, solves need the factor alone (d^3 / 6).
COUNTS = [
    ("sgd", "forward and backward", 760, 1.0),
    ("foof:T=1", "apply", 272, 2.60),
    ("foof:T=1", "statistics", 362, 2.60),
    ("foof:T=1", "inverse", 1741 / 3, 2.60),
    ("foof:T=100,S=10", "inverse", 17.41 / 3, 1.41),
    ("foof:T=100,S=100", "apply", 272, 1.84),
    ("kfac:T=1", "apply", 272 + 300, 4.31),
    ("kfac:T=1", "label backward", 201, 4.31),
    ("kfac:T=1", "statistics", 362 + 300, 4.31),
    ("kfac:T=1", "inverse", (1741 + 1500) / 3, 4.31),
    ("kfac:T=100,S=10", "label backward", 20.1, 1.88),
    ("kfac:T=100,S=10,damping_kind=standard", "inverse", 5 * 32.41, 9.20),
    ("kflr:T=1", "label backward", 10 * 201, 10.24),
    ("kflr:T=100,S=10", "statistics", 0.1 * (362 + 10 * 300), 2.47),
    ("kflr:T=1,fisher_columns=2", "statistics", 362 + 2 * 300, 4.97),
    ("kflr:T=1,fisher_columns=2", "label backward", 2 * 201, 4.97),
    # Slopes of three layers and the output's Hessian (300), two products a weight but the first (4010).
    ("kfra:T=1", "statistics", 362 + 300 + 4010, 9.32),
    ("kfra:T=100,S=10", "statistics", 0.1 * (362 + 300 + 4010), 2.38),
    # The formulas' 9.54 multiplies the last layer's right factor in dense order; its scales need the rows.
    ("ekfac:T=100,S=10", "apply", 272 + 90 + 300 + 279 + 5409, 9.67),
    ("ekfac:T=100,S=10", "statistics", 0.1 * (362 + 300), 9.67),
    ("ekfac:T=100,S=10,fisher=sampled", "statistics", 0.1 * (2 * (362 + 300) + 279), 9.30),
    ("ekfac-ra:T=100,S=10", "apply", 272 + 300 + 5409, 9.17),
    ("foof-kfac-damping:T=1", "apply", 272, 3.91),
    ("foof-centred:T=100,S=10", "apply", 272, 1.41),
    ("foof-per-sample", "apply", 2 * 0.378, 1.0),
    # U v by the rows of the gradient (67.9; of the last layer, 10 wide, by its matrix), U' w (279.4).
    ("natural:T=100", "apply", 67.9 - 9.1 + 279.4, 1.46),
    ("natural:T=1", "label backward", 201, 2.18),
    ("natural:T=1", "inverse", 67.9 + 0.17, 2.18),
    ("natural:T=1", "forward and backward", 760 + 279.4, 2.18),
    # The rows of U share the gradient's inputs, so U' w costs nothing (1.81 where they are multiplied twice).
    ("natural:T=1,order=same", "apply", 67.9 - 9.1, 1.43),
    ("natural:T=100,fisher_data=1000", "apply", 10 * (67.9 - 9.1 + 279.4) + 1, 5.61),
]


@pytest.mark.parametrize(("spec", "task", "millions", "ratio"), COUNTS)
def test_counts_are_those_of_the_formulas(spec, task, millions, ratio):
    config = _config(spec, width=1000)
    data = build_data(config, CPU)
    tasks = predicted_tasks(Trainee(config, data, 0, CPU), preload(data, 100, 0)[0])
    assert tasks[task] / 1e6 == pytest.approx(millions, rel=0.01)
    assert sum(tasks.values()) / 759.8e6 == pytest.approx(ratio, rel=0.01)


def test_an_embedding_looks_up_and_multiplies_nothing():
    """2 samples of 3 tokens, 5 of them in a width of 4: forward and the weight's gradient add 6 vectors each."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 7, bias=False))
    shapes = layer_shapes(SimpleNamespace(model=model), (torch.randint(5, (2, 3)), torch.zeros(2)))
    assert [shape.product for shape in shapes] == [6 * 4, 6 * 4 * 7]
    assert forward_backward(shapes) == 2 * 6 * 4 + 3 * 6 * 4 * 7


def test_attention_multiplies_positions_with_one_another():
    """Scores and their mix: T^2 d each, masked or not; a backward pass has two of each."""
    flags = {"dataset": "shakespeare", "model": "transformer", "context": 5, "width": 8, "heads": 2, "depth": 3}
    config = load_config(
        specs=["kfac:T=2,S=1"], flags={**flags, "train_samples": 20, "eval_samples": 20, "batch_size": 4}
    )
    data = build_data(config, CPU)
    trainee, batch = Trainee(config, data, 0, CPU), preload(data, 4, 0)[0]
    products = 4 * 3 * 2 * 5 * 5 * 8
    assert products_of_activations(trainee, batch) == products
    tasks, shapes = predicted_tasks(trainee, batch), layer_shapes(trainee, batch)
    assert tasks["forward and backward"] == forward_backward(shapes) + 3 * products
    assert tasks["label backward"] == (label_backward(shapes, 1) + 2 * products) / 2


def test_tangents_of_attention_are_counted():
    """By torch's own count of what ran: a forward pass, and both products of the chain rule, for either vector."""
    flags = {"dataset": "shakespeare", "model": "transformer", "context": 5, "width": 8, "heads": 2, "depth": 3}
    flags |= {"train_samples": 20, "eval_samples": 20, "batch_size": 4}
    config = load_config(specs=["foof:T=2,order=same,step=rescale-momentum"], flags=flags)
    data = build_data(config, CPU)
    trainee, batch = Trainee(config, data, 0, CPU), preload(data, 4, 0)[0]
    with FlopCounterMode(display=False) as counter:
        tangents(trainee.model, batch[0], [{w: torch.ones_like(w) for w in trainee.model.parameters()}] * 2)
    ran = {str(operation): flops / 2 for operation, flops in counter.get_flop_counts()["Global"].items()}
    shapes, between = layer_shapes(trainee, batch), products_of_activations(trainee, batch)
    without, counted = (trainee.rule.multiply_adds(shapes, 1.0, products) for products in (0.0, between))
    assert counted - without == ran["aten.bmm"] + ran["aten.baddbmm"] == 6 * between > 0
    assert predicted_tasks(trainee, batch)["step"] >= counted


def test_rows_of_several_vectors_and_positions_are_counted():
    """The Gram matrix of D K rows costs D^2 d_in + (D K)^2 d_out, each point's gradient where P is large."""
    method = NaturalGradient("full", block_diagonal=True)
    dense, convolution = LayerShape(5, 30, 20), LayerShape(5 * 49, 4, 9, positions=49)
    found = method.multiply_adds_network([dense], vectors=3, points=7)
    assert found["refresh"] == 7**2 * 20 + 21**2 * 30 + 21**3 / 6
    assert found["apply"] == 7 * 5 * (20 + 3 * 30) + 21**2 + 7 * 30 * 20
    assert found["apply to the same batch"] == found["apply"] - 7 * 30 * 20
    found = method.multiply_adds_network([convolution] * 2, vectors=3, points=7)
    assert found["refresh"] == 2 * (3 * 7 * 49 + 21**2) * 4 * 9 + 2 * 21**3 / 6
    assert found["apply"] == found["apply to the same batch"] == 2 * (7 * 49 * 4 * (9 + 3) + 21**2 + 7 * 49 * 4 * 9)


def test_method_without_counts_has_no_prediction():
    contestant = _contestant("foof:T=2")
    turn = contestant.trainee.preconditioning.turn
    turn.traits = dataclasses.replace(turn.traits, multiply_adds=None)
    assert predicted_tasks(contestant.trainee, contestant.batches[0]) is None
    assert predicted_tasks((gn_cg := _contestant("gn-cg")).trainee, gn_cg.batches[0]) is None


NATURAL = ["natural:T=3", "natural:T=2,order=same", "gn-cg:T=2"]
SPECS = ["sgd", "adam", "foof:T=3,S=2", "kfac:T=2", "kfac:T=2,damping_kind=standard"]


@pytest.mark.parametrize("spec", [*SPECS, "ekfac:T=2", "ekfac-ra:T=2", "foof-centred:T=2", *NATURAL])
def test_every_window_starts_from_the_same_state(spec):
    """Bit for bit, although averages are updated in place and labels are drawn."""
    contestant = _contestant(spec)
    found = []
    for updates in (1, 7, 4):
        contestant.prepare()
        found.append(copy.deepcopy(contestant.trainee.state_dict()))
        contestant.run(updates)
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])
    assert not equal(found[0], contestant.trainee.state_dict())


def test_windows_train_like_train():
    """What is timed is the update of `train`: the same batches give the same weights."""
    contestant = _contestant("foof:T=3,S=2")
    contestant.prepare()
    contestant.run(4)
    timed = {k: v.clone() for k, v in contestant.trainee.model.state_dict().items()}
    contestant.prepare()
    for x, y in contestant.batches[:4]:
        contestant.trainee.update(x, y)
    assert equal(timed, dict(contestant.trainee.model.state_dict()))


def test_parts_observe_and_refresh_as_their_names_say():
    contestant = _contestant("kfac:T=5,S=2")
    method = contestant.trainee.preconditioning.method
    calls = []
    for name in ("observe", "refresh", "apply"):
        plain = getattr(method, name)
        setattr(method, name, lambda *a, plain=plain, name=name: (calls.append(name), plain(*a))[1])
    for part, expected in zip(PARTS, (["apply"], ["apply", "observe"], ["apply", "observe", "refresh"]), strict=True):
        made = PartContestant(contestant, part)
        made.prepare()
        calls.clear()
        made.run(3)
        assert calls == expected * 3
    assert contestant.trainee.preconditioning.turn.schedule.T == 5


def test_parts_of_a_method_with_points_of_its_own():
    """It observes only to refresh, and then before it applies; parts between are plain."""
    contestant = _contestant("natural:T=5,fisher_data=70")
    method = contestant.trainee.preconditioning.method
    calls = []
    for name in ("observe", "refresh", "apply"):
        plain = getattr(method, name)
        setattr(method, name, lambda *a, plain=plain, name=name: (calls.append(name), plain(*a))[1])
    for part, expected in zip(PARTS, (["apply"], ["apply"], ["observe", "refresh", "apply"]), strict=True):
        made = PartContestant(contestant, part)
        made.prepare()
        calls.clear()
        made.run(3)
        assert calls == expected * 3


def test_tasks_add_up_and_nobody_watches_afterwards():
    contestant = _contestant("kfac:T=2,S=2")
    tasks = measured_tasks(contestant)
    assert list(tasks) == list(TASKS)
    assert all(seconds > 0 for seconds in tasks.values())
    watched = []
    with contestant.trainee.watch(lambda task: contextlib.nullcontext(watched.append(task))):
        contestant.run(2)
    assert set(watched) == set(TASKS[1:])
    seen = len(watched)
    contestant.run(2)
    assert len(watched) == seen


@pytest.mark.parametrize(("optimizer_only", "seconds"), [(False, 505), (True, 5)])
def test_optimizer_only_times_what_follows_the_backward_pass(monkeypatch, optimizer_only, seconds):
    """By a clock on which a backward pass takes 100 seconds and what follows takes one."""
    contestant, clock = _contestant("foof:T=1"), SimpleNamespace(now=0.0)
    monkeypatch.setattr(timed, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def takes(plain, length):
        def slow(*arguments, **options):
            clock.now += length
            return plain(*arguments, **options)

        return slow

    contestant.prepare()
    monkeypatch.setattr(contestant.trainee, "backward", takes(contestant.trainee.backward, 100))
    monkeypatch.setattr(contestant.trainee, "take_step", takes(contestant.trainee.take_step, 1))
    contestant.optimizer_only = optimizer_only
    assert contestant.run(5) == seconds


@pytest.mark.parametrize("quick", [False, True])
def test_no_table_is_lost_because_a_method_would_diverge(tmp_path, capsys, quick):
    """What an update costs does not depend on whether it learns: such a method is timed standing still, and named."""
    specs = ("sgd:lr=1e30", "adam:lr=1e9", "foof:lr=1e20,T=5", "kfac:damping_kind=standard,lr=1,T=4", "natural:lr=1e30")
    flags = ["--quick"] if quick else ["--rounds", 6, "--window-seconds", 0.01]  # composed; whole, with memory
    opts = [argument for spec in specs for argument in ("--opt", spec)]
    assert (
        _main("wallclock", "--width", 20, "--warmup-batches", 2, *opts, *flags, "--lr-schedule", "cosine", "--out", "a")
        == 0
    )
    captured = capsys.readouterr()
    (cell,) = json.loads((tmp_path / "a" / "summary.json").read_text())["cells"]
    reference, *others = cell["methods"]
    assert len(others) == len(specs)
    for label, entry in cell["methods"].items():
        assert entry["rounds"] == (3 if quick else 6)
        assert quick or entry["peak_memory_bytes"] > 0
        assert (f"{label}: it diverged, and was timed with lr 1e-12" in captured.err) == (label != reference)
    assert "its loss was not finite" not in captured.err


def test_a_reference_that_would_diverge_is_timed_too(tmp_path, capsys):
    assert _main("wallclock", "--quick", "--width", 20, "--reference", "sgd:lr=1e30", "--opt", "adam") == 0
    assert "Warning: sgd: it diverged, and was timed with lr 1e-12" in capsys.readouterr().err


def test_who_stands_still_was_put_back_to_its_initial_weights():
    """Where nothing overflowed before: at the state of a fresh trainee, in every window, whole or in parts."""
    config = load_config(
        specs=["sgd", "foof:lr=1e20,T=5"], flags={"width": 20, "warmup_batches": 2}, command="wallclock"
    )
    bench = Bench(config, lambda line: None)
    fresh = Trainee(config.with_methods([config.methods[1]]), bench.data, config.run.seed, CPU).model.state_dict()
    whole = bench.wholes[1]
    assert whole.stands_still
    for contestant in (whole, *(PartContestant(whole, part) for part in PARTS)):
        contestant.prepare()
        contestant.run(7)
        assert not contestant.diverged
        for name, weight in contestant.trainee.model.state_dict().items():
            torch.testing.assert_close(weight, fresh[name], rtol=1e-6, atol=1e-8)


def test_divergence_in_a_later_window_is_met_there():
    """The warm-up of a composed method is short; a part of it may diverge first, and then all of them stand still."""
    config = load_config(
        specs=["sgd", "foof:T=50,lr=0.5"],
        flags={"width": 20, "warmup_batches": 2, "compose": "always"},
        command="wallclock",
    )
    bench = Bench(config, lambda line: None)
    whole = bench.wholes[1]
    assert not whole.stands_still
    part = PartContestant(whole, PARTS[0])
    part.prepare()
    assert part.run(300) > 0
    assert whole.stands_still
    assert not part.diverged


def test_a_method_that_cannot_be_timed_is_left_out(tmp_path, monkeypatch, capsys):
    """Its update raises even where no weight moves."""
    plain = TraineeContestant.warm_up

    def warm_up(self, periods):
        if self.label == "foof":
            raise FloatingPointError("the factor of layer '1' has values that are not finite")
        plain(self, periods)

    monkeypatch.setattr(TraineeContestant, "warm_up", warm_up)
    assert _main(*QUICK, "--opt", "foof", "--opt", "adam", "--out", "a") == 3
    (cell,) = json.loads((tmp_path / "a" / "summary.json").read_text())["cells"]
    assert list(cell["methods"]) == ["sgd", "adam"] and cell["left_out"] == ["foof"]
    assert "Warning: foof: cannot be timed, and is left out" in capsys.readouterr().err
    assert _main(*QUICK, "--reference", "foof", "--opt", "adam", "--out", "b") == 2
    assert "the reference, 'foof', cannot be timed" in capsys.readouterr().err


def test_auto_composes_only_what_does_not_fit_and_whole_periods_agree():
    """Composition and whole periods time the same thing: their medians agree within the machine's noise."""
    specs = ["sgd", "foof:T=40,S=10,lr=0.3,damping=1.0"]
    flags = {"width": 200, "window_seconds": 0.05, "rounds": 5, "warmup_batches": 2}
    found = {}
    for compose in ("never", "always", "auto"):
        config = load_config(specs=specs, flags=flags | {"compose": compose, "max_time": 0.5}, command="wallclock")
        bench = Bench(config, lambda line: None)
        bench.plan()
        found[compose] = [c.label for c in bench.timed]
    assert found["never"] == ["sgd", "foof"]
    assert found["always"] == found["auto"] == ["sgd", *("foof" + part for part in PARTS)]


def _main(*arguments):
    sys.argv = ["kfbench", *map(str, arguments)]
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


QUICK = ("wallclock", "--quick", "--width", 20, "--warmup-batches", 2)
# The fewest rounds with an interval.
TIMED = (
    "wallclock",
    "--width",
    20,
    "--warmup-batches",
    2,
    "--rounds",
    6,
    "--window-seconds",
    0.01,
    "--opt",
    "foof:T=4,S=2",
)


def test_command_writes_its_records_and_gates(tmp_path, capsys):
    assert _main(*QUICK, "--opt", "foof:T=4,S=2", "--opt", "kfac", "--T", 1, "--T", 3, "--out", "a", "--plot") == 0
    captured = capsys.readouterr()
    assert "A/A" in captured.out
    assert "not for comparison" in captured.err
    windows = pd.read_csv(tmp_path / "a" / "windows.csv")
    assert tuple(windows.columns) == WINDOW_COLUMNS
    (cell,) = json.loads((tmp_path / "a" / "summary.json").read_text())["cells"]
    assert list(cell["methods"]) == ["sgd", "foof", "kfac-T=1", "kfac-T=3"]
    assert cell["methods"]["foof"]["composed"]
    for name in ("config.yaml", "environment.json", "wallclock.png"):
        assert (tmp_path / "a" / name).stat().st_size > 0
    assert _main(*TIMED, "--out", "base") == 0
    assert _main(*TIMED, "--out", "b", "--baseline", "base", "--max-regression", "1000%") == 0
    assert "baseline ok: foof" in capsys.readouterr().err

    summary = json.loads((tmp_path / "base" / "summary.json").read_text())
    for entry in summary["cells"][0]["methods"].values():  # as if it had been a hundred times faster, surely
        entry["ratio"] /= 100
        entry["ratio_low"] = entry["ratio_high"] = entry["ratio"]
    (tmp_path / "base" / "summary.json").write_text(json.dumps(summary))
    assert _main(*TIMED, "--out", "c", "--baseline", "base") == 2, "the windows beside it say something else"
    assert "does not follow from base/windows.csv" in capsys.readouterr().err and not (tmp_path / "c").exists()
    (tmp_path / "base" / "windows.csv").unlink()
    code = _main(*TIMED, "--out", "c", "--baseline", "base")
    assert code == 1
    assert "SLOWER: foof" in capsys.readouterr().err
    assert (tmp_path / "c" / "summary.json").is_file()
    memory = json.loads((tmp_path / "c" / "summary.json").read_text())["cells"][0]["methods"]["foof"]
    assert memory["peak_memory_bytes"] > memory["state_memory_bytes"] > 4 * 784**2


def test_axes_have_a_folder_each_and_exponents(tmp_path, capsys):
    flags = ["wallclock", "--quick", "--opt", "foof:T=2", "--warmup-batches", 2, "--out", "axes", "--plot"]
    assert _main(*flags, "--width", 20, "--width", 60, "--batch-size", 50, "--batch-size", 100) == 0
    summary = json.loads((tmp_path / "axes" / "summary.json").read_text())
    assert [(c["width"], c["batch_size"]) for c in summary["cells"]] == [(20, 50), (20, 100), (60, 50), (60, 100)]
    assert (tmp_path / "axes" / "width=60-batch_size=50" / "windows.csv").is_file()
    assert "fitted exponent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--max-regression", "ten"], "takes a percentage"),
        (["--rounds", "1"], "rounds should be greater than or equal to 3"),
        (["--baseline", "nowhere", "--quick", "--width", "20", "--opt", "sgd"], "holds no finished wallclock run"),
        (["--reference", "sdg"], "did you mean 'sgd'"),
        (["--momentum", "0.1", "--momentum", "0.2"], "takes one value of --momentum"),
        (["--processes", "4", "--rounds", "3"], "above the 3 rounds"),
        (["--processes", "2", "--precision", "0.1"], "--precision needs --processes 1"),
        (["--train-samples", "300", "--batch-size", "100", "--batch-size", "1000"], "batch_size is 1000, above"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, capsys):
    assert _main("wallclock", *arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert sentence in errors[0]


def test_reference_with_a_period_is_timed_whole(tmp_path, capsys):
    assert _main(*QUICK, "--reference", "foof:T=3", "--opt", "sgd", "--opt", "kfac:T=4,S=1", "--out", "a") == 0
    (cell,) = json.loads((tmp_path / "a" / "summary.json").read_text())["cells"]
    assert cell["reference"] == "foof"
    assert list(cell["methods"]) == ["foof", "sgd", "kfac"]
    assert [entry["composed"] for entry in cell["methods"].values()] == [False, False, True]


def test_rounds_in_fresh_processes(tmp_path, capsys):
    flags = ["--width", 20, "--warmup-batches", 2, "--rounds", 6, "--window-seconds", 0.01, "--processes", 2]
    assert _main("wallclock", *flags, "--opt", "foof:T=3", "--compose", "always", "--out", "a") == 0
    windows = pd.read_csv(tmp_path / "a" / "windows.csv")
    assert sorted(windows["round"].unique()) == list(range(6))
    assert set(windows["method"]) == {"sgd", "sgd (control)", *("foof" + part for part in PARTS)}


@pytest.mark.parametrize("phase", ["warm_up", "prepare"])
def test_interrupted_warm_up_or_planning_goes_no_further(tmp_path, monkeypatch, phase):
    """On a large network either takes minutes; there is nothing to keep yet."""
    done, plain = [], getattr(TraineeContestant, phase)

    def interrupted(self, *arguments):
        done.append(self.label)
        if len(done) == 1:
            signal.raise_signal(signal.SIGINT)
        plain(self, *arguments)

    monkeypatch.setattr(TraineeContestant, phase, interrupted)
    assert _main(*TIMED, "--opt", "adam", "--opt", "foof", "--out", "a") == 130
    assert set(done) == {"sgd"}
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["status"] == "interrupted"


def test_interrupted_command_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    plain, calls = TraineeContestant.run, 0

    def interrupted(self, updates):
        nonlocal calls
        calls += 1
        if calls == 30:
            signal.raise_signal(signal.SIGINT)
        return plain(self, updates)

    monkeypatch.setattr(TraineeContestant, "run", interrupted)
    flags = ["--width", 20, "--rounds", 500, "--window-seconds", 0.01, "--out", "a"]
    assert _main("wallclock", "--opt", "adam", *flags) == 130
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 1 <= summary["cells"][0]["methods"]["adam"]["rounds"] < 500
