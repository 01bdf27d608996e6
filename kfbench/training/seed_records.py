"""What one seed leaves on the disk: two CSVs, checkpoints and a summary; of several processes the first writes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kfbench.results.records import CsvLog, write_json
from kfbench.training.checkpoint import load_checkpoint, remove_checkpoints, remove_reserve, save_checkpoint

Rows = Sequence[Mapping[str, Any]]


class SeedRecords:
    """Those in ``folder``, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder

    def load(self, go_on: Callable[[dict[str, Any]], None]) -> dict[str, Any] | None:
        """The newest checkpoint that ``go_on`` takes, None where there is none; CheckpointError where none is left."""
        return load_checkpoint(self._folder, go_on)

    def begin(self, columns: Sequence[str], epoch_columns: Sequence[str], keep_bytes: Sequence[int | None]) -> None:
        """New CSVs, or old ones cut back to so many bytes."""
        self._updates = CsvLog(self._folder / "updates.csv", columns, keep_bytes[0])
        self._epochs = CsvLog(self._folder / "epochs.csv", epoch_columns, keep_bytes[1])

    def append_updates(self, rows: Rows) -> None:
        """Whole lines."""
        self._updates.append(rows)

    def append_epochs(self, rows: Rows) -> None:
        """Likewise."""
        self._epochs.append(rows)

    def save(self, content: Mapping[str, Any]) -> None:
        """A checkpoint, with the lengths of both CSVs, which are on the disk before what counts on them."""
        save_checkpoint(self._folder, {**content, "bytes": [self._updates.sync(), self._epochs.sync()]})

    def close(self) -> None:
        """No more rows."""
        self._updates.close()
        self._epochs.close()

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """In summary.json."""
        write_json(self._folder / "summary.json", summary)

    def clear(self, keep_weights: bool) -> None:
        """Of a seed that has ended the last checkpoint stays, or none."""
        (remove_reserve if keep_weights else remove_checkpoints)(self._folder)


class Unwritten(SeedRecords):
    """For a process that another one writes for: nothing."""

    def __init__(self) -> None:
        """Without a folder."""

    def load(self, go_on: Callable[[dict[str, Any]], None]) -> None:
        """Nothing."""

    def begin(self, columns: Sequence[str], epoch_columns: Sequence[str], keep_bytes: Sequence[int | None]) -> None:
        """Nothing."""

    def append_updates(self, rows: Rows) -> None:
        """Nothing."""

    def append_epochs(self, rows: Rows) -> None:
        """Nothing."""

    def save(self, content: Mapping[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""

    def summarise(self, summary: Mapping[str, Any]) -> None:
        """Nothing."""

    def clear(self, keep_weights: bool) -> None:
        """Nothing."""
