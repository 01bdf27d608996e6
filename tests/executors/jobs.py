"""What jobs of the tests do: plain functions, by path."""

import os
import signal
import time
from pathlib import Path


def write(content, folder, anew):
    """Leave it in the folder, and say where that was."""
    Path(folder, "result.txt").write_text(content)
    return folder


def grow(seconds, folder, anew):
    """Count on from the checkpoint, ten times a second, to the end or until somebody asks for one."""
    path, counted = Path(folder, "checkpoint.pt"), 0
    if path.exists() and not anew:
        counted = int(path.read_text())
    begun, ended = counted, []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    while counted < 10 * seconds and not ended:
        time.sleep(0.1)
        counted += 1
        with open(Path(folder, "rows.csv"), "a") as file:
            file.write(f"{counted}\n")
        path.with_suffix(".new").write_text(str(counted))
        os.replace(path.with_suffix(".new"), path)
    return {"begun": begun, "ended": counted}


def nap(seconds):
    """A job that costs nothing but time."""
    time.sleep(seconds)


def prepare(preload):
    """Nothing is missing."""


def refuse(preload):
    """Something is."""
    from kfbench.errors import UsageError

    raise UsageError("no data here")


def look(*arguments):
    """A first look at a method that takes a second, so that every worker gets one."""
    time.sleep(1.0)
    return {"seconds": 1.0, "slowest_update": 0.01, "environment": {}}
