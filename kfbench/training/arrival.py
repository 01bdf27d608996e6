"""What a node of a cluster does before its first trial: it fetches the data set, once, and verifies its checksums."""

import fcntl
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kfbench.config.identity import fingerprint
from kfbench.config.problem_table import DATASETS
from kfbench.errors import UsageError
from kfbench.problems.datasets import check_dataset, fetch_dataset
from kfbench.problems.locations import default_data_dir, file_states


def prepare(tree: Mapping[str, Any]) -> None:
    """Make sure of the published data set of a dumped configuration; UsageError where it is missing, or another.

    What lies in a folder that was named is trained on as it is, as on the leader; a user's own data set has a digest
    in the configuration, by which the trial itself knows it.
    """
    name, data_dir = tree["problem"]["dataset"], tree["problem"].get("data_dir")
    entry = DATASETS.get(name)
    if entry is None or data_dir is not None or not (entry.torchvision or entry.url):
        return
    # Of all that come to a node at once the first fetches, the others find it.
    with _alone(default_data_dir()):
        if not file_states(name, None):
            fetch_dataset(name)
        # By size and time of change: it takes a second to read a large one, and a trial may take less.
        verified = Path(tempfile.gettempdir()) / f"kfbench-verified-{os.getuid()}-{_state(name)}"
        if verified.exists():
            return
        if wrong := [row["file"] for row in check_dataset(name) if row["check"] == "differs"]:
            raise UsageError(f"data set {name!r} has another checksum than the known one: {', '.join(wrong)}")
        verified.touch()


def _state(name: str) -> str:
    return fingerprint({"files": file_states(name, None)})


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of the node at a time, where the file system can lock."""
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
