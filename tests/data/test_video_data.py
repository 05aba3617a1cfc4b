"""Batches of clips: which frames, how they are drawn, shared out and normalised, and whole videos for testing."""

from __future__ import annotations

import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_videos import number_of, numbers_in, video_folders, write_video

from leanconv.data import VideoData, open_videos
from leanconv.data.stream import _Items
from leanconv.errors import DataError, MissingExtra, UnknownName

PLAIN = {"frames": 8, "rate": 2, "resolution": 80, "short_side": (80, 80)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return video_folders(tmp_path_factory.mktemp("videos"))


def opened(root: Path, **how) -> VideoData:
    return open_videos(f"video-folder:{root}", **{**PLAIN, "batch_size": 4, **how})


def test_what_a_set_of_videos_says_of_itself(root: Path) -> None:
    data = opened(root, seed=3)
    assert (data.num_classes, data.class_names, data.train_size, data.test_size) == (2, ("left", "right"), 8, 4)
    assert (data.channels, data.resolution, data.input_size, data.unit, data.seed) == (
        3,
        80,
        (3, 8, 80, 80),
        "video",
        3,
    )
    assert (data.mean, data.std) == ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989))
    clips, labels = next(iter(data.train_loader()))
    assert (clips.shape, clips.dtype, labels.shape, labels.dtype) == (
        (4, 3, 8, 80, 80),
        torch.float32,
        (4,),
        torch.int64,
    )
    assert data.problems == ()


def test_training_clips_are_runs_of_frames_from_drawn_starts(root: Path) -> None:
    data = opened(root, augment="video", mean=(0.5,) * 3, std=(0.25,) * 3)
    starts, mirrored = [], 0
    for epoch in range(6):
        data.set_epoch(epoch)
        for clips, _ in data.train_loader():
            for clip in clips:
                # A mirrored number reads as other bits: the right way round is the one that counts upwards by two.
                ways = [numbers_in(way, data) for way in (clip, clip.flip(-1))]
                right = [list(range(way[0], way[0] + 15, 2)) == way for way in ways]
                assert right.count(True) == 1
                mirrored += right[1]
                starts.append(ways[right.index(True)][0])
    assert set(starts) <= set(range(26))  # 40 frames, 15 needed
    assert len(set(starts)) > 15
    assert 12 <= mirrored <= 36  # of 48


def test_without_augmentation_nothing_is_drawn(root: Path) -> None:
    data = opened(root, augment="none", short_side=(80, 100))
    for epoch in range(2):
        data.set_epoch(epoch)
        for clips, _ in data.train_loader():
            assert [numbers_in(clip, data) for clip in clips] == [list(range(12, 27, 2))] * 4  # (40 - 15) // 2


def test_evaluation_takes_the_centre_clip_in_file_order(root: Path) -> None:
    data = opened(root)
    [(clips, labels)] = list(data.eval_loader())
    assert labels.tolist() == [0, 0, 1, 1]
    assert [numbers_in(clip, data) for clip in clips] == [list(range(12, 27, 2))] * 4


def test_batches_are_a_function_of_seed_epoch_and_number(root: Path) -> None:
    def epoch(number: int, **how) -> list[torch.Tensor]:
        data = opened(root, **how)
        data.set_epoch(number)
        torch.rand(3)  # the global generator has no say
        before = torch.random.get_rng_state()
        clips = [clips for clips, _ in data.train_loader()]
        assert torch.equal(before, torch.random.get_rng_state())  # and is not disturbed
        return clips

    def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert same(epoch(1), epoch(1))
    assert same(epoch(1), epoch(1, workers=2))
    assert not same(epoch(1), epoch(2))
    assert not same(epoch(1), epoch(1, seed=1))


def test_an_epoch_visits_every_video_as_often_as_asked(root: Path) -> None:
    data = opened(root, clips_per_video=3)
    loader = data.train_loader()
    assert len(loader) == 6
    videos = Counter(index % 8 for chunk in loader.chunks for index in chunk)
    assert videos == dict.fromkeys(range(8), 3)
    clips = torch.cat([clips for clips, _ in loader])
    assert len({clip.numpy().tobytes() for clip in clips}) > 16  # three different clips of each


