"""Damage, drawn from a seed: to bytes, to JSON, and to texts of options."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

EXTREMES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 0.5, -0.5, 1e-300, 1e300, 10**9, 2**31, 2**63, 10**30, "", "x", "0", "nan",
    "1e999", "x" * 3000, "../../etc/passwd", "/etc/passwd", "~nobody/x", "a\0b", "\u202e\0", "os:system",
    "fuzz_mark:run", "subprocess:run", "hf:owner/name", "timm/resnet18", "torchvision/resnet18", "${oc.env:HOME}",
    "${now:}", "${", "__import__('fuzz_mark')", [], {}, [[]], [None], [1, 2, 3], {"a": 1}, {"": {}}, [[[[[[]]]]]],
    {"model": "fuzz_mark:run"}, ["fuzz_mark:run"], {"pretrained": True}, {"weights": "DEFAULT"}, [10**9] * 3,
)  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> bytes:
    """One of: bytes flipped, a piece lost, doubled, moved or written over by an extreme number, the end cut."""
    out = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 8))):
        at, kind = draw.randrange(len(out)), draw.randrange(6)
        length = draw.choice((1, 2, 4, 8, 16, 64))
        if kind == 0:
            out[at] = draw.randrange(256)
        elif kind == 1:
            del out[at : at + length]
        elif kind == 2:
            out[at:at] = out[at : at + length]
        elif kind == 3:
            piece = bytes(out[at : at + length])
            to = draw.randrange(len(out))
            out[to : to + length] = piece
        elif kind == 4:
            number = draw.choice((0, 1, 0x7F, 0x80, 0xFF, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
            size = draw.choice((1, 2, 4, 8))
            out[at : at + size] = (number % 256**size).to_bytes(size, draw.choice(("little", "big")))
        else:
            del out[at:]
        if not out:
            break
    return bytes(out)


def changed(data: Any, draw: random.Random) -> Any:
    """Plain data of which one to four places were replaced, taken out, exchanged or given more."""
    data = copy.deepcopy(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        places = list(_places(data))
        if not places:
            break
        holder, key = draw.choice(places)
        kind = draw.randrange(6)
        if kind < 3:
            holder[key] = copy.deepcopy(draw.choice(EXTREMES))
        elif kind == 3:
            del holder[key]
        elif kind == 4:
            other, there = draw.choice(places)
            if there in other if isinstance(other, dict) else there < len(other):
                holder[key] = copy.deepcopy(other[there])
        elif isinstance(holder, dict):
            holder[str(draw.choice(EXTREMES))] = copy.deepcopy(draw.choice(EXTREMES))
        else:
            holder.insert(key, copy.deepcopy(draw.choice(EXTREMES)))
    return data


def as_json(data: Any, draw: random.Random) -> bytes:
    """The text of changed data, sometimes damaged itself."""
    text = json.dumps(changed(data, draw)).encode("utf-8", "surrogatepass")
    return damaged(text, draw) if draw.random() < 0.2 else text


def as_text(text: str, draw: random.Random) -> str:
    """A text of options with letters, numbers and pieces of others in other places."""
    pieces = (
        "=",
        ":",
        ",",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        "-",
        "e",
        ".",
        " ",
        "x",
        "0",
        "9" * 30,
        "nan",
        "\n",
        "\0",
        "*",
        "!",
    )
    for _ in range(draw.choice((1, 1, 2, 3, 6))):
        at = draw.randrange(len(text) + 1)
        kind = draw.randrange(4)
        if kind == 0:
            text = text[:at] + draw.choice(pieces) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + draw.choice((1, 2, 5)) :]
        elif kind == 2:
            text = text[:at] + str(draw.choice(EXTREMES)) + text[at + draw.choice((0, 1, 3)) :]
        else:
            text = text[:at] + text[at : at + 8] * draw.choice((2, 3, 50)) + text[at:]
    return text


def _places(data: Any) -> Any:
    if isinstance(data, dict):
        for key, value in data.items():
            yield data, key
            yield from _places(value)
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield data, index
            yield from _places(value)
