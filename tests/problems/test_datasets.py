"""Data sets: where files are looked for, what is wrong with them, and what the embedded sample is."""

import gzip
import hashlib
import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kfbench.config.problem_table import DATASETS
from kfbench.errors import UsageError
from kfbench.problems.curves import curves
from kfbench.problems.datasets import check_dataset, fetch_dataset, load_dataset
from kfbench.problems.idx import read_idx
from kfbench.problems.locations import FILES, default_data_dir, find_files
from tests.fuzzing import fuzz, result_or_one_sentence
from tests.problems.idx_files import idx_bytes, small_arrays, write_files

_COMPLETE = Path("/usr/share/datasets/fashion-mnist")


def _known(monkeypatch, entries):
    for module in ("datasets", "locations"):
        monkeypatch.setattr(f"kfbench.problems.{module}.DATASETS", entries)


@pytest.fixture(autouse=True)
def _nothing_installed(tmp_path, monkeypatch):
    """No data set of this machine is seen: neither its cache nor its system folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    system = (str(tmp_path / "system" / "fashion-mnist"),)
    entries = {**DATASETS, "fashion-mnist": replace(DATASETS["fashion-mnist"], system_folders=system)}
    _known(monkeypatch, entries)


# Where files are looked for.


@pytest.mark.parametrize("layout", ["fashion-mnist", "FashionMNIST/raw", "."])
@pytest.mark.parametrize("gz", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("way", ["argument", "variable"])
def test_layouts(tmp_path, monkeypatch, layout, gz, way):
    folder = write_files(tmp_path / "data" / layout, gz=gz)
    if way == "variable":
        monkeypatch.setenv("KFBENCH_DATA", str(tmp_path / "data"))
    data_dir = str(tmp_path / "data") if way == "argument" else None
    assert find_files("fashion-mnist", data_dir) == [folder / (name + ".gz" if gz else name) for name in FILES]


@pytest.mark.parametrize("place", ["cache/kfbench/fashion-mnist", "system/fashion-mnist"])
def test_places_without_a_data_dir(tmp_path, place):
    folder = write_files(tmp_path / place)
    assert find_files("fashion-mnist", None)[0].parent == folder


def test_the_argument_wins_and_nothing_else_is_searched(tmp_path, monkeypatch):
    for name in ("argument", "variable", "cache/kfbench"):
        write_files(tmp_path / name / "fashion-mnist")
    write_files(tmp_path / "system" / "fashion-mnist")
    monkeypatch.setenv("KFBENCH_DATA", str(tmp_path / "variable"))
    assert find_files("fashion-mnist", str(tmp_path / "argument"))[0].is_relative_to(tmp_path / "argument")
    assert find_files("fashion-mnist", None)[0].is_relative_to(tmp_path / "variable")
    with pytest.raises(UsageError, match="was not found"):
        find_files("fashion-mnist", str(tmp_path / "elsewhere"))


def test_with_the_variable_set_the_systems_folders_are_still_searched(tmp_path, monkeypatch):
    """It names where fetched data lie; only --data-dir is meant in place of all others."""
    folder = write_files(tmp_path / "system" / "fashion-mnist")
    monkeypatch.setenv("KFBENCH_DATA", str(tmp_path / "variable"))
    assert find_files("fashion-mnist", None)[0].parent == folder
    mine = write_files(tmp_path / "variable")
    assert find_files("fashion-mnist", None)[0].parent == mine
    with pytest.raises(UsageError, match="was not found"):
        find_files("fashion-mnist", str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("way", ["argument", "KFBENCH_DATA", "XDG_CACHE_HOME"])
def test_the_home_of_nobody_is_one_sentence(monkeypatch, way):
    if way != "argument":
        monkeypatch.setenv(way, "~nosuchuser/x")
    with pytest.raises(UsageError, match="folder '~nosuchuser/x' of data sets cannot be found"):
        find_files("mnist", "~nosuchuser/x" if way == "argument" else None)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("file", "cannot be generated: .*curves is there, and no folder"),
        ("broken link", "cannot be generated: .*curves is there, and no folder"),
        ("foreign", "is not in .*curves: remove that folder, then it is generated there anew"),
    ],
)
@pytest.mark.parametrize("call", [fetch_dataset, load_dataset])
def test_what_stands_where_curves_would_be_generated_is_refused_before_the_work(
    tmp_path, monkeypatch, kind, sentence, call
):
    place = tmp_path / "curves"
    if kind == "file":
        place.write_text("no folder")
    elif kind == "broken link":
        place.symlink_to("nowhere")
    else:
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    monkeypatch.setattr("kfbench.problems.datasets.write_curves", lambda *_: pytest.fail("15 seconds of work"))
    with pytest.raises(UsageError, match=sentence):
        call("curves", str(tmp_path))


def test_an_empty_folder_is_where_curves_are_generated(tmp_path, monkeypatch):
    """As the sentence of `data check` says."""
    (tmp_path / "curves").mkdir()
    asked = []
    monkeypatch.setattr("kfbench.problems.datasets.write_curves", lambda folder, sizes: asked.append(folder))
    with pytest.raises(UsageError, match="was not found"), pytest.warns(UserWarning, match="generating"):
        fetch_dataset("curves", str(tmp_path))  # since nothing was written
    assert asked == [tmp_path / "curves"]


@pytest.mark.parametrize(("variable", "expected"), [("/a/b", Path("/a/b")), ("~/b", Path("~/b").expanduser())])
def test_default_data_dir(monkeypatch, variable, expected):
    monkeypatch.setenv("KFBENCH_DATA", variable)
    assert default_data_dir() == expected


def test_a_missing_data_set_names_the_three_ways_to_get_it():
    with pytest.raises(UsageError) as caught:
        load_dataset("fashion-mnist")
    for way in ("kfbench data fetch fashion-mnist", "dataset-fashion-mnist", "--data-dir or KFBENCH_DATA"):
        assert way in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_an_incomplete_data_set_names_the_missing_file(tmp_path, name):
    write_files(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UsageError, match=f"incomplete: .*{name}"):
        find_files("mnist", str(tmp_path))


# Reading.


def test_tensors(tmp_path):
    arrays = small_arrays()
    write_files(tmp_path, arrays)
    data = load_dataset("mnist", str(tmp_path), dtype=torch.float64)
    assert data.train_inputs.shape == (20, 1, 4, 3) and data.test_inputs.shape == (10, 1, 4, 3)
    assert data.input_shape == (1, 4, 3) and data.outputs == 10
    assert data.train_inputs.dtype == torch.float64 and data.train_targets.dtype == torch.int64
    assert data.train_targets.tolist() == arrays[1].tolist() and data.test_targets.tolist() == arrays[3].tolist()
    for inputs, images in ((data.train_inputs, arrays[0]), (data.test_inputs, arrays[2])):
        expected = (torch.from_numpy(images) / 255.0 - 0.1307) / 0.3081
        torch.testing.assert_close(inputs[:, 0], expected, rtol=1e-6, atol=1e-6, check_dtype=False)


@pytest.mark.parametrize(("side", "shape"), [(3, (4, 3)), (4, (4, 4)), (7, (7, 7)), (9, (9, 9))])
@pytest.mark.parametrize("normalize", ["mnist", "own"])
def test_smaller_images_are_padded_with_black(tmp_path, side, shape, normalize):
    """An odd pixel lies below and to the right; mean and deviation are those of the images as they were."""
    write_files(tmp_path)
    plain = load_dataset("mnist", str(tmp_path), normalize, dtype=torch.float64)
    data = load_dataset("mnist", str(tmp_path), normalize, dtype=torch.float64, pad_to=side)
    assert data.input_shape == (1, *shape)
    top, left = (shape[0] - 4) // 2, (shape[1] - 3) // 2
    inside = (..., slice(top, top + 4), slice(left, left + 3))
    for padded, images in ((data.train_inputs, plain.train_inputs), (data.test_inputs, plain.test_inputs)):
        assert torch.equal(padded[inside], images)
        outside = padded.clone()
        outside[inside] = torch.nan
        values = outside[~outside.isnan()].unique()
        assert len(values) == (shape != (4, 3)), "black is one number"
        assert not len(values) or values <= images.min()


def test_normalize_own_uses_the_training_set_only(tmp_path):
    arrays = small_arrays()
    arrays[2] = arrays[2] // 4
    write_files(tmp_path, arrays)
    data = load_dataset("mnist", str(tmp_path), normalize="own", dtype=torch.float64)
    assert abs(data.train_inputs.mean()) < 1e-12
    assert abs(data.train_inputs.std() - 1) < 1e-12
    assert data.test_inputs.mean() < -0.5, "the test set is normalised by the training set's mean"
    # Both are one affine map: what is equal in the files stays equal.
    pixels = torch.from_numpy(np.concatenate([arrays[0], arrays[2]])) / 255.0
    scale = (arrays[0] / 255.0).std(ddof=1)
    expected = (pixels - (arrays[0] / 255.0).mean()) / scale
    both = torch.cat([data.train_inputs, data.test_inputs])[:, 0]
    torch.testing.assert_close(both, expected, rtol=1e-5, atol=1e-5, check_dtype=False)


def test_own_normalisation_of_constant_images_is_refused(tmp_path):
    arrays = small_arrays()
    arrays[0] = np.full_like(arrays[0], 7)
    write_files(tmp_path, arrays)
    load_dataset("mnist", str(tmp_path))
    with pytest.raises(UsageError, match=r"all pixels .* are equal"):
        load_dataset("mnist", str(tmp_path), normalize="own")


def _faulty(change):
    arrays = small_arrays()
    change(arrays)
    return arrays


_FAULTS = {
    "train swapped": (lambda a: a.__setitem__(slice(0, 2), a[1::-1]), "are images and labels swapped"),
    "test swapped": (lambda a: a.__setitem__(slice(2, 4), a[3:1:-1]), "are images and labels swapped"),
    "too few labels": (lambda a: a.__setitem__(1, a[1][:-1]), "has 19 labels for 20 images"),
    "train labels for test": (lambda a: a.__setitem__(3, a[1]), "has 20 labels for 10 images"),
    "label out of range": (lambda a: a.__setitem__(3, a[3] + 1), "has label 10, expected 0 to 9"),
    "no images": (lambda a: a.__setitem__(slice(0, 2), [a[0][:0], a[1][:0]]), "holds no images"),
    "no pixels": (lambda a: a.__setitem__(0, a[0][:, :0]), "holds no images"),
    "other shape": (lambda a: a.__setitem__(2, a[2][:, 1:]), "different shapes, (4, 3) and (3, 3)"),
}


@pytest.mark.parametrize("fault", _FAULTS)
def test_faults(tmp_path, fault):
    change, sentence = _FAULTS[fault]
    write_files(tmp_path, _faulty(change))
    for read in (load_dataset, check_dataset):
        with pytest.raises(UsageError) as caught:
            read("mnist", str(tmp_path))
        assert sentence in str(caught.value) and str(tmp_path) in str(caught.value)


@fuzz
@given(st.sampled_from(FILES), st.integers(0, 260), st.one_of(st.none(), st.integers(0, 255)))
def test_any_torn_or_altered_file(tmp_path, name, position, byte):
    """One file is cut at a position (byte None) or one byte of it is replaced."""
    write_files(tmp_path)
    content = (tmp_path / name).read_bytes()
    position = min(position, len(content) - 1)
    changed = content[:position] if byte is None else content[:position] + bytes([byte]) + content[position + 1 :]
    (tmp_path / name).write_bytes(changed)
    data = result_or_one_sentence(lambda: load_dataset("mnist", str(tmp_path)))
    if data is not None:
        assert byte is not None, "a torn file was read"
        assert data.train_targets.max() < 10 and len(data.train_inputs) == len(data.train_targets)


@pytest.mark.parametrize(("normalize", "low", "high"), [("unit", 0, 1), ("mnist", -0.4242129, 2.8214867)])
def test_range_of_normalised_pixels(tmp_path, normalize, low, high):
    arrays = small_arrays()
    arrays[0][0, 0, :2] = 0, 255
    data = load_dataset("mnist", str(write_files(tmp_path, arrays)), normalize=normalize, dtype=torch.float64)
    assert data.train_inputs.min() == pytest.approx(low, abs=1e-6)
    assert data.train_inputs.max() == pytest.approx(high, abs=1e-6)
    if normalize == "unit":
        assert torch.equal((data.train_inputs[:, 0] * 255).round(), torch.from_numpy(arrays[0]).double())


def test_reconstruction_has_the_inputs_as_targets_without_a_copy(tmp_path):
    data = load_dataset("mnist", str(write_files(tmp_path))).reconstruction()
    assert data.outputs == 12 and data.train_targets.shape == (20, 12) and data.test_targets.shape == (10, 12)
    assert torch.equal(data.train_targets, data.train_inputs.flatten(1))
    assert torch.equal(data.test_targets, data.test_inputs.flatten(1))
    assert data.train_targets.data_ptr() == data.train_inputs.data_ptr()


# The first N samples.


@pytest.fixture
def numbered(tmp_path):
    """A data set whose image i is filled with i, so that samples can be told apart."""
    arrays = [np.arange(40)[:, None, None].repeat(2, 1), np.arange(40) % 10, np.zeros((3, 2, 1)), np.zeros(3)]
    return load_dataset("mnist", str(write_files(tmp_path, arrays)), dtype=torch.float64)


def _numbers(data):
    return ((data.train_inputs[:, 0, 0, 0] * 0.3081 + 0.1307) * 255).round().int().tolist()


def test_first_is_a_fixed_nested_shuffle(numbered):
    ten, twenty, forty = (numbered.first(n) for n in (10, 20, 40))
    assert _numbers(ten) == _numbers(twenty)[:10] == _numbers(forty)[:10]
    assert _numbers(ten) == _numbers(numbered.first(10)), "the same at every call"
    assert sorted(_numbers(forty)) == list(range(40)) != _numbers(forty), "all of them, shuffled"
    for subset in (ten, twenty, forty):
        assert [number % 10 for number in _numbers(subset)] == subset.train_targets.tolist(), "labels go along"
    assert torch.equal(ten.test_inputs, numbered.test_inputs)
    assert numbered.first(None) is numbered


def test_first_ignores_and_leaves_the_global_generator(numbered):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    chosen = _numbers(numbered.first(10))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert _numbers(numbered.first(10)) == chosen


def test_first_of_the_embedded_sample_is_pinned():
    """Runs on subsets are compared across versions: the shuffle must not move."""
    data = load_dataset("fashion-mnist-1k")
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(data.first(100).train_inputs, data.train_inputs[order[:100]])


def test_more_than_there_are(numbered):
    with pytest.raises(UsageError, match="train_samples is 41, the data set has 40"):
        numbered.first(41)


# The embedded sample.


def test_the_embedded_sample_has_the_known_checksums():
    rows = check_dataset("fashion-mnist-1k")
    assert [row["check"] for row in rows] == ["ok"] * 4
    assert [row["sha256"] for row in rows] == [DATASETS["fashion-mnist-1k"].sha256[name] for name in FILES]


def test_the_embedded_sample():
    data = load_dataset("fashion-mnist-1k")
    assert data.train_inputs.shape == data.test_inputs.shape == (1000, 1, 28, 28)
    assert data.train_targets.bincount(minlength=10).min() > 50
    assert abs(float(data.train_inputs.mean())) < 1, "MNIST's normalisation, near enough"


@pytest.mark.skipif(not _COMPLETE.is_dir(), reason="the complete Fashion-MNIST is not installed")
def test_the_embedded_sample_is_drawn_as_documented():
    rng = random.Random(0)
    embedded = dict(zip(FILES, find_files("fashion-mnist-1k", None), strict=True))
    for part, n in (("train", 60000), ("t10k", 10000)):
        chosen = rng.sample(range(n), 1000)
        for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
            name = f"{part}-{kind}-ubyte"
            complete = read_idx(_COMPLETE / f"{name}.gz", dimensions)
            assert len(complete) == n
            assert (complete[chosen] == read_idx(embedded[name], dimensions)).all(), name


# check and fetch.


def test_check_tells_a_changed_file(tmp_path):
    write_files(tmp_path / "fashion-mnist")
    assert [row["check"] for row in check_dataset("fashion-mnist", str(tmp_path))] == ["differs"] * 4
    write_files(tmp_path / "mnist")
    assert {row["check"] for row in check_dataset("mnist", str(tmp_path))} == {"readable, no checksum known"}


def test_checksums_are_of_the_content_not_of_its_compression(tmp_path):
    plain = check_dataset("mnist", str(write_files(tmp_path / "plain")))
    zipped = check_dataset("mnist", str(write_files(tmp_path / "zipped", gz=True)))
    assert [row["sha256"] for row in plain] == [row["sha256"] for row in zipped]


class _Downloads:
    """Stands for torchvision.datasets: writes the files as it would, or fails as it would."""

    def __init__(self, error=None):
        self.error, self.roots = error, []

    def __call__(self, root, download):
        assert download
        self.roots.append(root)
        if self.error:
            raise self.error
        write_files(Path(root) / "FashionMNIST" / "raw", gz=True)


@pytest.fixture
def downloads(monkeypatch):
    found = _Downloads()
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", found)
    return found


@pytest.mark.parametrize("way", ["argument", "variable", "cache"])
def test_what_is_fetched_is_found(tmp_path, monkeypatch, downloads, way):
    root = tmp_path / ("cache/kfbench" if way == "cache" else "data")
    if way == "variable":
        monkeypatch.setenv("KFBENCH_DATA", str(root))
    data_dir = str(root) if way == "argument" else None
    assert fetch_dataset("fashion-mnist", data_dir) == root / "FashionMNIST" / "raw"
    assert downloads.roots == [str(root)]
    assert len(load_dataset("fashion-mnist", data_dir).train_inputs) == 20


@pytest.mark.parametrize("error", [RuntimeError("no mirror\nanswers"), OSError("disk full"), ValueError("checksum")])
def test_a_failing_download_is_one_sentence(tmp_path, downloads, error):
    downloads.error = error
    with pytest.raises(UsageError, match=r"fetching 'fashion-mnist' to .* failed") as caught:
        fetch_dataset("fashion-mnist", str(tmp_path / "data"))
    assert "\n" not in str(caught.value)


def test_there_is_nothing_to_fetch_for_the_embedded_sample(downloads):
    with pytest.raises(UsageError, match="carried in the package"):
        fetch_dataset("fashion-mnist-1k")
    assert downloads.roots == []


# The synthetic one.


@pytest.fixture
def few_curves(monkeypatch):
    """CURVES of 30 + 20 images, whose checksums are those of these images; counts how often it is generated."""
    made = []

    def counted(count):
        made.append(count)
        return curves(count)

    images = curves(50)
    content = dict(zip(FILES[::2], (idx_bytes(images[:30]), idx_bytes(images[30:])), strict=True))
    digests = {name: hashlib.sha256(part).hexdigest() for name, part in content.items()}
    entry = replace(DATASETS["curves"], sizes=(30, 20), sha256=digests)
    _known(monkeypatch, {**DATASETS, "curves": entry})
    monkeypatch.setattr("kfbench.problems.curves.curves", counted)
    return made


def test_curves_are_generated_once_and_said_so(tmp_path, few_curves, recwarn):
    first = load_dataset("curves", str(tmp_path / "data"), "unit", dtype=torch.float64)
    (said,) = recwarn
    assert str(said.message) == f"generating the synthetic data set 'curves', once, in {tmp_path / 'data' / 'curves'}"
    second = load_dataset("curves", str(tmp_path / "data"), "unit", dtype=torch.float64)
    assert few_curves == [50] and len(recwarn) == 1
    for data in (first, second):
        assert torch.equal((data.train_inputs[:, 0] * 255).round(), torch.from_numpy(curves(50)[:30]).double())
        assert torch.equal((data.test_inputs[:, 0] * 255).round(), torch.from_numpy(curves(50)[30:]).double())
        assert torch.equal(data.train_targets, data.train_inputs.flatten(1)) and data.outputs == 784
    names = [path.name for path in (tmp_path / "data").rglob("*")]
    assert sorted(names) == ["curves", *(f"{name}.gz" for name in sorted(FILES[::2]))], "no labels, nothing temporary"


def test_curves_are_fetched_and_checked(tmp_path, few_curves, monkeypatch):
    with pytest.raises(UsageError, match="generate it with 'kfbench data fetch curves'"):
        check_dataset("curves")
    monkeypatch.setenv("KFBENCH_DATA", str(tmp_path / "data"))
    for _ in range(2):
        assert fetch_dataset("curves") == tmp_path / "data" / "curves"
    assert few_curves == [50]
    assert [row["check"] for row in check_dataset("curves")] == ["ok", "ok"]


def test_images_of_another_data_set_are_not_taken_for_curves(tmp_path, few_curves):
    write_files(tmp_path)
    with pytest.raises(UsageError, match="data set 'curves' was not found"):
        find_files("curves", str(tmp_path))
    assert load_dataset("curves", str(tmp_path)).input_shape == (1, 28, 28)


def test_other_curves_than_the_known_ones_are_used_with_a_warning(tmp_path, few_curves):
    folder = fetch_dataset("curves", str(tmp_path))
    (folder / f"{FILES[2]}.gz").write_bytes(gzip.compress(idx_bytes(curves(50)[:20])))
    with pytest.warns(UserWarning, match="not the known one, so losses on it are not comparable"):
        data = load_dataset("curves", str(tmp_path))
    assert torch.equal(data.test_inputs, data.train_inputs[:20])
    assert [row["check"] for row in check_dataset("curves", str(tmp_path))] == ["ok", "differs"]


def test_generation_that_is_broken_off_leaves_nothing(tmp_path, few_curves, monkeypatch):
    def full(path, content):
        if FILES[2] in str(path):
            raise OSError(28, "No space left on device")
        path.write_bytes(content)

    with monkeypatch.context() as patched:
        patched.setattr("kfbench.problems.curves.write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            load_dataset("curves", str(tmp_path))
    assert list(tmp_path.iterdir()) == []
    assert len(load_dataset("curves", str(tmp_path)).train_inputs) == 30


def test_another_process_that_generates_at_the_same_time_wins(tmp_path, few_curves, monkeypatch):
    fetch_dataset("curves", str(tmp_path / "other"))

    def slow(count):
        os.rename(tmp_path / "other" / "curves", tmp_path / "data" / "curves")
        return curves(count)

    monkeypatch.setattr("kfbench.problems.curves.curves", slow)
    assert len(load_dataset("curves", str(tmp_path / "data")).train_inputs) == 30
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["curves"]


def test_the_first_curves_of_the_shuffle_keep_their_targets(tmp_path, few_curves):
    data = load_dataset("curves", str(tmp_path)).first(10)
    assert torch.equal(data.train_targets, data.train_inputs.flatten(1)) and len(data.train_inputs) == 10


def test_idx_files_of_the_tests_are_what_the_package_carries():
    """Our writer and the published files agree byte for byte: the tests test the real format."""
    for path, dimensions in zip(find_files("fashion-mnist-1k", None), (3, 1, 3, 1), strict=True):
        assert gzip.decompress(path.read_bytes()) == idx_bytes(read_idx(path, dimensions))
