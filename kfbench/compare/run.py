"""`compare`: trains what is missing of several methods, under one protocol."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfbench.compare.spread import check_by, train_by
from kfbench.config.identity import fingerprint, trajectory
from kfbench.config.load import dump, load_config
from kfbench.config.schema import Config
from kfbench.errors import UsageError
from kfbench.executors.contract import Executor
from kfbench.results.environment import environment
from kfbench.results.locking import lock
from kfbench.results.records import ENDED, write_json, write_yaml
from kfbench.results.seed_folder import summary_of_ended
from kfbench.training.interruption import Interruption
from kfbench.training.observer import Observer
from kfbench.training.places import executor_of_trials
from kfbench.training.run import check, train


def compare(
    config: Config,
    directory: Path,
    observer: Callable[[Config], Observer],
    begin: Callable[[], None] | None = None,
    tell: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Train every method and seed that has not ended into ``directory``, which exists.

    One after the other in this process, or by the executor that the configuration names, of which ``tell`` gets a
    sentence about each seed.
    Returns ``status`` ("done" or "interrupted"), ``folders``, method label -> folder of its run, and how many
    methods were ``reused`` because all their seeds had ended before.
    ``observer`` makes one for the configuration of each method. UsageError for what does not fit,
    before the first update of any. ``begin`` makes way for it once everything fits: what lies there until then is
    not read.
    """
    singles = [config.with_methods([method]) for method in config.methods]
    # More than one at a time is asked of processes.
    placed = config.compare.executor is not None or config.compare.jobs > 1
    train_missing = _Placed(config, tell) if placed else _Here(observer)
    if begin is not None:
        train_missing.check(singles, None)
        begin()
    folders = {single.methods[0].label: run_folder(single, directory) for single in singles}
    handle = lock(directory)  # before it is seen what is missing: another command may be training that
    try:
        runs = {folders[single.methods[0].label]: single for single in singles}
        missing = {folder: single for folder, single in runs.items() if not _ended(single, folder)}
        # All are built before the first is trained, so that none is refused after hours.
        where = train_missing.check(list(missing.values()), directory) if missing else {}
        # First: by it the folder is known as one of ours.
        write_yaml(directory / "config.yaml", dump(config, "compare"))
        if missing:
            write_json(directory / "environment.json", where)
        with Interruption() as stop:
            done = train_missing.train(missing, directory, stop) if missing else True
    finally:
        os.close(handle)
    return {"status": "done" if done else "interrupted", "folders": folders, "reused": len(singles) - len(missing)}


class _Here:
    """In this process, one method after the other."""

    def __init__(self, observer: Callable[[Config], Observer]) -> None:
        self._observer = observer

    def check(self, singles: Sequence[Config], directory: Path | None) -> dict[str, Any]:
        """UsageError for what does not fit; returns the environment."""
        for single in singles:
            device = check(single).device
        return environment(device, singles[-1].run.amp)

    def train(self, missing: Mapping[Path, Config], directory: Path, stop: Interruption) -> bool:
        """Whether all were reached."""
        for folder, single in missing.items():
            folder.mkdir(exist_ok=True)
            summary = train(single, folder, self._observer(single), resume=True, keep_weights=False, stop=stop)
            if stop.requested:
                # The signal may have come when there was nothing left to do.
                return bool(summary["status"] != "interrupted" and folder == list(missing)[-1])
        return True


class _Placed:
    """By an executor, which each of these begins and ends."""

    def __init__(self, config: Config, tell: Callable[[str], None]) -> None:
        self._config, self._tell = config, tell

    def check(self, singles: Sequence[Config], directory: Path | None) -> dict[str, Any]:
        """As above, where they will be trained."""
        with self._executor(1, directory) as executor:
            return check_by(executor, singles)

    def train(self, missing: Mapping[Path, Config], directory: Path, stop: Interruption) -> bool:
        """Whether all were reached."""
        with self._executor(self._config.compare.jobs, directory) as executor:
            return train_by(executor, missing, stop, self._tell)

    @contextmanager
    def _executor(self, jobs: int, directory: Path | None) -> Iterator[Executor]:
        first = self._config.with_methods(self._config.methods[:1])
        executor = executor_of_trials(self._config.compare, jobs, first, directory)
        try:
            yield executor
        finally:
            executor.stop()


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
