"""Tiny real video files in which every frame shows its own number."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from leanconv.data import VideoData

BITS = 10
"""Frame numbers are drawn as this many black or white columns, least significant first, on a border of grey."""


def numbered(number: int, height: int, width: int) -> np.ndarray:
    """An RGB picture (height, width, 3) of `number` in binary, red in the upper half and blue in the lower."""
    picture = np.full((height, width, 3), 128, dtype=np.uint8)
    edges = np.linspace(0, width, BITS + 1).round().astype(int)
    for bit in range(BITS):
        picture[height // 4 : 3 * height // 4, edges[bit] : edges[bit + 1]] = 255 * (number >> bit & 1)
    return picture


def number_of(frame: np.ndarray) -> int:
    """The number that a decoded frame (height, width, 3) shows; an `AssertionError` where that is unclear."""
    height, width, _ = frame.shape
    edges = np.linspace(0, width, BITS + 1)
    middles = ((edges[:-1] + edges[1:]) / 2).astype(int)
    levels = frame[height // 2 - 1 : height // 2 + 1, middles].mean(axis=(0, 2))
    assert (np.abs(levels - 127.5) > 60).all(), levels
    return int(sum(1 << bit for bit in range(BITS) if levels[bit] > 127.5))


def write_video(
    path: Path,
    frames: int = 60,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 160),
    fps: int | Fraction = 30,
    keys: int = 12,
    b_frames: int = 2,
    stamps: Sequence[int] | None = None,
    muxer: str | None = None,
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    rotation: int = 0,
) -> Path:
    """Write `frames` numbered frames of `size` (height, width) and return the path.

    `stamps` are presentation times in milliseconds, for a varying rate; `rotation` is what a player shall turn the
    picture by, counter-clockwise.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    quiet = {"libx265": {"x265-params": "log-level=none"}, "libx264": {"preset": "veryfast"}}
    with av.open(str(path), "w", format=muxer, options=container or {}) as out:
        stream = out.add_stream(codec, rate=fps, options={**quiet.get(codec, {}), **(options or {})})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = keys
        stream.codec_context.max_b_frames = b_frames
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(numbered(number, *size), format="rgb24")
            frame.pts = number if stamps is None else stamps[number]
            frame.time_base = 1 / Fraction(fps) if stamps is None else Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def write_sound(path: Path, *, cover: bool = False) -> Path:
    """Write half a second of silence, with `cover` a picture beside it."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mp3" if path.suffix == ".mp3" else "aac", rate=44100)
        stream.layout = "mono"
        picture = out.add_stream("png") if cover else None
        if picture is not None:
            picture.width = picture.height = 16
            picture.pix_fmt = "rgb24"
            picture.disposition = av.stream.Disposition.attached_pic
        for start in range(0, 22050, 1152):
            sound = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.float32), format="fltp", layout="mono")
            sound.rate, sound.pts = 44100, start
            out.mux(stream.encode(sound))
        out.mux(stream.encode())
        if picture is not None:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")))
            out.mux(picture.encode())
    return path


def video_folders(root: Path, *, per_class: int = 4, classes: tuple[str, ...] = ("left", "right"), **how: Any) -> Path:
    """Write `train/` with `per_class` numbered videos in each class and `val/` with two, and return the folder.

    Pictures are 80 pixels square: wide enough to be read at that size.
    """
    for half, count in (("train", per_class), ("val", 2)):
        for name in classes:
            for index in range(count):
                write_video(root / half / name / f"{index}.mp4", **{"frames": 40, "size": (80, 80), **how})
    return root


def numbers_in(clip: Tensor, data: VideoData) -> list[int]:
    """The frame numbers that a normalised clip (3, frames, h, w) shows."""
    shift, scale = (torch.tensor(values)[:, None, None, None] for values in (data.mean, data.std))
    pixels = ((clip * scale + shift) * 255).round().byte().permute(1, 2, 3, 0).numpy()
    return [number_of(frame) for frame in pixels]
