"""CIFAR-10 and CIFAR-100: read as published, found, fetched by torchvision, and what is wrong with their files."""

import hashlib
import tarfile

import numpy as np
import pytest
import torch
import torchvision

from kfbench.config.problem_table import DATASETS
from kfbench.errors import UsageError
from kfbench.problems.cifar import read_cifar
from kfbench.problems.datasets import check_dataset, fetch_dataset, load_dataset
from kfbench.problems.locations import find_files
from tests.problems.published_files import cifar_batch, images_and_labels, python2_pickle, write_cifar

NAMES = ("cifar10", "cifar100")


@pytest.fixture(autouse=True)
def _nothing_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", NAMES)
def test_tensors(tmp_path, name):
    """Training files follow each other; pixels are those of torchvision, in the order channels, rows, columns."""
    write_cifar(tmp_path, name)
    files, classes = len(DATASETS[name].md5), DATASETS[name].classes
    data = load_dataset(name, str(tmp_path), "published", dtype=torch.float64)
    assert data.input_shape == (3, 32, 32) and data.outputs == classes
    assert len(data.train_inputs) == 8 * (files - 1) and len(data.test_inputs) == 8
    for i in range(files):
        images, labels = images_and_labels(8, classes, seed=i)
        last = i == files - 1
        inputs = data.test_inputs if last else data.train_inputs[8 * i : 8 * (i + 1)]
        targets = data.test_targets if last else data.train_targets[8 * i : 8 * (i + 1)]
        mean, std = (torch.tensor(each, dtype=torch.float64) for each in zip(*DATASETS[name].channels, strict=True))
        expected = torchvision.transforms.functional.normalize(torch.from_numpy(images) / 255.0, mean, std)
        torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5, check_dtype=False)
        assert targets.tolist() == labels


def test_own_normalisation_is_channel_by_channel(tmp_path):
    batch = cifar_batch(8)
    batch["data"][:, :1024] //= 4
    for file in DATASETS["cifar10"].md5:
        python2_pickle(batch, tmp_path / file)
    data = load_dataset("cifar10", str(tmp_path), "own", dtype=torch.float64)
    assert data.train_inputs.mean(dim=(0, 2, 3)).abs().max() < 1e-12
    assert (data.train_inputs.transpose(0, 1).flatten(1).std(1) - 1).abs().max() < 1e-12
    batch["data"][:, 1024:2048] = 7
    for file in DATASETS["cifar10"].md5:
        python2_pickle(batch, tmp_path / file)
    with pytest.raises(UsageError, match="all pixels of its training images are equal"):
        load_dataset("cifar10", str(tmp_path), "own")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", ["{name}", "{theirs}", "{name}/{theirs}", "."])
@pytest.mark.parametrize("way", ["argument", "variable"])
def test_layouts(tmp_path, monkeypatch, name, layout, way):
    place = tmp_path / "data" / layout.format(name=name, theirs=DATASETS[name].folder)
    folder = write_cifar(place, name, count=1)
    monkeypatch.setenv("KFBENCH_DATA", str(tmp_path / ("data" if way == "variable" else "elsewhere")))
    found = find_files(name, str(tmp_path / "data") if way == "argument" else None)
    assert found == [folder / file for file in DATASETS[name].md5]


def test_missing_and_incomplete(tmp_path):
    with pytest.raises(
        UsageError, match=r"not found .*'kfbench data fetch cifar10', .*files data_batch_1, .*test_batch"
    ):
        load_dataset("cifar10", str(tmp_path))
    (write_cifar(tmp_path) / "data_batch_4").unlink()
    with pytest.raises(UsageError, match=r"is incomplete: .*data_batch_4 is missing"):
        load_dataset("cifar10", str(tmp_path))


