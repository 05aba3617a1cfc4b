"""`moving-digits`: scikit-learn's real handwritten digits that move in six ways, as real video files.

The label is the way: left, right, up, down, clockwise, counterclockwise. The picture is a torus (what leaves on one
side comes in on the other) and every start is equally likely, so the place of the digit in any single frame is uniform
whatever the way: one frame does not show the label, and a mirrored video has another one. The files are MPEG-4 with
B-frames and a key frame every 12, and are read back through the decoder like any others.
"""

from __future__ import annotations

import csv
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from leanconv.data.sets.digits import digits
from leanconv.data.sets.paths import user_path
from leanconv.data.sets.splits import Split
from leanconv.data.sets.video_csv import video_csv
from leanconv.data.sets.video_files import VideoSet
from leanconv.errors import DataError
from leanconv.files import whole_folder
from leanconv.seeds import generator

__all__ = ["WAYS", "moving_digits", "places"]

WAYS = ("left", "right", "up", "down", "clockwise", "counterclockwise")

_SIDE = 64
_DIGIT = 24
_FRAMES = 40
_VIDEOS = {"train": 100, "test": 30}
"""Videos of each way."""
_FOLDER = "moving-digits-1"
"""The number changes with what is written, so that no older files are taken for it."""


def moving_digits(text: str) -> VideoSet:
    """600 training and 180 test videos, of other digits, kept in the folder `text` (default: the user's cache).

    They are written once, in seconds: into a folder that gets its name when it is complete. Raises `DataError` where
    that cannot be written, `MissingExtra` without scikit-learn.
    """
    cache = user_path(text) if text else _cache()
    folder = cache / _FOLDER
    if not folder.is_dir():
        _write(folder)
    return replace(video_csv(f"{folder / 'train.csv'},{folder / 'test.csv'}"), mirror=False)


def places(way: str, draws: torch.Generator, frames: int = _FRAMES) -> list[tuple[int, int]]:
    """Top and left of the digit in every frame, modulo the side of the picture."""
    top, left = torch.randint(0, _SIDE, (2,), generator=draws).tolist()
    speed, phase = torch.rand(2, generator=draws, dtype=torch.float64).tolist()
    if way in ("clockwise", "counterclockwise"):
        radius, turn = 10 + 4 * speed, (1 if way == "clockwise" else -1) * 2 * math.pi / 24
        angles = [2 * math.pi * phase + turn * frame for frame in range(frames)]  # clockwise: rows count downwards
        return [(top + round(radius * math.sin(angle)), left + round(radius * math.cos(angle))) for angle in angles]
    down, right = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}[way]
    steps = [round((1.5 + 1.5 * speed) * frame) for frame in range(frames)]
    return [(top + down * step, left + right * step) for step in steps]


def _cache() -> Path:
    """Where the operating system's user keeps what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(home) if home else Path.home() / ".cache") / "leanconv"


def _write(folder: Path) -> None:
    images = digits()
    assert images.train is not None

    def complain(reason: str) -> DataError:
        return DataError(f"{folder}: cannot be written: {reason}: name another folder as moving-digits:FOLDER")

    # Where another process is faster, its files are the same.
    with whole_folder(folder, complain, keep_existing=True) as draft:
        for name, split in (("train", images.train), ("test", images.test)):
            _write_half(draft, name, split)


def _write_half(folder: Path, name: str, split: Split) -> None:
    rows = []
    for label, way in enumerate(WAYS):
        (folder / name / way).mkdir(parents=True)
        for number in range(_VIDEOS[name]):
            draws = generator("moving-digits", name, way, number)
            digit = int(torch.randint(0, len(split.labels), (), generator=draws))
            path = Path(name) / way / f"{number:03d}.mp4"
            _write_video(folder / path, _picture(split, digit), places(way, draws))
            rows.append((path.as_posix(), label, way))
    with open(folder / f"{name}.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "class"))
        writer.writerows(rows)


def _picture(split: Split, index: int) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The digit in the corner of a black picture."""
    from PIL import Image

    picture = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    with split.read(index) as image:
        picture[:_DIGIT, :_DIGIT] = np.array(image.convert("L").resize((_DIGIT, _DIGIT), Image.Resampling.BILINEAR))
    return picture


def _write_video(
    path: Path, picture: np.ndarray[tuple[int, int], np.dtype[np.uint8]], at: list[tuple[int, int]]
) -> None:
    import av

    with av.open(str(path), "w") as out:
        # A fixed fine quantizer: coarse ones leave trails that show where the digit came from.
        stream: Any = out.add_stream("mpeg4", rate=30, options={"qmin": "2", "qmax": "2"})
        stream.width = stream.height = _SIDE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = 2
        stream.codec_context.thread_count = 1
        for number, (top, left) in enumerate(at):
            frame = av.VideoFrame.from_ndarray(np.roll(picture, (top, left), (0, 1)), format="gray")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
