"""CURVES: the same images on every machine, and each the curve through its three points."""

import hashlib
import math
import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from kfbench.config.problem_table import DATASETS
from kfbench.problems import curves as module
from kfbench.problems.curves import curves, positions, write_curves
from kfbench.problems.idx import idx_bytes

_SEED, _STEPS = 2006, 1024


def _points(count):
    """The drawn points of the first images, in pixels, [count, 3, (row, column)]."""
    bits = np.random.PCG64(_SEED).random_raw(6 * count) // np.uint64(2**54)
    return bits.astype(float).reshape(count, 3, 2) * 20 / _STEPS + 4


@pytest.fixture(scope="module")
def images():
    """As many as go into one chunk and a part of the next."""
    return curves(300)


def test_format(images):
    assert images.shape == (300, 28, 28) and images.dtype == np.uint8
    assert images.min() == 0 and images.max() == 255
    assert 0.05 < (images > 0).mean() < 0.15, "a curve is a small part of its image"
    assert ((images > 0) & (images < 255)).mean() > 0.02, "its edges are smooth"
    assert len({image.tobytes() for image in images}) == 300


def test_fewer_images_are_the_first_ones(images):
    assert (curves(7) == images[:7]).all()


def test_no_curve_leaves_its_image(images):
    border = np.ones((28, 28), bool)
    border[1:-1, 1:-1] = False
    assert images[:, border].max() < 255
    extremes = np.array([[a, b, c] for a in (0, 1023) for b in (0, 1023) for c in (0, 1023)])
    reached = positions(np.stack([extremes, extremes], axis=-1)) / 64
    assert reached.min() > 1 and reached.max() < 27
    assert np.hypot(*np.abs(np.diff(reached)).max(axis=(0, 2))) < 0.5, "pieces shorter than half a pixel"


def test_every_curve_passes_through_its_three_points(images):
    for image, points in zip(images, _points(300), strict=True):
        for row, column in points:
            assert int(image[int(row), int(column)]) >= 255 * (1.5 - math.sqrt(0.5)) - 2


def test_images_are_those_of_the_definition(images):
    """Distance of pixel centres to the parabola, by a loop over a much finer division than the code's."""
    t = np.linspace(0, 1, 5_001)
    for image, (first, second, third) in zip(images[:8], _points(8), strict=True):
        curve = [
            first[i] * (1 - t) * (1 - 2 * t) + second[i] * 4 * t * (1 - t) + third[i] * t * (2 * t - 1) for i in (0, 1)
        ]
        for row in range(28):
            for column in range(28):
                distance = np.hypot(curve[0] - row - 0.5, curve[1] - column - 0.5).min()
                assert int(image[row, column]) == pytest.approx(255 * min(max(1.5 - distance, 0), 1), abs=15)


def test_the_complete_data_set_has_the_known_checksums():
    """Generated on this machine, it is what was generated on ours."""
    images, (training, test) = curves(30_000), DATASETS["curves"].sizes
    parts = {"train-images-idx3-ubyte": images[:training], "t10k-images-idx3-ubyte": images[training:]}
    assert [len(part) for part in parts.values()] == [training, test] == [20_000, 10_000]
    found = {name: hashlib.sha256(idx_bytes(part)).hexdigest() for name, part in parts.items()}
    assert found == DATASETS["curves"].sha256


FILES = {"train-images-idx3-ubyte": 3, "t10k-images-idx3-ubyte": 2}


def _generate(place, hang_in=""):
    """In a process of its own, which may hang: where it generates, or where it writes."""
    if hang_in:
        vars(module)[hang_in] = lambda *_: time.sleep(60)
    write_curves(place / "curves", FILES)


def test_what_a_killed_process_left_goes_with_the_next_one(tmp_path):
    killed = multiprocessing.get_context("fork").Process(target=_generate, args=(tmp_path, "write_atomically"))
    killed.start()
    while not list(tmp_path.glob(".curves-*/curves")) and killed.is_alive():
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    (left,) = tmp_path.iterdir()
    (left / "curves" / "train-images-idx3-ubyte.gz.tmp").write_bytes(b"half")
    # Of such a name, but somebody else's.
    for name in ("thesis.tex", "curves/notes"):
        foreign = tmp_path / f".curves-{name.replace('/', '_')[:8]:_<8}"
        (foreign / name).parent.mkdir(parents=True)
        (foreign / name).write_text("years of work")
    (tmp_path / ".curves-notes").mkdir()
    before = {path.name for path in tmp_path.iterdir()} - {left.name}
    _generate(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == before | {"curves"} and len(before) == 3


def test_whoever_comes_second_waits_and_generates_nothing(tmp_path):
    handle = os.open(tmp_path, os.O_RDONLY)
    module.fcntl.flock(handle, module.fcntl.LOCK_EX)
    second = multiprocessing.get_context("fork").Process(target=_generate, args=(tmp_path, "curves"))
    second.start()
    time.sleep(0.2)
    assert list(tmp_path.iterdir()) == [] and second.is_alive()
    (tmp_path / "curves").mkdir()  # the first one is done
    module.fcntl.flock(handle, module.fcntl.LOCK_UN)  # the child has inherited it, so closing would not do
    os.close(handle)
    second.join(30)
    assert second.exitcode == 0 and [path.name for path in tmp_path.iterdir()] == ["curves"]
