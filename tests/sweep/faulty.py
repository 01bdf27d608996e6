"""Optimizers that go wrong in a chosen way, for tests of what becomes of the others' trials."""

import errno
import os
import signal
import time
from pathlib import Path

import torch


class Faulty(torch.optim.SGD):
    """SGD that fails at the third step where lr is above 0.2, as often as ``times`` says.

    Every attempt leaves a line in the file ``marker``.
    """

    def __init__(self, params, lr=0.1, how="none", marker="", times=99):
        super().__init__(params, lr=lr)
        self.how, self.marker, self.times, self.taken = how, marker, times, 0

    def step(self, closure=None):
        self.taken += 1
        if self.taken == 3 and self.param_groups[0]["lr"] > 0.2:
            self._fail()
        return super().step(closure)

    def _fail(self):
        marker = Path(self.marker)
        with open(marker, "a") as file:
            file.write("attempt\n")
        if len(marker.read_text().splitlines()) > self.times:
            return
        if self.how == "exit":
            os._exit(7)
        if self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.how == "hang":
            time.sleep(1000)
        if self.how == "term":
            os.kill(os.getpid(), signal.SIGTERM)
        if self.how == "network":
            raise ConnectionError("nobody answers")
        if self.how == "raise":
            raise RuntimeError("no such luck")
        if self.how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "updates.csv")


class Beating(torch.optim.SGD):
    """Writes to ``marker`` at every step, a tenth of a second apart: whoever looks sees that it lives."""

    def __init__(self, params, lr=0.1, marker=""):
        super().__init__(params, lr=lr)
        self.marker = marker

    def step(self, closure=None):
        time.sleep(0.1)
        with open(self.marker, "a") as file:
            file.write(".")
        return super().step(closure)


class Ascending(torch.optim.SGD):
    """Climbs: its loss grows without ever being infinite."""

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = -p.grad / (p.grad.norm() + 1e-12)
        return super().step(closure)


class Spiking(torch.optim.SGD):
    """One terrible step among good ones."""

    taken = 0

    def step(self, closure=None):
        self.taken += 1
        factor = {5: 1e3, 6: 1e-3}.get(self.taken)
        if factor is None:
            return super().step(closure)
        with torch.no_grad():
            torch._foreach_mul_([p for group in self.param_groups for p in group["params"]], factor)
        return None
