"""Bytes counted from the sizes of layers are those that travel."""

import pytest

from kfbench.updates.ranks.sharing import Several
from kfbench.updates.ranks.traffic import predicted_traffic
from kfbench.updates.trainee import Trainee
from tests.updates.ranks.meeting import CPU, build_data, config_of, together
from tests.updates.ranks.test_sharing import CONVOLUTIONS, NUMBERS, SEQUENCES

SPECS = ["sgd", "foof:T=3,S=2", "kfac:T=3,S=2", "kfac:T=3,S=2,damping_kind=standard", "ekfac:T=3,S=2"]
SPECS += ["ekfac:T=3,S=2,fisher=sampled", "ekfac-ra:T=3,S=2", "foof-kfac-damping:T=3,S=2", "soap:T=3"]


@pytest.mark.parametrize(
    ("problem", "placement"),
    [(NUMBERS, "spread"), (NUMBERS, "replicated"), (CONVOLUTIONS, "spread"), (SEQUENCES, "spread")],
    ids=["mlp", "mlp replicated", "convnet", "transformer"],
)
@pytest.mark.parametrize("spec", SPECS)
def test_bytes_are_those_counted(spec, problem, placement):
    config = config_of(spec, **problem)
    data = build_data(config, CPU)

    def work(transport):
        trainee = Trainee(config, data, 0, CPU, Several(transport, 0, placement))
        trainee.warm_up()
        traffic, sent = predicted_traffic(trainee, next(trainee.batches())), []
        for (x, y), _ in zip(trainee.batches(), range(6), strict=False):
            before = sum(size for _, size in transport.messages)
            trainee.update(x, y)
            sent.append(sum(size for _, size in transport.messages) - before)
        return traffic, sent, trainee.preconditioning.turn.schedule, transport

    traffic, sent, schedule, transport = together(2, work)[0]
    wanted = [
        traffic.update + schedule.observes(step) * traffic.observe + schedule.refreshes(step) * traffic.refresh
        for step in range(6)
    ]
    assert sent == wanted
    assert sum(sent[:3]) / 3 == pytest.approx(traffic.per_update(schedule))
    assert transport.bytes_sent == sum(size for _, size in transport.messages)