def test_processes_share_out_the_very_batches_of_one(root: Path) -> None:
    data = opened(root)
    whole = list(data.train_loader())
    shares = [list(data.train_loader(rank=rank, world=2)) for rank in range(2)]
    for step, (clips, labels) in enumerate(whole):
        assert torch.equal(clips, torch.cat([share[step][0] for share in shares]))
        assert torch.equal(labels, torch.cat([share[step][1] for share in shares]))
    assert sum(len(labels) for rank in range(3) for _, labels in data.eval_loader(rank=rank, world=3)) == 4
    with pytest.raises(DataError, match="batches of 4 clips cannot be shared evenly by 3 processes"):
        data.train_loader(world=3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_test_video_gives_clips_spread_over_it(root: Path, workers: int) -> None:
    data = opened(root, workers=workers)
    samples = list(data.test_loader(clips=5))
    assert [(Path(sample.name).parts[-3:], sample.label) for sample in samples] == [
        (("val", name, f"{index}.mp4"), label) for label, name in enumerate(("left", "right")) for index in range(2)
    ]
    for sample in samples:
        assert sample.clips.shape == (5, 3, 8, 80, 80)
        starts = [index * 25 // 4 for index in range(5)]
        assert [numbers_in(clip, data) for clip in sample.clips] == [list(range(s, s + 15, 2)) for s in starts]


@pytest.mark.parametrize("size", [(96, 160), (160, 96)])
def test_three_crops_go_along_the_longer_side(tmp_path: Path, size: tuple[int, int]) -> None:
    video_folders(tmp_path, frames=20, size=size)
    data = opened(tmp_path, resolution=64, short_side=(80, 96))
    three, one = (next(iter(data.test_loader(clips=2, crops=crops))).clips for crops in (3, 1))
    assert three.shape == (6, 3, 8, 80, 80)  # (80, 133) or (133, 80), cut at 0, 26 and 53
    assert one.shape == (2, 3, 8, 64, 64)
    assert torch.equal(three[1, :, :, 8:72, 8:72], one[0])
    along = 3 if size[0] < size[1] else 2
    first, middle, last = three[:3]
    assert torch.equal(first.narrow(along, 26, 54), middle.narrow(along, 0, 54))
    assert torch.equal(middle.narrow(along, 27, 53), last.narrow(along, 0, 53))
    with pytest.raises(DataError, match="clips must be at least 1 and crops 1 or 3, got 10 and 2"):
        data.test_loader(10, 2)


def test_other_rates_are_put_on_the_common_one(tmp_path: Path) -> None:
    for name, fps in (("a", 15), ("b", 60)):
        for half in ("train", "val"):
            write_video(tmp_path / half / name / "x.mp4", fps, size=(80, 80), fps=fps)
    clips, _ = next(iter(opened(tmp_path).eval_loader()))
    assert [numbers_in(clip, opened(tmp_path)) for clip in clips] == [
        [slot // 2 for slot in range(7, 22, 2)],
        [slot * 2 for slot in range(7, 22, 2)],
    ]
    native = opened(tmp_path, fps=None)
    clips, _ = next(iter(native.eval_loader()))
    assert [numbers_in(clip, native)[0] for clip in clips] == [0, 22]


def test_every_file_is_searched_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanconv.data.video import reader

    searched = []
    scan = reader.scan
    monkeypatch.setattr(reader, "scan", lambda path, *rest: (searched.append(path), scan(path, *rest))[1])
    alone, two = opened(root), opened(root, workers=2)
    for data in (alone, two):
        list(data.train_loader())
    assert len(searched) == 8  # and 8 more in the workers
    monkeypatch.setattr(reader, "scan", lambda *_: pytest.fail("searched again"))
    for data in (alone, two):
        data.set_epoch(1)
        assert len(list(data.train_loader())) == 2


def test_what_workers_run_can_be_sent_to_them(root: Path) -> None:
    data = opened(root)
    items = _Items(data.train_loader().source, 2)
    one, other = items[5], pickle.loads(pickle.dumps(items))[5]
    assert torch.equal(one.pixels, other.pixels)


def test_pixels_are_normalised(root: Path) -> None:
    data = opened(root, augment="none", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))
    clip = next(iter(data.eval_loader()))[0][0]
    grey = clip[:, 0, :10].mean(dim=(1, 2))  # the border above the number is grey 128
    assert np.allclose(grey, [(128 / 255 - 0.5) / 0.5, (128 / 255 - 0.25) / 0.25, 128 / 255], atol=0.05)
    assert number_of(((clip[2, 0] * 255).round().numpy())[..., None].repeat(3, -1)) == 12


def test_wrong_arguments_are_answered(root: Path) -> None:
    with pytest.raises(UnknownName, match="unknown kind of video set 'video-cvs': did you mean 'video-csv'"):
        open_videos("video-cvs:a")
    with pytest.raises(UnknownName, match="unknown augmentation of videos 'vide': did you mean 'video'"):
        opened(root, augment="vide")
    with pytest.raises(DataError, match=r"expected kinetics:\.\.\. with a path after the colon"):
        open_videos("kinetics")
    with pytest.raises(DataError, match="frames must be at least 1, got 0"):
        opened(root, frames=0)
    with pytest.raises(DataError, match="short_side 60 to 80 must be a range of lengths that a crop of 80 pixels fits"):
        opened(root, short_side=(60, 80))
    with pytest.raises(DataError, match="fps must be above 0 and at most 1000"):
        opened(root, fps=0)


def test_without_pyav_the_extra_is_named_and_no_video_is_blamed(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingExtra, match=r"reading videos needs the package 'av'.*pip install 'leanconv\[video\]'"):
        opened(root)
