"""Data sets: name -> tensors on the device, read from files in the published format.

Small data lie on the device as one tensor and are indexed there; no loader, no worker process.
"""

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kfbench.config.problem_table import DATASETS, DatasetEntry
from kfbench.errors import UsageError
from kfbench.problems.curves import write_curves
from kfbench.problems.idx import idx_sha256, read_idx

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# Mean and deviation of --normalize "mnist", for every data set, as the FOOF paper did (its appendix D.5
# calls that an oversight; our runs are compared with its figures), and of "unit": pixels from 0 to 1.
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081
_FIXED = {"mnist": (MNIST_MEAN, MNIST_STD), "unit": (0.0, 1.0)}

# The order in which --train-samples takes the first N images: smaller sets lie within larger ones.
_SUBSET_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Inputs [n, 1, rows, columns], normalised; targets [n] class indices, or [n, pixels] the inputs."""

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    outputs: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.train_inputs.shape[1:])

    def first(self, train_samples: int | None) -> "Dataset":
        """With only the first N training samples of a fixed shuffle; all of them for None."""
        n = len(self.train_inputs)
        if train_samples is None:
            return self
        if train_samples > n:
            raise UsageError(f"train_samples is {train_samples}, the data set has {n}")
        # Drawn on the CPU, so that every device takes the same images.
        order = torch.randperm(n, generator=torch.Generator().manual_seed(_SUBSET_SEED))
        chosen = order[:train_samples].to(self.train_inputs.device)
        return replace(self, train_inputs=self.train_inputs[chosen], train_targets=self.train_targets[chosen])

    def to(self, device: torch.device) -> "Dataset":
        """On that device; the same tensors where they are there already."""
        if self.train_inputs.device == device:
            return self
        names = ("train_inputs", "train_targets", "test_inputs", "test_targets")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def reconstruction(self) -> "Dataset":
        """With the inputs themselves, flattened, as targets: what autoencoders are trained on."""
        return _reconstruction(self.train_inputs, self.test_inputs)


def _reconstruction(train: Tensor, test: Tensor) -> Dataset:
    targets = train.flatten(1), test.flatten(1)  # views: nothing is copied
    return Dataset(train, targets[0], test, targets[1], targets[0].shape[1])


def default_data_dir() -> Path:
    """Where ``data fetch`` puts files: KFBENCH_DATA, else the user's cache."""
    if configured := os.environ.get("KFBENCH_DATA"):
        return _expanded(configured)
    # "or": the XDG specification has an empty variable count as none.
    return _expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "kfbench"


def _expanded(folder: str) -> Path:
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise UsageError(f"folder {folder!r} of data sets cannot be found: {error}") from error


def find_files(name: str, data_dir: str | None) -> list[Path]:
    """The IDX files of a data set, plain or .gz; UsageError with the ways to get it if missing."""
    folders, files = _folders(name, data_dir), _files(DATASETS[name])
    for folder in folders:
        paths = [_plain_or_gzipped(folder / file) for file in files]
        if all(path is not None for path in paths):
            return [path for path in paths if path is not None]
        # Not passed over: it is where the data set is meant to be, and the next folder may hold another copy.
        if any(path is not None for path in paths):
            missing = next(file for file, path in zip(files, paths, strict=True) if path is None)
            raise UsageError(f"data set {name!r} is incomplete: {folder / missing} (or .gz) is missing")
    raise _missing(name, folders)


def file_states(name: str, data_dir: str | None) -> tuple[tuple[Any, ...], ...]:
    """Path, size and time of change of every file of a data set; nothing where they are not all there."""
    try:
        paths = find_files(name, data_dir)
    except UsageError:  # for whoever reads them to say
        return ()
    return tuple((str(path), (state := path.stat()).st_size, state.st_mtime_ns) for path in paths)


def _files(entry: DatasetEntry) -> tuple[str, ...]:
    """Images and labels of both parts, or images alone where there are no classes."""
    return FILES if entry.classes else FILES[::2]


def _base(data_dir: str | None) -> Path:
    return _expanded(data_dir) if data_dir else default_data_dir()


def _folders(name: str, data_dir: str | None) -> list[Path]:
    entry, base = DATASETS[name], _base(data_dir)
    if entry.synthetic:
        return [base / name]  # not base itself: the images of another data set may lie there
    if not entry.torchvision:
        return [Path(__file__).parent / name.replace("-", "_")]
    folders = [base / name, base / entry.torchvision / "raw", base]  # ours, torchvision's, or the files themselves
    if data_dir:  # meant in place of all others
        return folders
    # A folder that somebody names may hold the files itself; the user's cache does not.
    return [*(folders if os.environ.get("KFBENCH_DATA") else folders[:2]), *map(Path, entry.system_folders)]


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _missing(name: str, folders: list[Path]) -> UsageError:
    entry = DATASETS[name]
    ways = [f"{'generate' if entry.synthetic else 'fetch'} it with 'kfbench data fetch {name}'"]
    if entry.debian_package:
        ways.append(f"install Debian's package {entry.debian_package}")
    ways.append("point --data-dir or KFBENCH_DATA at a folder with its IDX files")
    looked = ", ".join(str(folder) for folder in folders)
    return UsageError(f"data set {name!r} was not found in {looked}: " + ", or ".join(ways))


