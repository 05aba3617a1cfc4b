"""Properties of pictures: however a file stores one, the network sees the same pixels; however files are linked, each
is used once."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_images import picture
from torch import Tensor

from leanconv.data.contract import INTERPOLATIONS, RESIZES
from leanconv.data.images.decode import Decoded, decode
from leanconv.data.images.prepare import Prepare
from leanconv.data.sets.tree import Tree
from random_trials import tried

# What has to be done to an upright picture so that a viewer who obeys the number of its record shows it upright.
STORE = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p, -1),
}  # fmt: skip


class One:
    """A split of a single encoded image."""

    labels = torch.zeros(1, dtype=torch.int64)

    def __init__(self, image: Image.Image, kind: str, number: int) -> None:
        held, record = io.BytesIO(), Image.Exif()
        record[0x112] = number
        image.save(held, kind, exif=record, **({"lossless": True} if kind == "webp" else {}))
        self.content = held.getvalue()

    def name(self, index: int) -> str:
        return "one"

    def read(self, index: int) -> Image.Image:
        return Image.open(io.BytesIO(self.content))


def pixels(image: Image.Image, kind: str, number: int, rule: Prepare) -> Tensor:
    found = decode(One(image, kind, number), 0, rule)
    assert isinstance(found, Decoded), found
    assert found.turned == (number != 1)
    return found.pixels


rules = st.builds(
    Prepare,
    st.integers(1, 24),
    st.sampled_from(RESIZES),
    st.sampled_from(INTERPOLATIONS),
    st.sampled_from((1.0, 0.875)),
)


@tried(60, "LEANCONV_FILES")
@given(
    width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99), number=st.sampled_from(list(STORE)),
    kind=st.sampled_from(("png", "tiff", "webp")),
    mode=st.sampled_from(("RGB", "L", "RGBA", "LA", "P", "1")),
    rule=rules,
)  # fmt: skip
def test_what_is_seen_does_not_depend_on_how_it_is_stored(width, height, seed, number, kind, mode, rule) -> None:
    seen = picture(seed, width, height).convert(mode).convert("RGB")
    upright = pixels(seen, "png", 1, rule)
    assert (upright.dtype, upright.shape) == (torch.uint8, (3, rule.resolution, rule.resolution))
    stored = Image.fromarray(np.ascontiguousarray(STORE[number](np.asarray(seen))))
    if mode in ("L", "1", "RGBA") and not (kind == "webp" and mode in ("L", "1")):
        stored = stored.convert(mode, dither=Image.Dither.NONE)
    assert torch.equal(pixels(stored, kind, number, rule), upright)


@tried(40, "LEANCONV_FILES")
@given(st.data())
def test_every_file_of_a_class_is_found_once_whatever_is_linked(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folders = [root / "c"]
        folders[0].mkdir()
        made = 0
        for number in range(data.draw(st.integers(1, 12))):
            home = data.draw(st.sampled_from(folders))
            what = data.draw(st.sampled_from(("file", "folder", "link to folder", "link to file", "hard link")))
            files = [path for path in root.rglob("*.png") if not path.is_symlink()]
            if what == "file" or not files:
                (home / f"{number}.png").write_bytes(b"x")
                made += 1
            elif what == "folder":
                (home / str(number)).mkdir()
                folders.append(home / str(number))
            elif what == "link to folder":
                os.symlink(data.draw(st.sampled_from([root, *folders])), home / str(number))
            else:
                link = os.symlink if what == "link to file" else os.link
                link(data.draw(st.sampled_from(files)), home / f"{number}.png")
        tree = Tree(root, frozenset((".png",)))
        assert tree.add("c") == made
        assert len({os.stat(root / path).st_ino for path, _, _ in tree.files}) == made
