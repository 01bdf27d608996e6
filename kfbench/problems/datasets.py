"""Data sets: name -> tensors on the device, read from the published files.

Small data lie on the device as one tensor and are indexed there; no loader, no worker process.
"""

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from kfbench.errors import UsageError
from kfbench.problems.idx import idx_content, read_idx
from kfbench.registry import DATASETS, DatasetEntry

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)

# What --normalize may be: "mnist" is MNIST's mean and deviation for every data set, as the FOOF
# paper did (its appendix D.5 calls that an oversight; our runs are compared with its figures).
MNIST_MEAN, MNIST_STD = 0.1307, 0.3081

# The order in which --train-samples takes the first N images.
_SUBSET_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Inputs [n, 1, rows, columns], normalised; targets [n] class indices."""

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
        order = torch.randperm(n, generator=torch.Generator().manual_seed(_SUBSET_SEED))
        chosen = order[:train_samples].to(self.train_inputs.device)
        return replace(self, train_inputs=self.train_inputs[chosen], train_targets=self.train_targets[chosen])


def default_data_dir() -> Path:
    """Where ``data fetch`` puts files: KFBENCH_DATA, else the user's cache."""
    if configured := os.environ.get("KFBENCH_DATA"):
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "kfbench"


def find_files(name: str, data_dir: str | None) -> list[Path]:
    """The four IDX files of a data set, plain or .gz; UsageError with the ways to get it if missing."""
    folders = _folders(name, data_dir)
    for folder in folders:
        found = [_plain_or_gzipped(folder / file) for file in FILES]
        if all(path is not None for path in found):
            return [path for path in found if path is not None]
        if any(path is not None for path in found):
            missing = next(file for file, path in zip(FILES, found, strict=True) if path is None)
            raise UsageError(f"data set {name!r} is incomplete: {folder / missing} (or .gz) is missing")
    raise _missing(name, folders)


def _folders(name: str, data_dir: str | None) -> list[Path]:
    entry = DATASETS[name]
    if not entry.torchvision:
        return [Path(__file__).parent / name.replace("-", "_")]
    base = Path(data_dir).expanduser() if data_dir else default_data_dir()
    folders = [base / name, base / entry.torchvision / "raw", base]
    explicit = data_dir or os.environ.get("KFBENCH_DATA")
    return folders if explicit else [*folders[:2], *map(Path, entry.system_folders)]


def _plain_or_gzipped(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def _missing(name: str, folders: list[Path]) -> UsageError:
    entry = DATASETS[name]
    ways = [f"fetch it with 'kfbench data fetch {name}'"]
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
) -> Dataset:
    """Read, check and normalise a data set; UsageError, one sentence, for every fault of a file."""
    entry = DATASETS[name]
    train_x, train_y, test_x, test_y = _read_checked(find_files(name, data_dir), entry)
    mean, std = MNIST_MEAN, MNIST_STD
    if normalize == "own":
        if train_x.min() == train_x.max():
            raise UsageError(f"data set {name!r} cannot be normalised: all pixels of its training images are equal")
        pixels = train_x.double() / 255
        mean, std = float(pixels.mean()), float(pixels.std())

    def images(x: Tensor) -> Tensor:
        return x.to(device, dtype).div_(255).sub_(mean).div_(std).unsqueeze(1)  # in place: no copies in memory

    return Dataset(images(train_x), train_y.to(device), images(test_x), test_y.to(device), entry.classes)


def _read_checked(paths: list[Path], entry: DatasetEntry) -> list[Tensor]:
    tensors = []
    for images_path, labels_path in (paths[:2], paths[2:]):
        images, labels = read_idx(images_path, dimensions=3), read_idx(labels_path, dimensions=1)
        if images.size == 0:
            raise UsageError(f"{images_path} holds no images")
        if len(images) != len(labels):
            raise UsageError(f"{labels_path} has {len(labels)} labels for {len(images)} images")
        if int(labels.max()) >= entry.classes:
            raise UsageError(f"{labels_path} has label {labels.max()}, expected 0 to {entry.classes - 1}")
        tensors += [torch.from_numpy(images.copy()), torch.from_numpy(labels.astype("int64"))]
    if tensors[0].shape[1:] != tensors[2].shape[1:]:
        shapes = " and ".join(str(tuple(t.shape[1:])) for t in (tensors[0], tensors[2]))
        raise UsageError(f"{paths[0]} and {paths[2]} have images of different shapes, {shapes}")
    return tensors


def check_dataset(name: str, data_dir: str | None = None) -> list[dict[str, str]]:
    """One row a file: where it lies, its SHA-256 when decompressed, and whether that is the known one."""
    entry = DATASETS[name]
    paths = find_files(name, data_dir)
    _read_checked(paths, entry)
    rows = []
    for file, path in zip(FILES, paths, strict=True):
        digest = hashlib.sha256(idx_content(path)).hexdigest()
        known = entry.sha256.get(file)
        verdict = "readable, no checksum known" if known is None else "ok" if known == digest else "differs"
        rows.append({"file": str(path), "sha256": digest, "check": verdict})
    return rows


def fetch_dataset(name: str, data_dir: str | None = None) -> Path:
    """Download through torchvision, which verifies the published checksums; returns the folder."""
    entry = DATASETS[name]
    if not entry.torchvision:
        raise UsageError(f"data set {name!r} is carried in the package; there is nothing to fetch")
    import torchvision.datasets  # slow to import, and needed here only

    root = Path(data_dir).expanduser() if data_dir else default_data_dir()
    try:
        getattr(torchvision.datasets, entry.torchvision)(str(root), download=True)
    except Exception as error:  # the network, the disk or the mirror
        raise UsageError(f"fetching {name!r} to {root} failed: {error}") from error
    return find_files(name, str(root))[0].parent