def load_dataset(
    name: str,
    data_dir: str | None = None,
    normalize: str = "mnist",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    pad_to: int = 0,
) -> Dataset:
    """Read, check and normalise a data set; UsageError, one sentence, for every fault of a file.

    Images of fewer than ``pad_to`` pixels a side get as much black on both, an odd pixel below and to the right.
    A synthetic one is generated where it is missing. Without labels the targets are the inputs.
    """
    entry = DATASETS[name]
    paths = _generated(name, data_dir) if entry.synthetic else find_files(name, data_dir)
    pixels, labels = _read_checked(paths, entry)
    # Of the training images alone; the test set is treated alike.
    mean, std = _FIXED[normalize] if normalize in _FIXED else _mean_and_deviation(pixels[0], name)

    def images(x: Tensor) -> Tensor:
        return (
            _padded(x, pad_to).to(device, dtype).div_(255).sub_(mean).div_(std).unsqueeze(1)
        )  # in place: no copies in memory

    train, test = map(images, pixels)
    if not labels:
        return _reconstruction(train, test)
    return Dataset(train, labels[0].to(device), test, labels[1].to(device), entry.classes)


def _padded(images: Tensor, side: int) -> Tensor:
    """[..., rows, columns] with black around them, up to ``side`` pixels; the same tensor where nothing is to add."""
    missing = [max(side - size, 0) for size in reversed(images.shape[-2:])]  # as torch wants it: columns first
    return pad(images, [part for n in missing for part in (n // 2, n - n // 2)]) if any(missing) else images


def _mean_and_deviation(images: Tensor, name: str) -> tuple[float, float]:
    """Over all pixels of all images."""
    if images.min() == images.max():
        raise UsageError(f"data set {name!r} cannot be normalised: all pixels of its training images are equal")
    pixels = images.double() / 255  # float64: of Fashion-MNIST they are 47 million
    return float(pixels.mean()), float(pixels.std())


def _read_checked(paths: list[Path], entry: DatasetEntry) -> tuple[list[Tensor], list[Tensor]]:
    """Images of both parts, and their labels, which a data set without classes lacks."""
    images, labels = [], []
    half = len(paths) // 2
    for images_path, *labels_path in (paths[:half], paths[half:]):
        array = read_idx(images_path, dimensions=3)
        if array.size == 0:
            raise UsageError(f"{images_path} holds no images")
        images.append(torch.from_numpy(array.copy()))  # what lies in the file's bytes cannot be written to
        labels += [_read_labels(path, len(array), entry.classes) for path in labels_path]
    if images[0].shape[1:] != images[1].shape[1:]:
        shapes = " and ".join(str(tuple(x.shape[1:])) for x in images)
        raise UsageError(f"{paths[0]} and {paths[half]} have images of different shapes, {shapes}")
    return images, labels


def _read_labels(path: Path, images: int, classes: int) -> Tensor:
    labels = read_idx(path, dimensions=1)
    if len(labels) != images:
        raise UsageError(f"{path} has {len(labels)} labels for {images} images")
    if int(labels.max()) >= classes:
        raise UsageError(f"{path} has label {labels.max()}, expected 0 to {classes - 1}")
    return torch.from_numpy(labels.astype("int64"))


def check_dataset(name: str, data_dir: str | None = None) -> list[dict[str, str]]:
    """One row a file: where it lies, its SHA-256 when decompressed, and whether that is the known one."""
    paths = find_files(name, data_dir)
    _read_checked(paths, DATASETS[name])
    return _checksums(name, paths)


def _checksums(name: str, paths: list[Path]) -> list[dict[str, str]]:
    entry, rows = DATASETS[name], []
    for file, path in zip(_files(entry), paths, strict=True):
        digest = idx_sha256(path)
        known = entry.sha256.get(file)
        verdict = "readable, no checksum known" if known is None else "ok" if known == digest else "differs"
        rows.append({"file": str(path), "sha256": digest, "check": verdict})
    return rows


def fetch_dataset(name: str, data_dir: str | None = None) -> Path:
    """Download through torchvision, which verifies the published checksums, or generate; returns the folder."""
    entry = DATASETS[name]
    if entry.synthetic:
        return _generated(name, data_dir)[0].parent
    if not entry.torchvision:
        raise UsageError(f"data set {name!r} is carried in the package; there is nothing to fetch")
    import torchvision.datasets  # slow to import, and needed here only

    root = _base(data_dir)
    try:
        getattr(torchvision.datasets, entry.torchvision)(str(root), download=True)
    except Exception as error:  # the network, the disk or the mirror
        raise UsageError(f"fetching {name!r} to {root} failed: {error}") from error
    return find_files(name, str(root))[0].parent  # looked for again: one left out is an error now


def _generated(name: str, data_dir: str | None) -> list[Path]:
    """The files of a synthetic data set, generated where they are missing; a warning where they differ."""
    entry, folder = DATASETS[name], _folders(name, data_dir)[0]
    if folder.is_dir() and not any(_plain_or_gzipped(folder / file) for file in _files(entry)):
        raise UsageError(f"data set {name!r} is not in {folder}: remove that folder, then it is generated there anew")
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise UsageError(f"data set {name!r} cannot be generated: {folder} is there, and no folder")
        folder.parent.mkdir(parents=True, exist_ok=True)  # what is not writable fails first
        warnings.warn(f"generating the synthetic data set {name!r}, once, in {folder}", stacklevel=2)
        write_curves(folder, dict(zip(_files(entry), entry.sizes, strict=True)))
    paths = find_files(name, data_dir)
    if any(row["check"] == "differs" for row in _checksums(name, paths)):
        warnings.warn(
            f"data set {name!r} in {folder} is not the known one, so losses on it are not comparable with those of "
            "other machines; delete that folder to generate it anew",
            stacklevel=2,
        )
    return paths
