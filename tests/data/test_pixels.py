"""Pixels as a viewer shows them: all modes that Pillow opens, all eight orientations of EXIF."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageMode, TiffImagePlugin
from tiny_images import picture

from leanconv.data import open_images
from leanconv.data.images.modes import orientation, to_rgb, upright

RAMP = np.linspace(0, 1, 256).reshape(16, 16)


def grey(image: Image.Image) -> np.ndarray:
    """One channel of a grey picture as a viewer shows it, from 0 to 1."""
    pixels = np.asarray(to_rgb(image)).astype(float) / 255
    assert pixels.shape == (16, 16, 3)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def reopened(image: Image.Image, kind: str, **how: object) -> Image.Image:
    held = io.BytesIO()
    image.save(held, kind, **how)
    held.seek(0)
    return Image.open(held)


def file_of(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def twelve_bits() -> Image.Image:
    """A TIFF file of 12 bits a pixel, as microscopes and cameras write them: two pixels in three bytes."""
    values = (RAMP * 4095).round().astype(int).reshape(-1, 2)
    packed = bytes(b for one, two in values for b in (one >> 4, (one & 15) << 4 | two >> 8, two & 255))
    fields = [(256, 16), (257, 16), (258, 12), (259, 1), (262, 1), (273, 122), (277, 1), (278, 16), (279, len(packed))]
    table = b"".join(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little") for tag, value in fields)
    head = b"II*\0\x08\0\0\0" + len(fields).to_bytes(2, "little") + table + b"\0\0\0\0"
    return file_of(head.ljust(122, b"\0") + packed)


GREYS = {
    "8 bits": lambda: Image.fromarray((RAMP * 255).round().astype("uint8")),
    "8 bits and opacity": lambda: Image.fromarray((RAMP * 255).round().astype("uint8")).convert("LA"),
    "palette": lambda: reopened(Image.fromarray((RAMP * 255).round().astype("uint8")).convert("P"), "png"),
    "16 bits, png": lambda: reopened(Image.fromarray((RAMP * 65535).astype("uint16")), "png"),
    "16 bits, tiff": lambda: reopened(Image.fromarray((RAMP * 65535).astype("uint16")), "tiff"),
    "16 bits, white is 0": lambda: reopened(
        Image.fromarray(65535 - (RAMP * 65535).astype("uint16")), "tiff", tiffinfo={262: 0}
    ),
    "16 bits, big end first": lambda: Image.frombytes("I;16B", (16, 16), (RAMP * 65535).astype(">u2").tobytes()),
    "12 bits": twelve_bits,
    "pgm to 65535": lambda: file_of(b"P5 16 16 65535\n" + (RAMP * 65535).astype(">u2").tobytes()),
    "pgm to 1000": lambda: file_of(b"P5 16 16 1000\n" + (RAMP * 1000).astype(">u2").tobytes()),
    "jpeg 2000, 16 bits": lambda: reopened(Image.fromarray((RAMP * 65535).astype("uint16")), "jpeg2000"),
}


@pytest.mark.parametrize("kind", GREYS)
def test_grey_of_any_depth_has_its_own_range(kind: str) -> None:
    np.testing.assert_allclose(grey(GREYS[kind]()), RAMP, atol=2.5 / 255)


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("top", [1, 255, 65535])
def test_grey_without_a_range_is_refused_with_what_it_holds(dtype: str, top: int) -> None:
    image = reopened(Image.fromarray((RAMP * top).astype(dtype)), "tiff")
    with pytest.raises(
        ValueError, match=rf"(no fixed range|signed numbers).* store it with 8 or 16 .*\(here 0 to {top}\)"
    ):
        to_rgb(image)


def test_signed_pixels_are_refused() -> None:
    values = (RAMP * 255).astype("uint8")
    image = reopened(Image.fromarray(values), "tiff", tiffinfo=TiffImagePlugin.ImageFileDirectory_v2())
    image.tag_v2[339] = 2
    with pytest.raises(ValueError, match="signed"):
        to_rgb(image)


@pytest.mark.parametrize("mode", ["RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_colours_of_every_mode_stay_the_colours(mode: str) -> None:
    colour = Image.new("RGB", (4, 4), (200, 120, 40))
    if mode == "LAB":
        from PIL import ImageCms

        converted = ImageCms.profileToProfile(
            colour, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
    else:
        converted = colour.convert("RGBA").convert(mode) if mode == "RGBa" else colour.convert(mode)
    assert converted.mode == mode
    np.testing.assert_allclose(np.asarray(to_rgb(converted))[0, 0], (200, 120, 40), atol=3)


def test_colours_that_were_multiplied_by_their_opacity_are_divided_by_it() -> None:
    half = Image.new("RGBA", (2, 2), (200, 120, 40, 128)).convert("RGBa")
    np.testing.assert_allclose(np.asarray(to_rgb(half))[0, 0], (200, 120, 40), atol=2)
    assert np.asarray(to_rgb(Image.frombytes("La", (1, 1), bytes((100, 128)))))[0, 0].tolist() == [199, 199, 199]


def test_no_mode_of_pillow_is_forgotten() -> None:
    modes = set(ImageMode._modes) if hasattr(ImageMode, "_modes") else set()
    modes |= {"1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa", "La"}
    modes |= {"I;16", "I;16L", "I;16B", "I;16N"}
    for mode in modes - {"I", "F"}:
        assert to_rgb(Image.new(mode, (2, 2))).mode == "RGB", mode


# --------------------------------------------------------------------------------------------------------- orientation

# How a picture whose corners are 1 2 / 3 4 is stored for each orientation (the standard's table).
STORED = {
    1: [[1, 2], [3, 4]], 2: [[2, 1], [4, 3]], 3: [[4, 3], [2, 1]], 4: [[3, 4], [1, 2]],
    5: [[1, 3], [2, 4]], 6: [[2, 4], [1, 3]], 7: [[4, 2], [3, 1]], 8: [[3, 1], [4, 2]],
}  # fmt: skip


def stored(number: int, kind: str, *, height: int = 16, width: int = 24) -> Image.Image:
    """A picture of four levels of grey, written so that it is shown upright."""
    order = STORED[number]
    high, wide = (height, width) if number < 5 else (width, height)
    pixels = np.kron(np.array(order), np.ones((high // 2, wide // 2))) * 60
    record = Image.Exif()
    record[0x112] = number
    return reopened(Image.fromarray(pixels.astype("uint8")), kind, exif=record)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "tiff"])
@pytest.mark.parametrize("number", STORED)
def test_all_orientations_are_shown_upright(number: int, kind: str) -> None:
    image = stored(number, kind)
    found = orientation(image)
    assert found == number
    shown = np.asarray(to_rgb(upright(image, found)))[..., 0]
    assert shown.shape == (16, 24)
    corners = [round(float(shown[y, x]) / 60) for y in (4, 12) for x in (5, 18)]
    assert corners == [1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_record_that_says_nonsense_turns_nothing() -> None:
    for value in (0, 9, 77):
        record = Image.Exif()
        record[0x112] = value
        assert orientation(reopened(picture(1), "png", exif=record)) == 1
    assert orientation(reopened(picture(1), "jpeg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")) == 1


def turned_set(root: Path) -> Path:
    for name in "ab":
        (root / name).mkdir(parents=True)
        for index in range(5):
            stored(6 if index < 2 else 1, "png", height=16, width=16).save(
                root / name / f"{index}.png", exif=stored(6 if index < 2 else 1, "png").getexif()
            )
    return root


@pytest.mark.parametrize(("memory_limit", "workers"), [(2**30, 0), (0, 0), (0, 1)])
def test_turned_images_are_counted_and_said(tmp_path: Path, memory_limit: int, workers: int) -> None:
    spec = f"folder:{turned_set(tmp_path)}"
    data = open_images(spec, resolution=16, batch_size=2, memory_limit=memory_limit, workers=workers)
    shown = [
        images[:, 0, 4, 4].tolist() for loader in (data.train_loader(), data.eval_loader()) for images, _ in loader
    ]
    assert len({round(value, 3) for values in shown for value in values}) == 1, "every picture is the same, upright"
    [told] = data.remarks
    assert told == "4 images are turned or mirrored, as EXIF says"
    plain = open_images(spec, resolution=16, exif=False, mean=data.mean, std=data.std)
    assert len({round(float(v), 3) for images, _ in plain.train_loader() for v in images[:, 0, 4, 4]}) == 2
    assert plain.remarks == ()
    assert (data.contract.exif, plain.contract.exif) == (True, False)
