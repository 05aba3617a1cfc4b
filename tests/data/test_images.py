"""Batches: sizes, order, seeds, sharing between processes, and the two ways to the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_images import folder_set, picture

from leanconv.data import open_images
from leanconv.errors import DataError, UnknownName


@pytest.fixture(scope="module")
def digits():
    return open_images("digits", resolution=16, batch_size=100, augment="shift")


def test_digits_are_the_real_ones_in_a_fixed_stratified_split(digits) -> None:
    from sklearn.datasets import load_digits

    assert (digits.train_size, digits.test_size, digits.num_classes) == (1438, 359, 10)
    labels = torch.cat([labels for _, labels in digits.eval_loader()])
    shares = torch.bincount(labels) / torch.bincount(torch.as_tensor(load_digits().target))
    assert (shares - 0.2).abs().max() < 0.005
    plain = open_images("digits", resolution=8, mean=(0, 0, 0), std=(1, 1, 1))
    first = next(iter(plain.eval_loader()))[0][0]
    source = torch.as_tensor(load_digits().images) * (255 / 16)
    found = [index for index in range(1797) if torch.equal((first[0] * 255).round(), source[index].round().float())]
    assert len(found) >= 1
    assert torch.equal(first[0], first[1])


def test_digits_at_another_size_keep_the_split() -> None:
    one = torch.cat([labels for _, labels in open_images("digits", resolution=8).eval_loader()])
    other = torch.cat([labels for _, labels in open_images("digits", resolution=12, seed=5).eval_loader()])
    assert torch.equal(one, other)


def test_training_pixels_are_normalised(digits) -> None:
    images = torch.cat([images for images, _ in open_images("digits", resolution=16).train_loader()])
    assert images.shape[1:] == (3, 16, 16)
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02


def test_an_epoch_visits_every_image_once_in_full_batches() -> None:
    data = open_images("digits", resolution=8, batch_size=100, mean=(0, 0, 0), std=(1, 1, 1))
    assert [len(labels) for _, labels in data.train_loader()] == [100] * 14
    chunks = [index for chunk in data.train_loader().chunks for index in chunk]
    assert len(set(chunks)) == len(chunks) == 1400
    assert sum(len(labels) for _, labels in data.eval_loader()) == 359


def test_batches_depend_on_seed_and_epoch_and_nothing_else(digits) -> None:
    def first(data, epoch: int) -> torch.Tensor:
        data.set_epoch(epoch)
        torch.rand(7)  # the global generator has no say
        return next(iter(data.train_loader()))[0]

    again = open_images("digits", resolution=16, batch_size=100, augment="shift")
    other = open_images("digits", resolution=16, batch_size=100, augment="shift", seed=1)
    assert torch.equal(first(digits, 3), first(again, 3))
    assert not torch.equal(first(digits, 3), first(digits, 4))
    assert not torch.equal(first(digits, 3), first(other, 3))


def test_processes_share_out_the_very_batches_of_one_process(digits) -> None:
    digits.set_epoch(2)
    whole = list(digits.train_loader())
    shares = [list(digits.train_loader(rank=rank, world=4)) for rank in range(4)]
    assert len(whole) == len(shares[0]) == 14
    for step, (images, labels) in enumerate(whole):
        assert torch.equal(images, torch.cat([share[step][0] for share in shares]))
        assert torch.equal(labels, torch.cat([share[step][1] for share in shares]))
    tested = [torch.cat([labels for _, labels in digits.eval_loader(rank=rank, world=4)]) for rank in range(4)]
    everything = torch.cat([labels for _, labels in digits.eval_loader()])
    assert torch.equal(torch.cat(tested).sort().values, everything.sort().values)


def test_a_batch_that_cannot_be_shared_is_refused(digits) -> None:
    with pytest.raises(DataError, match="batches of 100 images cannot be shared evenly by 3 processes"):
        digits.train_loader(world=3)


def test_a_set_smaller_than_a_batch_is_one_batch(tmp_path: Path) -> None:
    data = open_images(f"folder:{folder_set(tmp_path, per_class=3)}", resolution=8, batch_size=64)
    assert [len(labels) for _, labels in data.train_loader()] == [6]


@pytest.mark.parametrize("augment", ["none", "shift", "cifar"])
def test_decoding_on_the_way_gives_the_pixels_of_memory(tmp_path: Path, augment: str) -> None:
    spec = f"folder:{folder_set(tmp_path, per_class=5, side=20)}"
    fixed = {"resolution": 16, "batch_size": 4, "augment": augment, "mean": (0.5,) * 3, "std": (0.2,) * 3}
    memory, stream = open_images(spec, **fixed), open_images(spec, **fixed, memory_limit=0)
    assert memory.in_memory
    assert not stream.in_memory
    for data in (memory, stream):
        data.set_epoch(1)
    for one, other in zip(memory.train_loader(), stream.train_loader(), strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
    for one, other in zip(memory.eval_loader(), stream.eval_loader(), strict=True):
        assert torch.equal(one[0], other[0])


@pytest.mark.parametrize("augment", ["cifar", "imagenet", "mobile"])
def test_the_number_of_workers_changes_nothing(tmp_path: Path, augment: str) -> None:
    spec = f"folder:{folder_set(tmp_path, per_class=5, side=24)}"

    def batches(workers: int) -> list[torch.Tensor]:
        data = open_images(spec, resolution=16, batch_size=5, augment=augment, workers=workers, memory_limit=0)
        data.set_epoch(4)
        torch.manual_seed(workers)
        before = torch.random.get_rng_state()
        found = [images for images, _ in data.train_loader()]
        assert torch.equal(before, torch.random.get_rng_state())  # reading does not disturb the network's draws
        return found

    alone, two = batches(0), batches(2)
    assert len(alone) == 2
    assert all(torch.equal(one, other) for one, other in zip(alone, two, strict=True))


@pytest.mark.parametrize("augment", ["cifar", "mobile"])
def test_what_workers_run_can_be_sent_to_them(tmp_path: Path, augment: str) -> None:
    """Where processes are not forked (macOS, Windows, Python 3.14) the data set travels as a pickle."""
    import pickle

    from leanconv.data.stream import _Items

    data = open_images(f"folder:{folder_set(tmp_path)}", resolution=8, augment=augment, memory_limit=0)
    items = _Items(data.train_loader().source, 3)
    one, other = items[2], pickle.loads(pickle.dumps(items))[2]
    assert torch.equal(one.pixels, other.pixels)


def test_photographs_are_augmented_one_by_one(tmp_path: Path) -> None:
    data = open_images(
        f"folder:{folder_set(tmp_path, per_class=5, side=24)}", resolution=16, batch_size=4, augment="imagenet"
    )
    assert data.mean == (0.485, 0.456, 0.406)
    first = next(iter(data.train_loader()))[0]
    data.set_epoch(1)
    assert first.shape == (4, 3, 16, 16)
    assert not torch.equal(first, next(iter(data.train_loader()))[0])


def test_statistics_are_those_of_the_training_pixels(tmp_path: Path) -> None:
    for split, level in (("train", 100), ("val", 200)):
        for name, step in (("a", 0), ("b", 20)):
            (tmp_path / split / name).mkdir(parents=True)
            Image.new("RGB", (8, 8), (level + step, 50, 0)).save(tmp_path / split / name / "x.png")
    data = open_images(f"folder:{tmp_path}", resolution=8)
    assert data.mean == pytest.approx((110 / 255, 50 / 255, 0))
    assert data.std == pytest.approx((10 / 255, 1 / 255, 1 / 255))  # a constant channel does not divide by zero


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 128), (77, 77, 77)),
        ("RGBA", (10, 20, 30, 0), (10, 20, 30)),
        ("1", 1, (255, 255, 255)),
        ("I;16", 257 * 99, (99, 99, 99)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(mode: str, colour, expected: tuple[int, int, int]) -> None:
    from leanconv.data.images.decode import to_rgb

    assert to_rgb(Image.new(mode, (2, 2), colour)).getpixel((0, 0)) == expected


def test_the_centre_square_is_resized() -> None:
    from leanconv.data.images.prepare import Prepare

    def pixels(image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    wide = picture(1, width=40, height=20)
    bilinear = Image.Resampling.BILINEAR
    assert torch.equal(Prepare(8)(wide), pixels(wide.resize((16, 8), bilinear).crop((4, 0, 12, 8))))
    assert torch.equal(Prepare(8, crop=0.5)(wide), pixels(wide.resize((32, 16), bilinear).crop((12, 4, 20, 12))))
    assert torch.equal(Prepare(8)(picture(3)), pixels(picture(3)))


def test_crop_and_mirror_by_hand() -> None:
    from leanconv.data.images.augment import crop_and_mirror
    from leanconv.seeds import generator

    pixels = torch.arange(2 * 3 * 6 * 6, dtype=torch.uint8).reshape(2, 3, 6, 6)
    got = crop_and_mirror(pixels, 2, True, generator("t"))
    draws = generator("t")
    tops, lefts = (torch.randint(-2, 3, (2,), generator=draws) for _ in range(2))
    mirrored = torch.rand(2, generator=draws) < 0.5
    padded = torch.nn.functional.pad(pixels.float(), (2, 2, 2, 2), mode="reflect").to(torch.uint8)
    for index in range(2):
        top, left = int(tops[index]) + 2, int(lefts[index]) + 2
        expected = padded[index, :, top : top + 6, left : left + 6]
        assert torch.equal(got[index], expected.flip(-1) if mirrored[index] else expected)


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown kind of data set 'digit': did you mean 'digits'"):
        open_images("digit")
    with pytest.raises(UnknownName, match="unknown augmentation 'cifr': did you mean 'cifar'"):
        open_images("digits", augment="cifr")
    with pytest.raises(DataError, match="batch_size must be at least 1, got 0"):
        open_images("digits", batch_size=0)
    with pytest.raises(DataError, match=r"expected folder:.* with a path or name after the colon"):
        open_images("folder")
    with pytest.raises(DataError, match="take no path"):
        open_images("digits:here")
