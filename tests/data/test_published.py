"""CIFAR, SVHN and ImageNet in the formats they are published in, as tiny files of the same layout."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from tiny_images import picture

from leanconv.data import open_images
from leanconv.errors import DataError


def planes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def dump(path: Path, content: object) -> None:
    path.write_bytes(pickle.dumps(content, protocol=2))


def cifar10_python(folder: Path, per_file: int = 10) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate([f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]):
        content = {b"data": planes(per_file, number), b"labels": [n % 10 for n in range(per_file)]}
        dump(folder / name, content)
    dump(folder / "batches.meta", {b"label_names": [f"class{n}".encode() for n in range(10)]})
    return folder


def cifar10_binary(folder: Path, per_file: int = 10) -> Path:
    folder.mkdir(parents=True)
    for number, name in enumerate([f"data_batch_{n}.bin" for n in range(1, 6)] + ["test_batch.bin"]):
        labels = (np.arange(per_file) % 10).astype(np.uint8)[:, None]
        (folder / name).write_bytes(np.concatenate([labels, planes(per_file, number)], 1).tobytes())
    return folder


def test_cifar10_python_and_binary_are_the_same_images(tmp_path: Path) -> None:
    cifar10_python(tmp_path / "a" / "cifar-10-batches-py")
    binary = cifar10_binary(tmp_path / "b")
    sets = [open_images(f"cifar10:{path}", resolution=32, batch_size=50) for path in (tmp_path / "a", binary)]
    assert [(data.train_size, data.test_size, data.num_classes) for data in sets] == [(50, 10, 10)] * 2
    assert sets[0].class_names[3] == "class3"
    assert sets[1].class_names[3] == "3"
    first, second = (next(iter(data.eval_loader())) for data in sets)
    assert torch.equal(first[1], second[1])
    torch.testing.assert_close(first[0], second[0])
    mean, std = torch.tensor(sets[0].mean), torch.tensor(sets[0].std)
    red = (first[0][0, 0] * std[0] + mean[0]) * 255
    assert torch.equal(red.round().to(torch.uint8).flatten(), torch.from_numpy(planes(10, 5)[0, :1024].copy()))


def test_cifar100_has_fine_labels(tmp_path: Path) -> None:
    python, binary = tmp_path / "cifar-100-python", tmp_path / "bin"
    python.mkdir()
    binary.mkdir()
    for seed, name in enumerate(("train", "test")):
        fine, coarse = list(range(100)), [n // 5 for n in range(100)]
        dump(python / name, {b"data": planes(100, seed), b"fine_labels": fine, b"coarse_labels": coarse})
        columns = np.array([coarse, fine], dtype=np.uint8).T
        (binary / f"{name}.bin").write_bytes(np.concatenate([columns, planes(100, seed)], 1).tobytes())
    for path in (tmp_path, binary):
        data = open_images(f"cifar100:{path}", resolution=32, batch_size=100)
        assert data.num_classes == 100
        assert torch.equal(next(iter(data.eval_loader()))[1], torch.arange(100))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, ("open('owned', 'w').close()",)


def test_a_pickle_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = cifar10_python(tmp_path / "cifar-10-batches-py")
    dump(folder / "data_batch_2", {b"data": Evil(), b"labels": [0]})
    with pytest.raises(DataError, match="which no image file needs"):
        open_images("cifar10:.")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "data_batch_3").unlink(), "data_batch_3: missing"),
        (lambda f: (f / "data_batch_3").write_bytes(b"no pickle"), "not a readable CIFAR file"),
        (lambda f: dump(f / "data_batch_3", [1, 2]), "expected a dictionary"),
        (lambda f: dump(f / "data_batch_3", {b"data": planes(2, 0)}), "no 'labels' in it"),
        (lambda f: dump(f / "data_batch_3", {b"data": planes(2, 0)[:, :9], b"labels": [1, 2]}), "3072 bytes per image"),
        (
            lambda f: dump(f / "data_batch_3", {b"data": planes(2, 0), b"labels": [1]}),
            "42 images but 41 labels",
        ),
        (lambda f: dump(f / "test_batch", {b"data": planes(1, 0), b"labels": [11]}), "label 11"),
        (lambda f: (f / "test_batch").unlink(), "no file test_batch"),
    ],
)
def test_broken_cifar_files(tmp_path: Path, damage: object, message: str) -> None:
    folder = cifar10_python(tmp_path / "cifar-10-batches-py")
    damage(folder)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        open_images(f"cifar10:{folder}")


def test_truncated_binary(tmp_path: Path) -> None:
    folder = cifar10_binary(tmp_path / "bin")
    file = folder / "data_batch_1.bin"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="no whole number of records of 3073: truncated"):
        open_images(f"cifar10:{folder}")


def svhn_files(folder: Path, per_class: dict[str, int]) -> Path:
    for number, (split, count) in enumerate(per_class.items()):
        labels = np.repeat(np.arange(1, 11), count)
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3, len(labels)), dtype=np.uint8)
        savemat(folder / f"{split}_32x32.mat", {"X": pixels, "y": labels[:, None]})
    return folder


def test_svhn(tmp_path: Path) -> None:
    data = open_images(f"svhn:{svhn_files(tmp_path, {'train': 3, 'test': 2})}", resolution=32, batch_size=20)
    assert (data.train_size, data.test_size) == (30, 20)
    images, labels = next(iter(data.eval_loader()))
    assert images.shape == (20, 3, 32, 32)
    assert labels.tolist() == [n % 10 for n in range(1, 11) for _ in range(2)]  # ten is the digit 0
    assert data.mean[0] == pytest.approx(111.609 / 255)


def test_svhn_with_extra_holds_out_what_the_papers_do(tmp_path: Path) -> None:
    folder = svhn_files(tmp_path, {"train": 402, "test": 1, "extra": 203})
    data = open_images(f"svhn:{folder}?extra=true", resolution=32)
    assert data.train_size == 10 * (402 - 400 + 203 - 200)
    with pytest.raises(DataError, match="extra must be true or false"):
        open_images(f"svhn:{folder}?extra=1")
    svhn_files(tmp_path, {"extra": 200})
    with pytest.raises(DataError, match="has 200 images, 200 of which would be held out"):
        open_images(f"svhn:{folder}?extra=true")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 1), np.uint8)}, "expected the variable y, and there is none"),
        ({"X": np.zeros((16, 32, 3, 1), np.uint8), "y": np.ones((1, 1))}, "must be \\(32, 32, 3, n\\)"),
    ],
)
def test_broken_svhn(tmp_path: Path, content: dict[str, np.ndarray], message: str) -> None:
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(DataError, match=message):
        open_images(f"svhn:{tmp_path}")
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0")
    with pytest.raises(DataError, match=r"not a readable \.mat file"):
        open_images(f"svhn:{tmp_path}")


SYNSETS = ("n02000001", "n01000002", "n03000003")


def imagenet_files(root: Path) -> Path:
    """Flat validation images whose classes the development kit numbers in another order than the folders."""
    for name in SYNSETS:
        (root / "train" / name).mkdir(parents=True)
        for number in range(3):
            picture(number, 12, 10).save(root / "train" / name / f"{name}_{number}.JPEG")
    (root / "val").mkdir()
    for number in range(1, 5):
        picture(number, 9, 14).save(root / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    kit = root / "ILSVRC2012_devkit_t12" / "data"
    kit.mkdir(parents=True)
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n1\n")
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O")]
    savemat(kit / "meta.mat", {"synsets": np.array([(n, name) for n, name in enumerate(SYNSETS, 1)], dtype=kind)})
    return root


def test_imagenet_as_its_archives_unpack(tmp_path: Path) -> None:
    data = open_images(f"imagenet:{imagenet_files(tmp_path)}", resolution=8, batch_size=9, augment="imagenet")
    assert data.class_names == tuple(sorted(SYNSETS))
    assert (data.train_size, data.test_size) == (9, 4)
    labels = torch.cat([labels for _, labels in data.eval_loader()])
    assert [data.class_names[label] for label in labels] == ["n03000003", "n02000001", "n01000002", "n02000001"]


def test_imagenet_40_crops_four_fifths(tmp_path: Path) -> None:
    data = open_images(f"imagenet:{imagenet_files(tmp_path)}", resolution=32, batch_size=9, augment="imagenet40")
    images, _ = next(iter(data.train_loader()))
    again, _ = next(iter(data.train_loader()))
    assert images.shape == (9, 3, 32, 32)
    assert torch.equal(images, again)
    data.set_epoch(1)
    assert not torch.equal(next(iter(data.train_loader()))[0], images)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: (r / "val" / "ILSVRC2012_val_00000004.JPEG").unlink(), "3 images, but .* has 4 numbers"),
        (lambda r: next(r.rglob("*ground_truth.txt")).unlink(), "unpack the development kit"),
        (lambda r: next(r.rglob("*ground_truth.txt")).write_text("3 1 2 9"), "line 4 is '9'"),
        (lambda r: next(r.rglob("meta.mat")).write_bytes(b"x"), "not the development kit's meta.mat"),
        (lambda r: (r / "val").rename(r / "validation"), "expected the folders train/ and val/"),
    ],
)
def test_broken_imagenet(tmp_path: Path, damage: object, message: str) -> None:
    root = imagenet_files(tmp_path)
    damage(root)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        open_images(f"imagenet:{root}")
