"""The embedded videos: real files, read through the decoder, of which one frame tells nothing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from leanconv.data import open_videos
from leanconv.data.sets.moving_digits import WAYS, moving_digits, places
from leanconv.data.video.plan import Framing
from leanconv.data.video.reader import Video
from leanconv.errors import DataError
from leanconv.seeds import generator


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    moving_digits(str(root))
    return root


def test_the_set_is_balanced_and_read_like_any_other(cache: Path) -> None:
    data = open_videos(f"moving-digits:{cache}", resolution=32, batch_size=16)
    assert (data.class_names, data.train_size, data.test_size) == (WAYS, 600, 180)
    assert data._train.files.videos.labels.bincount().tolist() == [100] * 6
    clips, _ = next(iter(data.train_loader()))
    assert clips.shape == (16, 3, 8, 32, 32)
    assert data.problems == ()
    assert not data._train.files.training.mirror  # left would become right
    train, test = (set(half.files.videos.paths) for half in (data._train, data._test))
    assert not train & test


def test_the_files_hold_the_digit_where_it_was_put(cache: Path) -> None:
    from leanconv.data.sets.digits import digits
    from leanconv.data.sets.moving_digits import _picture

    halves = digits()
    for way in WAYS:
        draws = generator("moving-digits", "test", way, 7)
        digit = int(torch.randint(0, len(halves.test.labels), (), generator=draws))
        expected = [np.roll(_picture(halves.test, digit), at, (0, 1)) for at in places(way, draws)]
        [folder] = cache.iterdir()
        with Video(str(folder / "test" / way / "007.mp4")) as video:
            frames = video.read(range(len(video.index)), Framing(short_side=None))[..., 1]
        assert len(frames) == 40
        difference = np.abs(frames.astype(int) - np.stack(expected))
        assert difference.mean() < 2
        assert difference[:, np.stack(expected)[0] == 0].max() < 256
        # No trail: away from the digit the picture stays black.
        away = np.stack([_grown(picture) for picture in expected]) == 0
        assert frames[away].max() < 24


def _grown(picture: np.ndarray) -> np.ndarray:
    """The picture with every bright pixel spread over its neighbourhood, as blocks of the codec do."""
    grown = picture
    for axis in (0, 1):
        grown = np.max([np.roll(grown, shift, axis) for shift in range(-8, 9)], axis=0)
    return grown


def test_one_frame_tells_nothing_and_two_tell_the_way() -> None:
    """In every frame of every way the digit's place is uniform over the torus; its steps are the way's own."""
    for way in WAYS:
        runs = [places(way, generator("t", way, number)) for number in range(1500)]
        for frame in (0, 20, 39):
            at = torch.tensor([run[frame] for run in runs]) % 64
            for axis in (0, 1):
                counts = torch.bincount(at[:, axis] // 16, minlength=4).float()
                assert ((counts - 375).abs() < 5 * 375**0.5).all()
        steps = torch.tensor(runs, dtype=torch.float64).diff(dim=1)
        mean = steps.mean(dim=1)
        turn = (steps[:, :-1, 1] * steps[:, 1:, 0] - steps[:, :-1, 0] * steps[:, 1:, 1]).sum(dim=1)
        if way in ("clockwise", "counterclockwise"):
            assert (turn > 0).all() if way == "clockwise" else (turn < 0).all()
        else:
            axis, sign = {"left": (1, -1), "right": (1, 1), "up": (0, -1), "down": (0, 1)}[way]
            assert ((mean[:, axis] * sign > 1.4) & (mean[:, 1 - axis] == 0)).all()


def test_the_files_are_written_once_and_appear_whole(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.listdir(cache) == ["moving-digits-1"]  # no draft is left
    monkeypatch.setattr("leanconv.data.sets.moving_digits._write", lambda _: pytest.fail("written again"))
    assert len(moving_digits(str(cache)).train.paths) == 600


def test_the_default_place_is_the_users_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "leanconv").symlink_to(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert moving_digits("").train.paths[0].startswith(str(tmp_path / "leanconv"))


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written: .*: name another folder as moving-digits:FOLDER"):
        moving_digits(str(tmp_path / "file"))


def test_another_process_that_was_faster_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leanconv.data.sets import moving_digits as module

    def as_fast(folder: Path, *_: object) -> None:
        (tmp_path / "moving-digits-1" / "theirs").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(module, "_write_half", as_fast)
    module._write(tmp_path / "moving-digits-1")
    assert os.listdir(tmp_path) == ["moving-digits-1"]
    assert os.listdir(tmp_path / "moving-digits-1") == ["theirs"]
