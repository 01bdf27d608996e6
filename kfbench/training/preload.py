"""Imported once by the server that forks trials: torch, our own modules and the data set are then at hand in each.

One thread from the start: a process that has ever run threads of OpenMP cannot be forked safely.
"""

import json
import os

import torch

from kfbench.executors.processes import PRELOAD_VARIABLE
from kfbench.results.environment import environment
from kfbench.training.worker import preload_data

torch.set_num_threads(1)
torch.optim.SGD([torch.zeros(1)], lr=1.0)  # the first optimizer of a process imports torch's compiler: 1 to 2 s
environment(torch.device("cpu"))  # versions and commit take longer to find than a short trial's updates
if _given := os.environ.get(PRELOAD_VARIABLE):
    preload_data(json.loads(_given))
