"""MXNet's `.params`: every version of the array format, every type, and what cannot be right."""

from __future__ import annotations

import struct

import pytest
import torch
from writers import MXNET_TYPES, VERSIONS, params, symbol_params

from leanconv.weights.mxnet_params import read_params

TENSORS = {"a_weight": torch.arange(24.0).reshape(2, 3, 4), "b": torch.ones(5), "c_gamma": torch.zeros(1, 1)}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read(version: str) -> None:
    found = read_params(params(TENSORS, version))
    assert list(found) == list(TENSORS)
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.parametrize("dtype", MXNET_TYPES)
def test_every_type_is_read(dtype: torch.dtype) -> None:
    tensor = (torch.arange(6) % 4).reshape(2, 3).to(dtype)
    assert torch.equal(read_params(params({"x": tensor}))["x"], tensor)


def test_a_file_by_hand() -> None:
    """One float16 array of shape (2,), version 2, on a GPU, named arg:x."""
    data = bytes.fromhex(
        "1201000000000000" "0000000000000000" "0100000000000000"  # magic, reserved, one array
        "c9fa93f9" "00000000" "01000000" "0200000000000000"  # version 2, dense, one axis of 2
        "02000000" "03000000" "02000000" "003c" "00c0"  # GPU 3, float16, 1 and -2
        "0100000000000000" "0500000000000000" "6172673a78"  # one name
    )  # fmt: skip
    found = read_params(data)
    assert list(found) == ["x"]
    assert (found["x"].dtype, found["x"].tolist()) == (torch.float16, [1.0, -2.0])


def test_kinds_of_the_symbol_api_come_off() -> None:
    assert list(read_params(symbol_params({"bn_gamma": torch.ones(1), "bn_moving_var": torch.ones(1)}))) == [
        "bn_gamma", "bn_moving_var",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="two arrays have the same name"):
        read_params(params({"arg:x": torch.ones(1), "aux:x": torch.ones(1)}))


def test_numbers_and_nothing_at_all() -> None:
    """Version 3 knows numbers, with no axes; in the others no axes mean no array."""
    assert read_params(params({"x": torch.tensor(3.0)}, "V3"))["x"].shape == ()
    nothing = struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FAC9, 0, 0) + struct.pack("<QQ", 1, 1) + b"x"
    assert read_params(nothing)["x"].numel() == 0
    unknown = struct.pack("<QQQIii", 0x112, 0, 1, 0xF993FACA, 0, -1) + struct.pack("<QQ", 1, 1) + b"x"
    assert read_params(unknown)["x"].numel() == 0
    assert read_params(params({"x": torch.ones(0, 3)}))["x"].shape == (0, 3)


START = struct.pack("<QQ", 0x112, 0)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (START, "8 bytes are announced at byte 16, 0 are left"),
        (START + struct.pack("<Q", 2**60), "1152921504606846976 entries are announced at byte 16"),
        (
            START + struct.pack("<QIiiqiii", 1, 0xF993FAC9, 0, 1, 2**50, 1, 0, 0),
            r"4503599627370496 bytes are announced",
        ),
        (START + struct.pack("<QIIIiii", 1, 2, 2**31, 2**31, 1, 0, 0), "bytes are announced"),
        (params(TENSORS)[:-3], "entries are announced|bytes are announced"),
    ],
)
def test_lengths_beyond_the_file_end_it_early(data: bytes, told: str) -> None:
    with pytest.raises(EOFError, match=told):
        read_params(data)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (struct.pack("<QQ", 0x113, 0), "first bytes"),
        (START + struct.pack("<QIi", 1, 0xF993FAC9, 1) + bytes(64), "a sparse array"),
        (START + struct.pack("<QIii", 1, 0xF993FAC9, 0, 99) + bytes(64), "an array of 99 axes"),
        (START + struct.pack("<QI", 1, 0xF993FAC7) + bytes(64), r"an array of 4187224775 axes"),
        (
            START + struct.pack("<QIiiqiii", 1, 0xF993FAC9, 0, 1, 2, 1, 0, 55) + bytes(64),
            "of type 55, which is unknown",
        ),
        (START + struct.pack("<QIiiqiii", 1, 0xF993FAC9, 0, 1, -2, 1, 0, 0) + bytes(64), r"an array of shape \(-2,\)"),
        (
            START + struct.pack("<QIii3qiii", 1, 0xF993FAC9, 0, 3, 0, 2**40, 2**40, 1, 0, 0),
            r"an array of shape \(0, 1099",
        ),
        (params(TENSORS) + b"x", "1 bytes follow its end"),
        (START + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"x", "0 arrays with 1 names"),
        (START + struct.pack("<QQ", 0, 1) + struct.pack("<Q", 1) + b"\xff", "decode"),
    ],
)
def test_what_makes_no_sense_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_params(data)
