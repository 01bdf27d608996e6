"""Bytes counted from the sizes of layers are those that travel."""

import pytest

from kfbench.updates.ranks.sharing import Several
from kfbench.updates.ranks.traffic import Traffic, predicted_traffic
from kfbench.updates.schedule import Amortisation
from kfbench.updates.trainee import Trainee
from tests.updates.ranks.meeting import CPU, build_data, config_of, together
from tests.updates.ranks.test_sharing import CONVOLUTIONS, NORMALISED, NUMBERS, SEQUENCES

SPECS = ["sgd", "foof:T=3,S=2", "kfac:T=3,S=2", "kfac:T=3,S=2,damping_kind=standard", "ekfac:T=3,S=2"]
SPECS += ["ekfac:T=3,S=2,fisher=sampled", "ekfac-ra:T=3,S=2", "foof-kfac-damping:T=3,S=2", "soap:T=3"]
PROBLEMS = {
    "mlp": (NUMBERS, "spread"),
    "mlp replicated": (NUMBERS, "replicated"),
    "convnet": (CONVOLUTIONS, "spread"),
    "transformer": (SEQUENCES, "spread"),
    "normalised": (NORMALISED, "spread"),
}
CASES = [
    (spec, name) for spec in SPECS for name in PROBLEMS if name != "normalised" or spec.startswith(("sgd", "foof:"))
]
CASES += [(spec, "normalised") for spec in ("kfac:T=3,S=2,fisher=full", "kflr:T=3,S=2")]
# Sums of the three BatchNorms of the convnet, of 4, 8 and 16 channels, in 64 bits.
A_PASS = 8 * 2 * 28


@pytest.mark.parametrize(("spec", "name"), CASES)
def test_bytes_are_those_counted(spec, name):
    problem, placement = PROBLEMS[name]
    config = config_of(spec, **problem)
    data = build_data(config, CPU)

    def work(transport):
        trainee = Trainee(config, data, 0, CPU, Several(transport, 0, placement))
        trainee.warm_up()
        schedule, wanted, sent = trainee.preconditioning.turn.schedule, [], []
        for (x, y), step in zip(trainee.batches(), range(6), strict=False):
            traffic = predicted_traffic(trainee, (x, y))  # where rows travel it depends on how many there are
            observed, refreshed = schedule.observes(step), schedule.refreshes(step)
            wanted.append(traffic.update + observed * traffic.observe + refreshed * traffic.refresh)
            before = sum(size for _, size in transport.messages)
            trainee.update(x, y)
            sent.append(sum(size for _, size in transport.messages) - before)
        return wanted, sent

    # What the first losses are behind is looked at once, with a backward pass, where layers are captured.
    looked = A_PASS if name == "normalised" and spec != "sgd" else 0
    for wanted, sent in together(2, work):
        assert sent[1:] == wanted[1:]
        assert sent[0] - wanted[0] == looked


def test_on_average_over_a_period():
    assert Traffic(update=10, observe=6, refresh=12).per_update(Amortisation(T=6, S=2)) == 10 + 2 + 2
