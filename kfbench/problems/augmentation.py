"""Augmentation of training images, a whole batch at a time: random horizontal flips, and crops from black padding.

The standard one of CIFAR (FOOF paper, D.6): four black pixels around, a window of the old size anywhere within, and
half of the images mirrored. What is drawn and what is done with it are apart: a batch may be augmented in parts.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

MARGIN = 4  # black pixels on each side


def drawn_changes(augment: str, count: int, generator: torch.Generator) -> Int[Tensor, "count 3"]:
    """For each image whether it is mirrored, and the upper left corner of its window, in pixels of the padded image.

    ``augment`` is flip, crop or flip-crop. On the CPU, so that all devices see the same; as many numbers for each kind,
    so that flip-crop mirrors what flip does.
    """
    flips = torch.randint(2, (count,), generator=generator)
    corners = torch.randint(2 * MARGIN + 1, (count, 2), generator=generator)
    if "flip" not in augment:
        flips.zero_()
    if "crop" not in augment:
        corners.fill_(MARGIN)
    return torch.cat([flips[:, None], corners], dim=1)


def augmented(
    images: Float[Tensor, "N C H W"], changes: Int[Tensor, "N 3"], black: Float[Tensor, "C"]
) -> Float[Tensor, "N C H W"]:
    """New images, cut out of the padded ones and mirrored; ``black`` is what a black pixel is after normalisation."""
    n, _, rows, columns = images.shape
    padded = black[:, None, None].repeat(n, 1, rows + 2 * MARGIN, columns + 2 * MARGIN)
    padded[:, :, MARGIN : MARGIN + rows, MARGIN : MARGIN + columns] = images

    flips, tops, lefts = changes.to(images.device).unbind(1)
    windows = padded.unfold(2, rows, 1).unfold(3, columns, 1)  # a view: [N, C, top, left, H, W]
    cut = windows[torch.arange(n, device=images.device), :, tops, lefts]
    return torch.where(flips[:, None, None, None] == 1, cut.flip(3), cut)
