"""Where the files of a data set lie, and the ways to get them."""

import os
from pathlib import Path
from typing import Any

from kfbench.config.problem_table import DATASETS, OWN_FILES, DatasetEntry, is_own_text
from kfbench.errors import UsageError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def files_of(entry: DatasetEntry) -> tuple[str, ...]:
    """As published: of IDX images and labels of both parts, or images alone without classes; else the test set last."""
    if entry.md5:
        return tuple(entry.md5)
    if entry.text:
        return (entry.text,)
    return FILES if entry.classes else FILES[::2]


def default_data_dir() -> Path:
    """Where ``data fetch`` puts files: KFBENCH_DATA, else the user's cache."""
    if configured := os.environ.get("KFBENCH_DATA"):
        return _expanded(configured)
    # "or": the XDG specification has an empty variable count as none.
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "kfbench"


def base_folder(data_dir: str | None) -> Path:
    """That of --data-dir, or the default one."""
    return _expanded(data_dir) if data_dir else default_data_dir()


def _expanded(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise UsageError(f"folder {folder!r} of data sets cannot be found: {error}") from error


def find_files(name: str, data_dir: str | None) -> list[Path]:
    """The files of a data set, IDX plain or .gz; UsageError with the ways to get it if missing."""
    entry = DATASETS[name]
    folders, files = folders_of(name, data_dir), files_of(entry)
    for folder in folders:
        paths = [_plain_or_gzipped(folder / file, entry) for file in files]
        if all(path is not None for path in paths):
            return [path for path in paths if path is not None]
        # Not passed over: it is where the data set is meant to be, and the next folder may hold another copy.
        if any(path is not None for path in paths):
            missing = next(file for file, path in zip(files, paths, strict=True) if path is None)
            or_zipped = "" if entry.md5 else " (or .gz)"
            raise UsageError(f"data set {name!r} is incomplete: {folder / missing}{or_zipped} is missing")
    raise _missing(name, folders)


def any_file_in(folder: Path, entry: DatasetEntry) -> bool:
    """Whether one of the data set's lies there."""
    return any(_plain_or_gzipped(folder / file, entry) for file in files_of(entry))


def file_states(name: str, data_dir: str | None) -> tuple[tuple[Any, ...], ...]:
    """Path, size and time of change of every file of a data set; nothing where they are not all there."""
    try:
        is_path = is_own_text(name) or name.endswith(OWN_FILES)
        paths = [Path(name).expanduser()] if is_path else find_files(name, data_dir)
        return tuple((str(path), (state := path.stat()).st_size, state.st_mtime_ns) for path in paths)
    except (UsageError, OSError, RuntimeError):  # for whoever reads them to say
        return ()


def folders_of(name: str, data_dir: str | None) -> list[Path]:
    """Where a data set is looked for, in this order."""
    entry, base = DATASETS[name], base_folder(data_dir)
    if entry.synthetic:
        return [base / name]  # not base itself: the images of another data set may lie there
    if not entry.torchvision and not entry.url:
        return [Path(__file__).parent / name.replace("-", "_")]
    # Ours, torchvision's below it or below the base, or the files themselves.
    theirs = [base / name / entry.folder, base / entry.folder] if entry.folder else []
    folders = [base / name, *theirs]
    if data_dir:  # meant in place of all others
        return [*folders, base]
    # A folder that somebody names may hold the files themselves; the user's cache does not.
    return [*folders, *([base] if os.environ.get("KFBENCH_DATA") else []), *map(Path, entry.system_folders)]


def _plain_or_gzipped(path: Path, entry: DatasetEntry) -> Path | None:
    zipped = () if entry.md5 else (path.with_name(path.name + ".gz"),)  # only IDX files are published so
    return next((p for p in (path, *zipped) if p.is_file()), None)


def way_to_get(name: str) -> str:
    """The one that works everywhere."""
    entry = DATASETS[name]
    if entry.url:
        return f"download it from {entry.url}"
    return f"{'generate' if entry.synthetic else 'fetch'} it with 'kfbench data fetch {name}'"


def _missing(name: str, folders: list[Path]) -> UsageError:
    entry = DATASETS[name]
    ways = [way_to_get(name)]
    if entry.debian_package:
        ways.append(f"install Debian's package {entry.debian_package}")
    kind = f"file{'s' * (len(entry.md5) > 1)} {', '.join(entry.md5)}" if entry.md5 else "IDX files"
    ways.append(f"point --data-dir or KFBENCH_DATA at a folder with its {kind}")
    looked = ", ".join(str(folder) for folder in folders)
    return UsageError(f"data set {name!r} was not found in {looked}: " + ", or ".join(ways))
