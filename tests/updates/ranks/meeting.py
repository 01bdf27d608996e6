"""Several ranks as threads of this process: the same calls as between processes, and bytes counted by themselves."""

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import torch

from kfbench.config.load import load_config
from kfbench.config.method_table import METHODS
from kfbench.updates.build import build_data
from kfbench.updates.ranks.sharing import Several
from kfbench.updates.trainee import Trainee

CPU = torch.device("cpu")


def few_numbers():
    """A data set of eight numbers a sample: factors of its batches have an inverse, and eigenvectors of their own.

    Of a factor that has none the basis of its null space is LAPACK's choice, and EKFAC's directions depend on it.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(182, 8, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 2, 8)
    y = (x[:, :3] + torch.randn(182, 3, generator=generator)).argmax(1)
    return x[:82], y[:82], x[82:], y[82:]


def few_images():
    """The same of images, 8 x 8."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(142, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x[:82], (x[:82].sum((1, 2, 3)) > 32).long(), x[82:], (x[82:].sum((1, 2, 3)) > 32).long()


class Meeting:
    """Where threads leave what they have, wait for each other, and take what the others left."""

    def __init__(self, size):
        self.size, self._slots, self._barrier = size, [None] * size, threading.Barrier(size, timeout=60)

    def exchange(self, rank, value):
        self._slots[rank] = value
        self._barrier.wait()
        found = list(self._slots)
        self._barrier.wait()  # nobody writes anew before all have read
        return found

    def close(self):
        self._barrier.abort()


class ThreadTransport:
    """One thread's end of a meeting."""

    def __init__(self, meeting, rank):
        self._meeting, self.rank, self.size = meeting, rank, meeting.size
        self.bytes_sent, self.seconds, self.messages = 0, 0.0, []

    def add_up(self, flat):
        self._count("add_up", flat)
        flat.copy_(torch.stack(self._meeting.exchange(self.rank, flat.clone())).sum(0))

    def hand_on(self, flats):
        for owner, flat in enumerate(flats):
            self._count("hand_on", flat)
            flat.copy_(self._meeting.exchange(self.rank, flat.clone())[owner])

    def largest(self, value):
        return max(self._meeting.exchange(self.rank, value))

    def all_objects(self, value):
        return self._meeting.exchange(self.rank, value)

    def from_first(self, value):
        return self._meeting.exchange(self.rank, value)[0]

    def _count(self, what, flat):
        self.messages.append((what, len(bytes(flat.numpy()))))
        self.bytes_sent += flat.numel() * flat.element_size()


def together(size, work):
    """What ``work(transport)`` returns in each of so many threads; the error of the first that fails."""
    meeting = Meeting(size)

    def guarded(rank):
        try:
            return work(ThreadTransport(meeting, rank))
        except BaseException:
            meeting.close()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(guarded, rank) for rank in range(size)]
        errors = [e for f in futures if (e := f.exception()) is not None]
        own = [e for e in errors if not isinstance(e, threading.BrokenBarrierError)]
        if errors:
            raise (own or errors)[0]
        return [f.result() for f in futures]


def config_of(spec, **flags):
    """A tiny problem in float64, on which every method trains."""
    usual = {"width": 12, "train_samples": 82, "eval_samples": 50, "batch_size": 20, "dtype": "float64"}
    entry = METHODS.get(spec.split(":")[0])
    if entry is not None and entry.accepts("warmup_batches"):
        usual["warmup_batches"] = 2
    return load_config(specs=[spec], flags=usual | flags)


def trained(config, updates, size=1, make=Several, placement="spread"):
    """(losses, weights, trainee) after some updates: of one process, or of each of several."""
    data = build_data(config, CPU)

    def work(transport):
        with _BUILDING:  # weights are drawn from the random state of the whole process
            trainee = Trainee(config, data, 0, CPU, make(transport, 0, placement))
        return run(trainee, updates)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if size == 1:
            return run(Trainee(config, data, 0, CPU), updates)
        return together(size, work)


_BUILDING = threading.Lock()


def run(trainee, updates):
    """As ``trained``."""
    trainee.warm_up()
    losses = []
    for (x, y), _ in zip(trainee.batches(), range(updates), strict=False):
        losses.append(float(trainee.update(x, y)))
    weights = torch.cat([p.detach().flatten() for p in trainee.model.parameters()])
    return losses, weights, trainee