_FAULTS = {
    "too few labels": ({"labels": [0] * 7}, "data_batch_2 has 7 labels for 8 images"),
    "label out of range": ({"labels": [0] * 7 + [10]}, "data_batch_2 has label 10, expected 0 to 9"),
    "negative label": ({"labels": [-1] + [0] * 7}, "data_batch_2 has label -1, expected 0 to 9"),
    "label beyond numbers": ({"labels": [2**80] + [0] * 7}, f"data_batch_2 has label {2**80}, expected 0 to 9"),
    "labels that are no numbers": (
        {"labels": ["cat"] * 8},
        "data_batch_2 has labels that are no list of whole numbers",
    ),
    "labels that are none": ({"labels": None}, "data_batch_2 has labels that are no list of whole numbers"),
    "flat": ({"data": np.zeros(3072, np.uint8)}, r"data_batch_2 has data of shape [3072], expected [n, 3072]"),
    "grey": ({"data": np.zeros((8, 1024), np.uint8)}, r"data_batch_2 has data of shape [8, 1024], expected [n, 3072]"),
    "floats": ({"data": np.zeros((8, 3072))}, "holds an array of 'f8', expected unsigned bytes"),
    "no array": ({"data": [1, 2]}, "data_batch_2 has data of shape list, expected [n, 3072]"),
    "no images": ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "data_batch_2 holds no images"),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_faults(tmp_path, fault):
    change, sentence = _FAULTS[fault]
    write_cifar(tmp_path)
    python2_pickle({**cifar_batch(8), **change}, tmp_path / "data_batch_2")
    for read in (load_dataset, check_dataset):
        with pytest.raises(UsageError) as caught:
            read("cifar10", str(tmp_path))
        assert sentence in str(caught.value) and str(tmp_path) in str(caught.value)


def test_files_of_the_other_set_or_of_none(tmp_path):
    path = tmp_path / "batch"
    for content, classes, sentence in (
        (cifar_batch(2, 100), 10, r"has no labels, it has \['batch_label', 'coarse_labels', 'data'"),
        (cifar_batch(2, 10), 100, "has no fine_labels"),
        ([1, 2], 10, "holds a list, expected a dictionary with data and labels"),
    ):
        python2_pickle(content, path)
        with pytest.raises(UsageError, match=sentence):
            read_cifar(path, classes)


def test_check_compares_with_the_published_checksums(tmp_path, monkeypatch):
    write_cifar(tmp_path)
    rows = check_dataset("cifar10", str(tmp_path))
    assert [row["check"] for row in rows] == ["differs"] * 6
    files = list(DATASETS["cifar10"].md5)
    assert [row["md5"] for row in rows] == [hashlib.md5((tmp_path / file).read_bytes()).hexdigest() for file in files]


@pytest.mark.parametrize(("name", "theirs"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_known_checksums_are_torchvisions(name, theirs):
    them = getattr(torchvision.datasets, theirs)
    assert DATASETS[name].torchvision == theirs and DATASETS[name].folder == them.base_folder
    assert list(DATASETS[name].md5.items()) == [tuple(each) for each in them.train_list + them.test_list]


def _md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("torn", [False, True])
def test_what_torchvision_fetches_is_found_and_is_the_same(tmp_path, monkeypatch, mirror, torn):
    """Its own code downloads an archive of small files."""
    them = torchvision.datasets.CIFAR10
    source = write_cifar(mirror.folder / them.base_folder)
    python2_pickle({"label_names": list("abcdefghij")}, source / "batches.meta")
    archive = mirror.folder / them.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(source, them.base_folder)
    for key, value in {
        "url": mirror.url(them.filename),
        "tgz_md5": "0" * 32 if torn else _md5(archive),
        "train_list": [[file, _md5(source / file)] for file, _ in them.train_list],
        "test_list": [[file, _md5(source / file)] for file, _ in them.test_list],
        "meta": {**them.meta, "md5": _md5(source / "batches.meta")},
    }.items():
        monkeypatch.setattr(them, key, value)
    root = tmp_path / "data"
    if torn:
        with pytest.raises(UsageError, match=r"fetching 'cifar10' to .* failed"):
            fetch_dataset("cifar10", str(root))
        return
    assert fetch_dataset("cifar10", str(root)) == root / them.base_folder
    data = load_dataset("cifar10", str(root), "unit")
    images = np.stack([np.asarray(image) for image, _ in them(str(root))])
    assert torch.equal((data.train_inputs * 255).round(), torch.from_numpy(images).permute(0, 3, 1, 2).float())
    assert data.train_targets.tolist() == them(str(root)).targets
