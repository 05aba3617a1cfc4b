"""Clips as a player shows them: turned, mirrored, with oblong pixels, of a size that changes, the right stream."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from leanconv.data.video.augment import ClipShape, DrawnClip, SpreadClips
from leanconv.data.video.plan import Framing
from leanconv.data.video.reader import Video
from leanconv.errors import DataError

ONE = 1 << 16
COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def quarters(height: int = 64, width: int = 96) -> np.ndarray:
    """Red and green above blue and white."""
    corners = np.array([COLOURS[name] for name in "RGBW"], np.uint8).reshape(2, 2, 3)
    return corners.repeat(height // 2, 0).repeat(width // 2, 1)


def disc(height: int, width: int, aspect: Fraction = Fraction(1)) -> np.ndarray:
    """A white disc as it must lie in a frame whose pixels are `aspect` times as wide as high."""
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + ((x - width / 2) * float(aspect)) ** 2 < 24**2
    return np.where(inside[..., None], 255, 0).repeat(3, 2).astype(np.uint8)


def write(path: Path, picture: np.ndarray, count: int = 3, *, aspect: Fraction | None = None) -> Path:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=30, options={"preset": "veryfast", "qp": "4"})
        stream.height, stream.width, stream.pix_fmt = *picture.shape[:2], "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def with_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """The mp4 file with that display matrix in its track header."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    at += (20 if content[at] == 0 else 32) + 20
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def read(path: Path, framing: Framing | None = None) -> np.ndarray:
    with Video(str(path)) as video:
        return video.read([0], framing or Framing(None))[0]


def corners(picture: np.ndarray) -> str:
    height, width, _ = picture.shape
    names = {tuple(value > 128 for value in colour): name for name, colour in COLOURS.items()}
    at = [picture[y, x] for y in (height // 4, 3 * height // 4) for x in (width // 4, 3 * width // 4)]
    return "".join(names.get(tuple(bool(value > 128) for value in pixel), "?") for pixel in at)


def roundness(picture: np.ndarray) -> float:
    lit = picture[..., 1] > 128
    return float(lit.any(0).sum() / max(lit.any(1).sum(), 1))


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), "RGBW"), ((0, 1, -1, 0), "BRWG"), ((-1, 0, 0, -1), "WBGR"), ((0, -1, 1, 0), "GWRB"),
        ((-1, 0, 0, 1), "GRWB"), ((1, 0, 0, -1), "BWRG"), ((0, 1, 1, 0), "RBGW"), ((0, -1, -1, 0), "WGBR"),
    ],
)  # fmt: skip
def test_all_eight_display_matrices(tmp_path: Path, matrix: tuple[int, int, int, int], shown: str) -> None:
    path = with_matrix(write(tmp_path / "a.mp4", quarters()), *(ONE * value for value in matrix))
    picture = read(path)
    assert picture.shape == ((64, 96, 3) if matrix[0] else (96, 64, 3))
    assert corners(picture) == shown
    cut = read(path, Framing(32, 32))
    assert cut.shape == (32, 32, 3)
    assert corners(cut) == shown


def test_a_picture_that_stands_askew_is_refused(tmp_path: Path) -> None:
    half = round(ONE * 0.5**0.5)
    with pytest.raises(DataError, match=r"shown turned by -?45.* degrees, and only quarters"):
        read(with_matrix(write(tmp_path / "a.mp4", quarters()), half, half, -half, half))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("aspect", [Fraction(4, 3), Fraction(10, 11), Fraction(16, 11)])
def test_discs_are_round_where_pixels_are_not_square(tmp_path: Path, aspect: Fraction, turned: bool) -> None:
    path = write(tmp_path / "a.mp4", disc(96, 96, aspect), aspect=aspect)
    if turned:
        with_matrix(path, 0, ONE, -ONE, 0)
    whole = read(path)
    wide = round(96 * aspect)
    assert whole.shape == ((wide, 96, 3) if turned else (96, wide, 3))
    assert roundness(whole) == pytest.approx(1, abs=0.07)
    assert roundness(read(path, Framing(64, 64))) == pytest.approx(1, abs=0.1)


def changing(path: Path, frames: int = 20) -> Path:
    """A recording whose pictures lie in the first half and stand in the second."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=30)
        stream.height, stream.width, stream.pix_fmt = 64, 160, "yuvj420p"
        other = av.CodecContext.create("mjpeg", "w")
        other.height, other.width, other.pix_fmt, other.time_base = 160, 64, "yuvj420p", Fraction(1, 30)
        for number in range(frames):
            first = number < frames // 2
            frame = av.VideoFrame.from_ndarray(disc(*((64, 160) if first else (160, 64))), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            for packet in (stream if first else other).encode(frame):
                packet.stream, packet.time_base = stream, Fraction(1, 30)
                packet.pts = packet.dts = number
                out.mux(packet)
    return path


def test_every_frame_is_framed_by_its_own_size(tmp_path: Path) -> None:
    path = changing(tmp_path / "call.mkv")
    shape = ClipShape(frames=4, rate=5, resolution=64, fps=None)
    with Video(str(path)) as video:
        for choice in (SpreadClips(shape, 64, 2, 1), DrawnClip(shape, (64, 64), False)):
            plan = choice.plan(video.index, torch.Generator().manual_seed(0))
            clips = plan.arranged(video.read(plan.frames, plan.framing)).reshape(-1, 3, 4, 64, 64)
            for frame in clips.permute(0, 2, 3, 4, 1).reshape(-1, 64, 64, 3).numpy():
                if plan.framing.at is None:
                    assert roundness(frame) == pytest.approx(1, abs=0.1)
        plan = SpreadClips(shape, 64, 1, 3).plan(video.index, torch.Generator())
        with pytest.raises(DataError, match="frames change from 160 x 64 to 64 x 160 pixels"):
            video.read(plan.frames, plan.framing)


@pytest.mark.parametrize("default", [True, False])
def test_the_film_is_taken_where_a_still_picture_comes_first(tmp_path: Path, default: bool) -> None:
    path = tmp_path / "film.mkv"
    with av.open(str(path), "w") as out:
        still = out.add_stream("mjpeg", rate=1)
        still.height, still.width, still.pix_fmt = 64, 64, "yuvj420p"
        film = out.add_stream("libx264", rate=30, options={"preset": "veryfast"})
        film.height, film.width, film.pix_fmt = 64, 160, "yuv420p"
        for stream in (still, film):
            chosen = default and stream is film
            stream.disposition = av.stream.Disposition.default if chosen else av.stream.Disposition(0)
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 0, Fraction(1, 1)
        out.mux(still.encode(frame))
        out.mux(still.encode())
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(np.full((64, 160, 3), 5 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            out.mux(film.encode(frame))
        out.mux(film.encode())
    with Video(str(path)) as video:
        assert (len(video.index), video.read([0], Framing(None)).shape) == (30, (1, 64, 160, 3))
