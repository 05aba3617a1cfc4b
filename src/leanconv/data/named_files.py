"""Files that somebody names, without labels, prepared as the test images or videos of a contract are."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import torch

from leanconv.data.contract import InputContract
from leanconv.data.images.images import ImageData
from leanconv.data.images.prepare import Prepare
from leanconv.data.sets.folder import FolderFiles, image_suffixes
from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import ImageSet
from leanconv.data.sets.tree import Tree
from leanconv.data.sets.video_files import SUFFIXES, VideoList, VideoSet
from leanconv.data.video.augment import ClipShape
from leanconv.data.video.index import require_pyav
from leanconv.data.video.video import VideoData, frame_rate
from leanconv.errors import DataError

__all__ = ["find_files", "open_files"]


def find_files(names: Sequence[str], *, videos: bool = False) -> list[str]:
    """The files that `names` mean, each once: a file itself, a folder's images or `videos` at any depth, a pattern's.

    A file that is not there stays in the list, to be reported as missing. Raises `DataError` for a folder without any
    such file and a pattern that nothing matches.

    >>> find_files(["a.jpg", "a.jpg"])
    ['a.jpg']
    """
    suffixes, what = (SUFFIXES, "video") if videos else (image_suffixes(), "image")
    found: list[str] = []
    for name in names:
        path = user_path(name)
        if path.is_dir():
            inside = [str(path / inner) for inner, _ in Tree(path, suffixes).names()]
            if not inside:
                raise DataError(f"{name}: a folder without a file that has the suffix of {what}s, at any depth")
            found += inside
        elif not path.exists() and glob.has_magic(name):
            matching = sorted(file for file in glob.glob(str(path), recursive=True) if Path(file).is_file())
            if not matching:
                raise DataError(f"{name}: no file matches this pattern")
            found += matching
        else:
            found.append(str(path))
    return list(dict.fromkeys(found))


def open_files(
    paths: Sequence[str], contract: InputContract, *, batch_size: int = 32, workers: int = 0
) -> ImageData | VideoData:
    """The files as a set to be tested on, made as `contract` says; every label is 0 and means nothing."""
    labels, names = torch.zeros(len(paths), dtype=torch.int64), contract.class_names or ()
    if len(contract.mean) != 3 or contract.size[-1] != contract.size[-2]:
        raise DataError(f"files are read as squares of three channels, the network is fed {list(contract.size)}")
    if contract.clip is not None:
        videos = VideoSet(train=None, test=VideoList(tuple(paths), labels), class_names=names)
        require_pyav()
        clip, side = contract.clip, contract.size[-1]
        fps = None if clip.fps is None else frame_rate(clip.fps)
        return VideoData(
            videos,
            shape=ClipShape(frames=contract.size[1], rate=clip.rate, resolution=side, fps=fps),
            short_side=(clip.short_side, clip.short_side),
            batch_size=batch_size,
            workers=workers,
            mean=_three(contract.mean),
            std=_three(contract.std),
        )
    images = ImageSet(train=None, test=FolderFiles(Path(), tuple(paths), labels), class_names=names)
    return ImageData(
        images,
        resolution=contract.size[-1],
        batch_size=batch_size,
        workers=workers,
        mean=_three(contract.mean),
        std=_three(contract.std),
        exif=contract.exif,
        evaluation=Prepare.by(contract),
    )


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    return values[0], values[1], values[2]
