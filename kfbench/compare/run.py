"""`compare`: trains what is missing of several methods, under one protocol."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kfbench.config.identity import fingerprint, trajectory
from kfbench.config.load import dump, load_config
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.results.environment import environment
from kfbench.results.folders import lock
from kfbench.results.records import ENDED, json_or_empty, write_json, write_yaml
from kfbench.training.interruption import Interruption
from kfbench.training.observer import Observer
from kfbench.training.run import check, train


def compare(config: Config, directory: Path, observer: Callable[[Config], Observer]) -> dict[str, Any]:
    """Train every method and seed that has not ended into ``directory``, which exists; one method after the other.

    Returns ``status`` ("done" or "interrupted"), ``folders``, method label -> folder of its run, and how many
    methods were ``reused`` because all their seeds had ended before.
    ``observer`` makes one for the configuration of each method. UsageError for what does not fit,
    before the first update of any.
    """
    singles = [config.with_methods([method]) for method in config.methods]
    folders = {single.methods[0].label: run_folder(single, directory) for single in singles}
    handle = lock(directory)
    try:
        missing = [single for single in singles if not _ended(single, folders[single.methods[0].label])]
        if missing:
            for single in missing:
                device = check(single).device
            write_json(directory / "environment.json", environment(device))
        write_yaml(directory / "config.yaml", dump(config, "compare"))
        status = "done"
        with Interruption() as stop:
            for single in missing:
                folder = folders[single.methods[0].label]
                folder.mkdir(exist_ok=True)
                summary = train(single, folder, observer(single), resume=True, keep_weights=False, stop=stop)
                if stop.requested:
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
    except UsageError:  # somebody has edited it
        return False


def _ended(single: Config, folder: Path) -> bool:
    seeds = range(single.run.seed, single.run.seed + single.run.seeds)
    summaries = [json_or_empty(folder / f"seed-{seed}" / "summary.json") for seed in seeds]
    return (folder / "config.yaml").is_file() and all(summary.get("status") in ENDED for summary in summaries)
