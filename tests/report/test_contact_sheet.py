"""The contact sheet shows the very pixels, says what each clip is and was taken for, and is whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from leanconv.errors import LeanconvError
from leanconv.report.contact_sheet import ContactRow, evenly_spaced, save_contact_sheet

GREEN, RED = (26, 127, 55), (196, 38, 38)


def row(*, prediction: str = "hug", seed: int = 0, frames: int = 4, side: int = 16, name: str = "a.avi") -> ContactRow:
    pixels = np.random.default_rng(seed).integers(60, 250, (frames, side, side, 3), dtype=np.uint8)
    return ContactRow(frames=pixels, name=name, label="hug", prediction=prediction, probability=0.624)


def read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB"))


def place(sheet: np.ndarray, frame: np.ndarray, factor: int) -> list[tuple[int, int]]:
    """Where the frame, enlarged `factor` times, stands on the sheet, pixel by pixel."""
    big = frame.repeat(factor, 0).repeat(factor, 1)
    height, width = big.shape[:2]
    corners = np.argwhere((sheet == big[0, 0]).all(2)).tolist()
    return [(y, x) for y, x in corners if np.array_equal(sheet[y : y + height, x : x + width], big)]


def test_the_pixels_are_those_of_the_clips_in_rows(tmp_path: Path) -> None:
    rows = [row(seed=1), row(seed=2, prediction="push"), row(seed=3)]
    sheet = read(save_contact_sheet(rows, tmp_path / "deep" / "sheet.png"))
    tops, lefts = [], []
    for shown in rows:
        found = [place(sheet, frame, 6) for frame in shown.frames]  # 16 pixels are enlarged to 96
        assert all(len(places) == 1 for places in found)
        assert len({places[0][0] for places in found}) == 1
        tops.append(found[0][0][0])
        lefts.append([places[0][1] for places in found])
    assert tops == sorted(set(tops))
    assert lefts[0] == lefts[1] == lefts[2] == sorted(set(lefts[0]))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["sheet.png"]


def test_right_is_green_and_wrong_is_red(tmp_path: Path) -> None:
    def colours(shown: ContactRow) -> set[tuple[int, int, int]]:
        pixels = read(save_contact_sheet([shown], tmp_path / "sheet.png"))
        return {tuple(map(int, colour)) for colour in np.unique(pixels.reshape(-1, 3), axis=0)}  # type: ignore[misc]

    assert GREEN in colours(row())
    assert RED not in colours(row())
    assert RED in colours(row(prediction="push"))
    assert GREEN not in colours(row(prediction="push"))


def test_titles_say_it_without_colour() -> None:
    assert row().title == "hug  62 %"
    assert row(prediction="push").title == "hug -> push  62 %"


def test_evenly_spaced_frames(tmp_path: Path) -> None:
    long = row(frames=32, side=100)
    sheet = read(save_contact_sheet([long], tmp_path / "sheet.png", columns=3))
    assert [bool(place(sheet, frame, 1)) for frame in long.frames] == [i in (0, 16, 31) for i in range(32)]
    for total, count in ((1, 8), (8, 8), (9, 8), (300, 12)):
        chosen = evenly_spaced(total, count)
        assert len(chosen) == len(set(chosen)) == min(total, count)
        assert (chosen[0], chosen[-1]) == (0, total - 1)
    assert evenly_spaced(7, 1) == [3]


def test_a_single_frame_and_a_long_name_fit(tmp_path: Path) -> None:
    sheet = read(save_contact_sheet([row(frames=1, side=8, name="x" * 400)], tmp_path / "sheet.png"))
    assert sheet.shape[1] == 400
    assert (sheet[:, -8:] == 255).all()  # nothing runs over the margin


@pytest.mark.parametrize(
    ("rows", "columns", "told"),
    [
        ([], 8, "no clip to show"),
        ([row(), row(side=12)], 8, r"one size \(frames, h, w, 3\), got \(4, 12, 12, 3\), \(4, 16, 16, 3\)"),
        ([row()], 0, "columns must be at least 1"),
    ],
)
def test_what_cannot_be_shown(rows: list[ContactRow], columns: int, told: str, tmp_path: Path) -> None:
    with pytest.raises(LeanconvError, match=told):
        save_contact_sheet(rows, tmp_path / "sheet.png", columns=columns)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_sheet_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_contact_sheet([row()], tmp_path / "sheet.png")
    before = path.read_bytes()

    def full(self: Image.Image, target: Path, **_: Any) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(LeanconvError, match=r"sheet\.png: cannot be written: No space left on device"):
        save_contact_sheet([row(seed=5)], path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["sheet.png"]
