"""Augmentation: what torchvision's transforms do to raw images one by one, and how often."""

import pytest
import torch
from torchvision.transforms import functional

from kfbench.config.problem_table import DATASETS
from kfbench.problems.augmentation import augmented, drawn_changes
from kfbench.problems.datasets import load_dataset
from tests.problems.idx_files import write_files
from tests.problems.published_files import images_and_labels, write_svhn


def _generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("augment", ["flip", "crop", "flip-crop"])
def test_as_torchvision_on_raw_images(tmp_path, augment):
    """Its transforms pad and crop before they normalise, so what is cut out of the padding is black there."""
    data = load_dataset("svhn", str(write_svhn(tmp_path)), "published", dtype=torch.float64)
    changes = drawn_changes(augment, 12, _generator())
    means, deviations = zip(*DATASETS["svhn"].channels, strict=True)
    expected = []
    for image, (flip, top, left) in zip(images_and_labels(12)[0], changes.tolist(), strict=True):
        window = functional.crop(functional.pad(torch.from_numpy(image), 4), top, left, 32, 32)
        window = functional.hflip(window) if flip else window
        expected.append(functional.normalize(window.double() / 255, means, deviations))
    found = augmented(data.train_inputs, changes, data.black)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-6, atol=1e-6)
    assert found.is_contiguous() and not torch.equal(found, data.train_inputs)


def test_grey_images_of_any_shape_and_no_change_at_all(tmp_path):
    data = load_dataset("mnist", str(write_files(tmp_path)))
    before = data.train_inputs.clone()
    still = torch.tensor([[0, 4, 4]]).expand(20, 3)
    assert torch.equal(augmented(data.train_inputs, still, data.black), before)
    mirrored = augmented(data.train_inputs, still + torch.tensor([1, 0, 0]), data.black)
    assert torch.equal(mirrored, before.flip(3))
    corner = augmented(data.train_inputs, still - torch.tensor([0, 4, 4]), data.black)
    assert (corner[:, :, :4] == data.black).all() and torch.equal(data.train_inputs, before)
    assert data.black.item() == pytest.approx(-0.1307 / 0.3081)


def test_parts_of_a_batch_are_those_of_the_whole(tmp_path):
    data = load_dataset("svhn", str(write_svhn(tmp_path)))
    changes = drawn_changes("flip-crop", 12, _generator())
    whole = augmented(data.train_inputs, changes, data.black)
    parts = [
        augmented(x, part, data.black) for x, part in zip(data.train_inputs.split(5), changes.split(5), strict=True)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_what_is_drawn():
    """Half of the images, every window as often, and each kind as it would be without the other."""
    both, flip, crop = (drawn_changes(kind, 20_000, _generator()) for kind in ("flip-crop", "flip", "crop"))
    assert torch.equal(both[:, 0], flip[:, 0]) and torch.equal(both[:, 1:], crop[:, 1:])
    assert (flip[:, 1:] == 4).all() and not crop[:, 0].any()
    assert abs(float(both[:, 0].double().mean()) - 0.5) < 0.02
    windows = (both[:, 1] * 9 + both[:, 2]).bincount(minlength=81)
    assert len(windows) == 81 and windows.min() > 150 and windows.max() < 350, "20,000 / 81 = 247 each"
