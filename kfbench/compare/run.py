"""`compare`: trains what is missing of several methods, under one protocol."""

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfbench.config.identity import fingerprint, trajectory
from kfbench.config.load import dump, load_config
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.results.environment import environment
from kfbench.results.locking import lock
from kfbench.results.records import ENDED, write_json, write_yaml
from kfbench.results.seed_folder import summary_of_ended
from kfbench.training.interruption import Interruption
from kfbench.training.observer import Observer
from kfbench.training.run import check, train


def compare(
    config: Config,
    directory: Path,
    observer: Callable[[Config], Observer],
    begin: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train every method and seed that has not ended into ``directory``, which exists; one method after the other.

    Returns ``status`` ("done" or "interrupted"), ``folders``, method label -> folder of its run, and how many
    methods were ``reused`` because all their seeds had ended before.
    ``observer`` makes one for the configuration of each method. UsageError for what does not fit,
    before the first update of any. ``begin`` makes way for it once everything fits: what lies there until then is
    not read.
    """
    singles = [config.with_methods([method]) for method in config.methods]
    if begin is not None:
        for single in singles:
            check(single)
        begin()
    folders = {single.methods[0].label: run_folder(single, directory) for single in singles}
    handle = lock(directory)  # before it is seen what is missing: another command may be training that
    try:
        missing = [single for single in singles if not _ended(single, folders[single.methods[0].label])]
        # All are built before the first is trained, so that none is refused after hours.
        if missing:
            for single in missing:
                device = check(single).device
        # First: by it the folder is known as one of ours.
        write_yaml(directory / "config.yaml", dump(config, "compare"))
        if missing:
            write_json(directory / "environment.json", environment(device, config.run.amp))
        status = "done"
        with Interruption() as stop:
            for single in missing:
                folder = folders[single.methods[0].label]
                folder.mkdir(exist_ok=True)
                summary = train(single, folder, observer(single), resume=True, keep_weights=False, stop=stop)
                if stop.requested:
                    # The signal may have come when there was nothing left to do.
                    ended = summary["status"] != "interrupted" and single is missing[-1]
                    status = "done" if ended else "interrupted"
                    break
    finally:
        os.close(handle)
    return {"status": status, "folders": folders, "reused": len(singles) - len(missing)}


def run_folder(single: Config, directory: Path) -> Path:
    """DIR/LABEL; where another command's method of that label lies there, DIR/LABEL-HASH.

    A label names only the options in which the methods of one command differ.
    """
    label, content = single.methods[0].label, trajectory(single)
    plain = directory / label
    return plain if _free_or_same(plain, content) else directory / f"{label}-{fingerprint(content)[:6]}"


def _free_or_same(folder: Path, content: Mapping[str, Any]) -> bool:
    file = folder / "config.yaml"
    try:
        return not file.is_file() or trajectory(load_config(file)) == content
    except UsageError as error:  # torn, or edited by hand: what lies there may be of anything
        warnings.warn(f"{error}; the method is trained into a folder beside it", stacklevel=3)
        return False


def _ended(single: Config, folder: Path) -> bool:
    seeds = range(single.run.seed, single.run.seed + single.run.seeds)
    summaries = [summary_of_ended(folder / f"seed-{seed}") for seed in seeds]
    return (folder / "config.yaml").is_file() and all(summary.get("status") in ENDED for summary in summaries)
