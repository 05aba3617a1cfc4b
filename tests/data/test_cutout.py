"""The augmentations of the convolution papers: black borders and cut-out squares, the same for any share of a batch."""

from __future__ import annotations

import pytest
import torch

from leanconv.data import open_images
from leanconv.data.images.augment import crop_and_mirror, cut_out
from leanconv.seeds import generator


def test_black_border() -> None:
    """Crops of an all-white image are white rectangles on black, at most `border` away from each side."""
    white = torch.full((64, 3, 8, 8), 255, dtype=torch.uint8)
    seen = set()
    for image in crop_and_mirror(white, 2, True, generator(0, "x"), zeros=True):
        assert set(image.unique().tolist()) <= {0, 255}
        rows, columns = (image[0] > 0).any(1), (image[0] > 0).any(0)
        assert torch.equal(image[0] > 0, rows[:, None] & columns[None, :])
        seen.add((int(rows.sum()), int(columns.sum())))
    assert {height for height, _ in seen} == {6, 7, 8}


def test_black_border_crops_as_padding_does() -> None:
    pixels = torch.randint(1, 256, (16, 3, 8, 8), dtype=torch.uint8)
    draws = generator(1, "x")
    tops, lefts = torch.randint(-2, 3, (16,), generator=draws), torch.randint(-2, 3, (16,), generator=draws)
    padded = torch.nn.functional.pad(pixels, (2, 2, 2, 2))
    expected = torch.stack(
        [image[:, t + 2 : t + 10, l + 2 : l + 10] for image, t, l in zip(padded, tops, lefts, strict=True)]
    )
    assert torch.equal(crop_and_mirror(pixels, 2, False, generator(1, "x"), zeros=True), expected)


def test_cut_out_squares() -> None:
    images = torch.ones(200, 3, 32, 32)
    cut = cut_out(images, 16, generator(0, "cut"))
    holes = (cut == 0).all(1).sum((1, 2))
    assert int(holes.max()) == 256
    assert int(holes.min()) >= 64  # a centre in a corner leaves a quarter
    assert torch.equal((cut == 0).any(1), (cut == 0).all(1))
    assert torch.equal(images, torch.ones_like(images))
    halves = [cut_out(images[at : at + 100], 16, generator(0, "cut"), share=(at, 200)) for at in (0, 100)]
    assert torch.equal(torch.cat(halves), cut)


@pytest.mark.parametrize("augment", ["cifar_zero", "cifar_cutout"])
def test_batches_repeat_and_evaluation_is_untouched(augment: str) -> None:
    data, plain = (open_images("digits", resolution=16, batch_size=64, augment=name) for name in (augment, "none"))
    first, again = next(iter(data.train_loader()))[0], next(iter(data.train_loader()))[0]
    assert torch.equal(first, again)
    data.set_epoch(1)
    assert not torch.equal(next(iter(data.train_loader()))[0], first)
    assert torch.equal(next(iter(data.eval_loader()))[0], next(iter(plain.eval_loader()))[0])
    if augment == "cifar_cutout":
        assert int((first == 0).all(1).sum()) > 64 * 16  # at least a quarter of 8 x 8 in every image
