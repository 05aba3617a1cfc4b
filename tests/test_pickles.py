"""The pickle machine: plain data and arrays come out, nothing is run, and sizes are held against the file's."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from leanconv.errors import CheckpointError
from leanconv.pickles import ITEM_BYTES, Array, ForeignName, read_pickle
from leanconv.weights import read_tensors
from leanconv.weights.container import tensor_of

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

PLAIN = {
    "text": "ä", "bytes": b"\x00\xff", "numbers": [1, -2, 3.5, 10**30, True, None], "pair": (1, 2),
    "many": (1, 2, 3, 4), "inner": {"a": {}}, 7: "seven", "empty": [(), [], {}],
}  # fmt: skip


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_comes_out_as_it_went_in(protocol: int) -> None:
    assert read_pickle(pickle.dumps(PLAIN, protocol)) == PLAIN


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("code", ITEM_BYTES)
def test_arrays_of_every_type_come_out_as_they_went_in(protocol: int, code: str) -> None:
    array = (np.arange(24) % 5).astype(code).reshape(2, 3, 4)
    variants = {
        "rows": array, "columns": np.asfortranarray(array), "swapped": array.astype(array.dtype.newbyteorder(">")),
        "empty": array[:0], "cut": array[:, 1:, ::2],
    }  # fmt: skip
    found = read_pickle(pickle.dumps(variants, protocol))
    for name, value in variants.items():
        tensor = tensor_of(found[name])
        assert tensor is not None
        assert torch.equal(tensor, torch.from_numpy(value.astype(code, copy=True))), name
        assert tensor.is_contiguous()


def test_what_stands_beside_becomes_plain_data() -> None:
    content = {
        "scalar": np.float32(2.5), "path": Path("a/b.pth"), "options": argparse.Namespace(x=[1]), "set": {3},
        "counts": collections.defaultdict(int, a=1), "order": collections.OrderedDict([("x", 1), ("y", 2)]),
    }  # fmt: skip
    for protocol in PROTOCOLS:
        found = read_pickle(pickle.dumps(content, protocol))
        assert (found["path"], found["set"], found["counts"], found["order"]) == (
            "a/b.pth",
            [3],
            {"a": 1},
            {"x": 1, "y": 2},
        )
        assert (found["scalar"].shape, found["scalar"].data) == ((), struct.pack("<f", 2.5))
        assert tensor_of(found["scalar"]) is None


class Trap:
    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("call", "named"),
    [
        ((os.mkdir, "sprung"), r"(posix|nt)\.mkdir"),
        ((os.system, "mkdir sprung"), r"(posix|nt)\.system"),
        ((eval, "__import__('os').mkdir('sprung')"), r"(builtins|__builtin__)\.eval"),
        ((getattr, "text", "upper"), r"(builtins|__builtin__)\.getattr"),
        ((np.load, "x.npy"), r"numpy\.load"),
        ((Path.touch, Path("sprung")), r"pathlib|getattr"),
        ((collections.Counter, "aab"), r"collections\.Counter"),
    ],
)  # fmt: skip
def test_nothing_is_called(
    protocol: int, call: Any, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"blobs": {"w": np.ones(2)}, "hook": Trap(*call)}, protocol)
    with pytest.raises(ForeignName, match=named):
        read_pickle(data)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("legacy", [None, False, True], ids=["pickle", "torch's zip", "torch's old form"])
def test_arrays_of_objects_are_refused(legacy: bool | None, tmp_path: Path) -> None:
    """numpy's own way to fill such an array would take any object that the file names, or crash the process."""
    content = {"a": np.array([{}, None], dtype=object)}
    if legacy is None:
        (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    else:
        torch.save(content, tmp_path / "w.pkl", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"w.pkl cannot be read, .*an array of type 'O8', expected one of b1, u1"):
        read_tensors(tmp_path / "w.pkl")


def pickled_array(shape: object, code: object, data: object) -> bytes:
    """An array's pickle with a state of one's own."""

    class State:
        def __reduce__(self) -> Any:
            reconstruct = np.zeros(0).__reduce__()[0]
            kind = np.dtype("f4")
            return reconstruct, (np.ndarray, (0,), b"b"), (1, shape, kind, False, data)

    return pickle.dumps(State())


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        ((2,), b"\0" * 7), ((2, 2), b"\0" * 8), ((10**12,), b""), ((-1,), b""), ((2**47, 2**47), b"\0" * 4),
        ("ab", b""), ((0, 2**47, 2**47), b""),
        ((1,) * 40, b"\0" * 4), ((2,), [1, 2]), ((2.0,), b"\0" * 8), (None, b""),
    ],
)  # fmt: skip
def test_arrays_whose_bytes_do_not_fit_are_refused(shape: object, data: object) -> None:
    with pytest.raises(ValueError, match=r"an array|make no sense"):
        read_pickle(pickled_array(shape, "f4", data))


def test_pickles_that_make_much_of_little_are_refused() -> None:
    """One string of 100 kB encoded a thousand times over: 100 MB out of a file of 110 kB."""
    text = "ÿ" * 50_000
    once = b"c_codecs\nencode\n(h\x00X\x06\x00\x00\x00latin1t" + b"R"
    data = b"\x80\x02(X" + struct.pack("<I", len(text.encode())) + text.encode() + b"q\x00" + once * 1000 + b"l."
    with pytest.raises(ValueError, match="more data than the file can hold"):
        read_pickle(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x80\x02}q\x00", "it ends early"), (b"\x80\x02X\xff\xff\xff\x7fabc", "it ends early"),
        (b"\x80\x04", "it ends early"),
        (b"\x80\x05\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", "it ends early"),
    ],
)  # fmt: skip
def test_cut_pickles_end_early(data: bytes, told: str) -> None:
    with pytest.raises(EOFError, match=told):
        read_pickle(data)


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02.", b"\x80\x02h\x05.", b"\x80\x02t.", b"\x80\x02K\x01K\x02a.", b"\x80\x02}K\x01s.",
        b"\x80\x02K\x01b.", b"\x80\x02]K\x01K\x02s.", b"\x80\x02}(K\x01u.", b"\x80\x02Q.",
        b"\x80\x02(i__main__\nx\n.", b"\x80\x02\x82\x01.",
        b"\x80\x02}]K\x01s.", b"\x80\x02K\x01)R.", b"\x80\x02}N)R.", b"\xff", b"\x80\x02}X\x01\x00\x00\x00\xffK\x01s.",
    ],
)  # fmt: skip
def test_instructions_that_make_no_sense_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        read_pickle(data)


def test_stand_ins_are_data_and_nothing_else() -> None:
    found = read_pickle(pickle.dumps(np.ones((2, 3), "f4")))
    assert isinstance(found, Array)
    assert (found.code, found.shape, len(found.data)) == ("f4", (2, 3), 24)
