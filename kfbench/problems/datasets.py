"""Data sets: name -> tensors on the device, read from files in the published format.

Small data lie on the device as one tensor and are indexed there; no loader, no worker process.
"""

import hashlib
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from kfbench.config.problem_table import DATASETS
from kfbench.errors import UsageError
from kfbench.problems.curves import write_curves
from kfbench.problems.idx import idx_sha256
from kfbench.problems.images import read_images
from kfbench.problems.locations import any_file_in, base_folder, files_of, find_files, folders_of, way_to_get

# Mean and deviation of --normalize "mnist", for every data set, as the FOOF paper did (its appendix D.5
# calls that an oversight; our runs are compared with its figures), and of "unit": pixels from 0 to 1.
_FIXED = {"mnist": (0.1307, 0.3081), "unit": (0.0, 1.0)}

# The order in which --train-samples takes the first N images: smaller sets lie within larger ones.
_SUBSET_SEED = 0


@dataclass(frozen=True)
class Dataset:
    """Inputs [n, channels, rows, columns], normalised; targets [n] class indices, or [n, pixels] the inputs.

    Of a text both are [n, positions] whole numbers, each a place in the vocabulary of ``outputs`` characters.
    """

    train_inputs: Tensor
    train_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor
    outputs: int
    black: Tensor | None = None  # [channels] a black pixel, normalised
    augment: str = "none"  # how training images are varied when batches are drawn
    positions: int = 0  # labels of one sample, where it has one at every position

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of what a model returns for one input."""
        return (self.positions, self.outputs) if self.positions else (self.outputs,)

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
        tensors: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **tensors)

    def reconstruction(self) -> "Dataset":
        """With the inputs themselves, flattened, as targets: what autoencoders are trained on."""
        return _reconstruction(self.train_inputs, self.test_inputs)


def _reconstruction(train: Tensor, test: Tensor) -> Dataset:
    targets = train.flatten(1), test.flatten(1)  # views: nothing is copied
    return Dataset(train, targets[0], test, targets[1], targets[0].shape[1])


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
    pixels, labels = read_images(paths, entry)
    scales = _means_and_deviations(name, normalize, pixels[0])

    def normalised(x: Tensor) -> Tensor:
        x = x.to(device, dtype).div_(_white(x))
        for channel, (mean, std) in enumerate(scales):
            x[:, channel].sub_(mean).div_(std)  # in place: no copies in memory
        return x

    train, test = (normalised(_padded(x, pad_to)) for x in pixels)
    if not labels:
        return _reconstruction(train, test)
    black = normalised(torch.zeros(1, train.shape[1])).squeeze(0)
    return Dataset(train, labels[0].to(device), test, labels[1].to(device), entry.classes, black)


def _white(images: Tensor) -> int:
    """What counts as 1: bytes go up to 255, files of real numbers have their own scale."""
    return 255 if images.dtype == torch.uint8 else 1


def _padded(images: Tensor, side: int) -> Tensor:
    """[..., rows, columns] with black around them, up to ``side`` pixels; the same tensor where nothing is to add."""
    missing = [max(side - size, 0) for size in reversed(images.shape[-2:])]  # as torch wants it: columns first
    return pad(images, [part for n in missing for part in (n // 2, n - n // 2)]) if any(missing) else images


def _means_and_deviations(name: str, normalize: str, training: Tensor) -> list[tuple[float, float]]:
    """Of each channel, bytes being from 0 to 1; the data set's own are those of its training images alone."""
    if normalize == "published":
        return list(DATASETS[name].channels)
    channels = training.unbind(1)
    return [_FIXED[normalize] if normalize in _FIXED else _own_mean_and_deviation(x, name) for x in channels]


def _own_mean_and_deviation(images: Tensor, name: str) -> tuple[float, float]:
    """Over all pixels of one channel of all images; what is done to the training set is done to the test set."""
    if images.min() == images.max():
        raise UsageError(f"data set {name!r} cannot be normalised: all pixels of its training images are equal")
    pixels = images.double() / _white(images)  # float64: of Fashion-MNIST they are 47 million
    return float(pixels.mean()), float(pixels.std())


def check_dataset(name: str, data_dir: str | None = None) -> list[dict[str, str]]:
    """One row a file: where it lies, its checksum, and whether that is the known one.

    Of IDX files and texts it is the SHA-256 when decompressed, of all others the MD5 that torchvision knows too.
    """
    paths = find_files(name, data_dir)
    if not DATASETS[name].text:  # of which any bytes would do
        read_images(paths, DATASETS[name])
    return _checksums(name, paths)


def _checksums(name: str, paths: list[Path]) -> list[dict[str, str]]:
    entry, rows = DATASETS[name], []
    for file, path in zip(files_of(entry), paths, strict=True):
        kind, digest = ("md5", _md5(path)) if entry.md5 else ("sha256", idx_sha256(path))
        known = (entry.md5 or entry.sha256).get(file)
        verdict = "readable, no checksum known" if not known else "ok" if known == digest else "differs"
        rows.append({"file": str(path), kind: digest, "check": verdict})
    return rows


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def fetch_dataset(name: str, data_dir: str | None = None) -> Path:
    """Download through torchvision, which verifies the published checksums, or generate; returns the folder."""
    entry = DATASETS[name]
    if entry.synthetic:
        return _generated(name, data_dir)[0].parent
    if entry.url:
        raise UsageError(f"data set {name!r} is not fetched: {way_to_get(name)} into {base_folder(data_dir) / name}")
    if not entry.torchvision:
        raise UsageError(f"data set {name!r} is carried in the package; there is nothing to fetch")
    import torchvision.datasets  # slow to import, and needed here only

    root = base_folder(data_dir)
    try:
        download = getattr(torchvision.datasets, entry.torchvision)
        if entry.splits:  # each by itself, and without a folder of their own
            for split in entry.splits:
                download(str(root / name), split=split, download=True)
        else:
            download(str(root), download=True)
    except Exception as error:  # the network, the disk or the mirror
        raise UsageError(f"fetching {name!r} to {root} failed: {error}") from error
    return find_files(name, str(root))[0].parent  # looked for again: one left out is an error now


def _generated(name: str, data_dir: str | None) -> list[Path]:
    """The files of a synthetic data set, generated where they are missing; a warning where they differ."""
    entry, folder = DATASETS[name], folders_of(name, data_dir)[0]
    is_empty = folder.is_dir() and not any(folder.iterdir())  # it is replaced by the generated one
    if folder.is_dir() and not is_empty and not any_file_in(folder, entry):
        raise UsageError(f"data set {name!r} is not in {folder}: remove that folder, then it is generated there anew")
    if not folder.is_dir() or is_empty:
        if (folder.exists() or folder.is_symlink()) and not is_empty:
            raise UsageError(f"data set {name!r} cannot be generated: {folder} is there, and no folder")
        folder.parent.mkdir(parents=True, exist_ok=True)  # what is not writable fails first
        warnings.warn(f"generating the synthetic data set {name!r}, once, in {folder}", stacklevel=2)
        write_curves(folder, dict(zip(files_of(entry), entry.sizes, strict=True)))
    paths = find_files(name, data_dir)
    if any(row["check"] == "differs" for row in _checksums(name, paths)):
        warnings.warn(
            f"data set {name!r} in {folder} is not the known one, so losses on it are not comparable with those of "
            "other machines; delete that folder to generate it anew",
            stacklevel=2,
        )
    return paths
