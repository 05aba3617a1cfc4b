"""Folders, parquet files and timm's readers: what they read and how they refuse."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny_images import encoded, folder_set, picture

from leanconv.data import ImageData, open_images
from leanconv.data.loaders import Loader
from leanconv.errors import DataError, UnknownName


def write_parquet(
    path: Path, labels, *, broken: tuple[int, ...] = (), names: list[str] | None = None, **columns
) -> Path:
    rows = [
        {"bytes": b"not an image" if index in broken else encoded(index), "path": f"{index}.png"}
        for index in range(len(labels))
    ]
    image = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    table = pa.table({"image": image, "label": pa.array(labels, pa.int64())})
    if names is not None:
        note = {"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, path)
    return path


# ------------------------------------------------------------------------------------------------------------- folders


def test_folder_with_train_and_val(tmp_path: Path) -> None:
    data = open_images(f"folder:{folder_set(tmp_path, per_class=3)}", resolution=8)
    assert (data.class_names, data.train_size, data.test_size) == (("cat", "dog"), 6, 6)
    assert torch.cat([labels for _, labels in data.eval_loader()]).tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("name", ["test", "validation"])
def test_folder_by_another_name(tmp_path: Path, name: str) -> None:
    folder_set(tmp_path)
    (tmp_path / "val").rename(tmp_path / name)
    assert open_images(f"folder:{tmp_path}", resolution=8).test_size == 8


def test_folder_of_classes_is_split_the_same_way_every_time(tmp_path: Path) -> None:
    folder_set(tmp_path, per_class=10)
    one, other = (open_images(f"folder:{tmp_path / 'train'}", resolution=8, seed=seed) for seed in (0, 1))
    assert (one.train_size, one.test_size) == (16, 4)
    for a, b in zip(one.eval_loader(), other.eval_loader(), strict=True):
        assert torch.equal(a[0], b[0])


def test_files_that_are_no_images_by_name_are_ignored(tmp_path: Path) -> None:
    folder_set(tmp_path, per_class=2)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("x")
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "cat" / "deeper").mkdir()
    picture(5).save(tmp_path / "train" / "cat" / "deeper" / "one.PNG")
    data = open_images(f"folder:{tmp_path}", resolution=8)
    assert (data.train_size, data.problems) == (5, ())


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"folder:.*nowhere: expected a folder .* found nothing there"):
        open_images(f"folder:{tmp_path / 'nowhere'}")


def test_empty_class(tmp_path: Path) -> None:
    folder_set(tmp_path)
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(DataError, match=r"train/eel: empty class"):
        open_images(f"folder:{tmp_path}")


def test_only_one_class(tmp_path: Path) -> None:
    folder_set(tmp_path, classes=("cat",))
    with pytest.raises(DataError, match="at least two of them, found 1: cat"):
        open_images(f"folder:{tmp_path}")


def test_train_without_test(tmp_path: Path) -> None:
    folder_set(tmp_path)
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(DataError, match="found train/ but none of val, valid, validation, test beside it"):
        open_images(f"folder:{tmp_path}")


def test_a_class_of_the_test_half_that_training_does_not_have(tmp_path: Path) -> None:
    folder_set(tmp_path)
    (tmp_path / "val" / "eel").mkdir()
    with pytest.raises(DataError, match="class 'eel' is not a class of"):
        open_images(f"folder:{tmp_path}")


# -------------------------------------------------------------------------------------------------------- broken images


def spoil(folder: Path) -> list[Path]:
    """Three kinds of damage: not an image, a truncated image, an empty file."""
    paths = [folder / "train" / "cat" / f"{index}.png" for index in range(2)] + [folder / "val" / "dog" / "0.png"]
    paths[0].write_text("<html>404</html>")
    paths[1].write_bytes(encoded(1, side=32)[:400])
    paths[2].write_bytes(b"")
    return paths


@pytest.mark.parametrize("memory_limit", [2**30, 0])
@pytest.mark.parametrize("workers", [0, 1])
def test_corrupt_images_are_named_and_skipped(tmp_path: Path, memory_limit: int, workers: int) -> None:
    spoiled = spoil(folder_set(tmp_path, per_class=4))
    data = open_images(f"folder:{tmp_path}", resolution=8, batch_size=4, memory_limit=memory_limit, workers=workers)
    seen = [len(labels) for loader in (data.train_loader(), data.eval_loader()) for _, labels in loader]
    assert {name for name, _ in data.problems} == {str(path) for path in spoiled}
    assert all(reason for _, reason in data.problems)
    # In memory the images are left out; on the way a training image is replaced by its neighbour.
    assert sum(seen) == (4 + 7 if memory_limit else 8 + 7)


def test_nothing_readable_at_all(tmp_path: Path) -> None:
    folder_set(tmp_path, per_class=2)
    for path in tmp_path.rglob("*.png"):
        path.write_text("no")
    data = open_images(f"folder:{tmp_path}", resolution=8)
    with pytest.raises(DataError, match=r"none of the 4 images could be read, for example .*png"):
        data.train_loader()
    streamed = open_images(f"folder:{tmp_path}", resolution=8, memory_limit=0)
    with pytest.raises(DataError, match=r"4 images in a row cannot be used for training, the last is .*png"):
        next(iter(streamed.train_loader()))
    with pytest.raises(DataError, match=r"none of the images could be read, for example .*png"):
        list(streamed.eval_loader())


def test_a_class_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    folder_set(tmp_path, per_class=2)
    for path in (tmp_path / "train" / "dog").iterdir():
        path.write_text("no")
    with pytest.raises(DataError, match="class 'dog': none of its training images could be read"):
        open_images(f"folder:{tmp_path}", resolution=8).train_loader()


# ------------------------------------------------------------------------------------------------------------- parquet


def test_parquet_pair(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", [0, 1, 2, 0, 1, 2])
    test = write_parquet(tmp_path / "test.parquet", [2, 1])
    data = open_images(f"parquet:{train},{test}", resolution=8, mean=(0, 0, 0), std=(1, 1, 1))
    assert (data.class_names, data.train_size, data.test_size) == (("0", "1", "2"), 6, 2)
    images, labels = next(iter(data.eval_loader()))
    assert labels.tolist() == [2, 1]
    expected = torch.tensor([picture(0).getpixel((x, 0)) for x in range(8)]).T
    assert torch.equal((images[0, :, 0] * 255).round().long(), expected)


def test_parquet_shards_names_and_split(tmp_path: Path) -> None:
    for number in range(2):
        write_parquet(tmp_path / f"part-{number}.parquet", [0, 1] * 5, names=["cat", "dog"])
    data = open_images(f"parquet:{tmp_path}/part-*.parquet", resolution=8)
    assert (data.class_names, data.train_size, data.test_size) == (("cat", "dog"), 16, 4)


def test_parquet_broken_row_is_named(tmp_path: Path) -> None:
    train = write_parquet(tmp_path / "train.parquet", [0, 1, 0, 1], broken=(2,))
    test = write_parquet(tmp_path / "test.parquet", [0, 1])
    data = open_images(f"parquet:{train},{test}", resolution=8)
    assert sum(len(labels) for _, labels in data.train_loader()) == 3
    assert data.problems[0].name == f"{train} row 2 (2.png)"


def test_parquet_errors(tmp_path: Path) -> None:
    good = write_parquet(tmp_path / "good.parquet", [0, 1, 0, 1])

    def refused(train: object, message: str, test: object = good) -> None:
        with pytest.raises(DataError, match=message) as caught:
            open_images(f"parquet:{train},{test}", resolution=8)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "none.parquet", "no such parquet file")
    (tmp_path / "text.parquet").write_text("hello")
    refused(tmp_path / "text.parquet", "not a readable parquet file")
    pq.write_table(pa.table({"label": [0, 1]}), tmp_path / "a.parquet")
    refused(tmp_path / "a.parquet", r"no column 'image', expected .* found label")
    pq.write_table(pa.table({"image": [{"bytes": b""}]}), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", "no column 'label'")
    pq.write_table(pa.table({"image": [{"path": "x"}], "label": [0]}), tmp_path / "c.parquet")
    refused(tmp_path / "c.parquet", "has no field 'bytes' .* found path")
    pq.write_table(pa.table({"image": ["x"], "label": [0]}), tmp_path / "d.parquet")
    refused(tmp_path / "d.parquet", "must hold encoded images as bytes, found string")
    pq.write_table(pa.table({"image": [{"bytes": b""}], "label": ["cat"]}), tmp_path / "e.parquet")
    refused(tmp_path / "e.parquet", "must hold whole numbers, found string")
    refused(write_parquet(tmp_path / "f.parquet", [0, -1, 1]), r"row 1 has label -1, expected 0 to 1 \(2 classes\)")
    refused(write_parquet(tmp_path / "g.parquet", [0, 2, 0]), "empty class '1'")
    refused(write_parquet(tmp_path / "h.parquet", [0, None, 1]), "1 rows have no label")
    refused(write_parquet(tmp_path / "i.parquet", []), "no images at all")
    refused(write_parquet(tmp_path / "j.parquet", [0, 0]), "every label is 0, expected at least two classes")
    named = write_parquet(tmp_path / "k.parquet", [0, 1, 2], names=["cat", "dog"])
    refused(named, r"row 2 has label 2, expected 0 to 1")
    refused(good, r"row 1 has label 5, expected 0 to 1", test=write_parquet(tmp_path / "l.parquet", [0, 5]))
    with pytest.raises(DataError, match="expected parquet:TRAIN,TEST or one file"):
        open_images("parquet:a,b,c")


def test_parquet_too_large_for_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", [0, 1, 0, 1])
    monkeypatch.setattr("os.sysconf", lambda name: 10)
    with pytest.raises(DataError, match=r"GiB of encoded images, .* unpack them to folder:PATH"):
        open_images(f"parquet:{path}")


# ---------------------------------------------------------------------------------------------------------------- timm


def test_timm_folder(tmp_path: Path) -> None:
    spoiled = spoil(folder_set(tmp_path, per_class=3))
    data = open_images(f"timm:?root={tmp_path}", resolution=8)
    assert (data.class_names, data.train_size, data.test_size) == (("cat", "dog"), 4, 5)
    # The reader names files by their path inside the split.
    assert {Path(name).name for name, _ in data.problems} == {path.name for path in spoiled}


def test_timm_errors(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown option of a timm data set 'rot': did you mean 'root'"):
        open_images(f"timm:?rot={tmp_path}")
    with pytest.raises(DataError, match=r"timm:torch/cifar10 \(train\): timm cannot open it: ") as caught:
        open_images(f"timm:torch/cifar10?root={tmp_path}")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------ classes by name


def coloured(path: Path, kinds: str, names: list[str] | None) -> Path:
    """Images of one colour per class, whose labels number the `names` (default: r, g, b) of the file."""
    order = names or ["r", "g", "b"]
    colours = {"r": (250, 0, 0), "g": (0, 250, 0), "b": (0, 0, 250)}
    rows = []
    for kind in kinds:
        held = io.BytesIO()
        Image.new("RGB", (8, 8), colours[kind]).save(held, "png")
        rows.append({"bytes": held.getvalue(), "path": None})
    table = pa.table({"image": rows, "label": [order.index(kind) for kind in kinds]})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)
    return path


def shown(data: ImageData, loader: Loader) -> bool:
    """Whether every image has the name of its colour."""
    seen = [
        ("rgb"[int(image.mean((1, 2)).argmax())], data.class_names[int(label)])
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
    ]
    return bool(seen) and all(colour == name for colour, name in seen)


@pytest.mark.parametrize("order", ["rgb", "bgr", "gbr"])
def test_parquet_classes_are_matched_by_name(tmp_path: Path, order: str) -> None:
    train = coloured(tmp_path / "train.parquet", "rgb" * 2, ["r", "g", "b"])
    test = coloured(tmp_path / "test.parquet", "rgb", list(order))
    data = open_images(f"parquet:{train},{test}", resolution=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert shown(data, data.eval_loader())
    assert shown(data, data.train_loader())
    assert data.remarks == ()


@pytest.mark.parametrize("order", ["rgb", "bgr", "gbr"])
def test_parquet_shards_are_matched_by_name(tmp_path: Path, order: str) -> None:
    coloured(tmp_path / "part-0.parquet", "rgb" * 3, ["r", "g", "b"])
    coloured(tmp_path / "part-1.parquet", "bgr" * 3, list(order))
    data = open_images(f"parquet:{tmp_path}/part-*.parquet", resolution=8, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert shown(data, data.train_loader())
    assert shown(data, data.eval_loader())


def test_parquet_classes_that_one_file_lacks_or_adds(tmp_path: Path) -> None:
    train = coloured(tmp_path / "train.parquet", "rg" * 2, ["r", "g"])
    whole = coloured(tmp_path / "whole.parquet", "rgb", ["b", "g", "r"])
    part = coloured(tmp_path / "part.parquet", "gg", ["b", "g", "r"])
    with pytest.raises(
        DataError, match=r"whole.parquet: the class 'b' \(1 of 3\) is none of the 2 that .*train.parquet"
    ):
        open_images(f"parquet:{train},{whole}", resolution=8)
    fixed = {"resolution": 8, "mean": (0.0,) * 3, "std": (1.0,) * 3}
    data = open_images(f"parquet:{train},{part}", **fixed)
    assert shown(data, data.eval_loader())
    assert data.remarks == (f"{part} has none of the class 'r', which {train} knows",)
    nameless = coloured(tmp_path / "nameless.parquet", "rg", None)
    [told] = open_images(f"parquet:{train},{nameless}", **fixed).remarks
    assert "nameless.parquet names no classes: its labels are taken for the numbers of" in told
    coloured(tmp_path / "part-0.parquet", "rgb", ["r", "g", "b"])
    coloured(tmp_path / "part-1.parquet", "rgb", None)
    with pytest.raises(DataError, match=r"part-1.parquet names no classes and others do"):
        open_images(f"parquet:{tmp_path}/part-[01].parquet", resolution=8)


def test_a_single_parquet_file_to_test_on_is_used_whole(tmp_path: Path) -> None:
    path = coloured(tmp_path / "a.parquet", "rrgg", ["r", "g"])
    assert open_images(f"parquet:{path}", resolution=8).test_size == 2
    data = open_images(f"parquet:{path}", resolution=8, testing=True, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert data.test_size == 4
    assert shown(data, data.eval_loader())


def test_timm_numbers_classes_of_each_part_and_they_are_matched_by_name(tmp_path: Path) -> None:
    folder_set(tmp_path, per_class=3, classes=("ant", "bee", "cat"))
    for file in (tmp_path / "val" / "ant").iterdir():
        file.unlink()
    (tmp_path / "val" / "ant").rmdir()
    data = open_images(f"timm:?root={tmp_path}", resolution=8)
    assert torch.cat([labels for _, labels in data.eval_loader()]).tolist() == [1] * 3 + [2] * 3
    assert "has none of the class 'ant'" in data.remarks[0]


def test_timm_takes_a_folder_without_parts_for_both(tmp_path: Path) -> None:
    folder_set(tmp_path, per_class=3)
    with pytest.raises(DataError, match=r"all of its test images are also its training images: .* folder:DIR"):
        open_images(f"timm:?root={tmp_path / 'train'}", resolution=8)


@pytest.mark.parametrize(
    "given", [{"std": (0.0, 1.0, 1.0)}, {"mean": (123.0, 117.0, 104.0)}, {"std": (58.0,) * 3}, {"mean": (0.5,)}]
)
def test_statistics_that_no_pixels_have(given) -> None:
    with pytest.raises(DataError, match=r"digits: (mean|std) must be 3 values .* of pixels in 0..1"):
        open_images("digits", resolution=8, **given)
