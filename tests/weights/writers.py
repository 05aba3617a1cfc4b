"""Writers of the containers that other projects use, byte by byte."""

from __future__ import annotations

import pickle
import struct
import tarfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MXNET_TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.uint8: 3, torch.int32: 4, torch.int64: 6}
VERSIONS = ("before 1.0", "V1", "V2", "V3")


def params(tensors: Mapping[str, Tensor], version: str = "V2") -> bytes:
    """MXNet's `.params`, with the names that are given."""
    out = [struct.pack("<QQQ", 0x112, 0, len(tensors))]
    for tensor in tensors.values():
        shape = tuple(tensor.shape)
        if version == "before 1.0":
            out.append(struct.pack(f"<I{len(shape)}I", len(shape), *shape))
        elif version == "V1":
            out.append(struct.pack(f"<II{len(shape)}q", 0xF993FAC8, len(shape), *shape))
        else:
            magic = 0xF993FAC9 if version == "V2" else 0xF993FACA
            out.append(struct.pack(f"<Iii{len(shape)}q", magic, 0, len(shape), *shape))
        out += [struct.pack("<iii", 1, 0, MXNET_TYPES[tensor.dtype]), tensor.contiguous().numpy().tobytes()]
    out.append(struct.pack("<Q", len(tensors)))
    out += [struct.pack("<Q", len(name.encode())) + name.encode() for name in tensors]
    return b"".join(out)


def symbol_params(tensors: Mapping[str, Tensor], version: str = "V2") -> bytes:
    """The same with the kinds that the Symbol API writes before names."""
    kind = {name: "aux" if name.endswith(("moving_mean", "moving_var")) else "arg" for name in tensors}
    return params({f"{kind[name]}:{name}": tensor for name, tensor in tensors.items()}, version)


def blobs(tensors: Mapping[str, Tensor], protocol: int = 2) -> bytes:
    """Caffe2's pickle of numpy arrays."""
    return pickle.dumps({"blobs": {name: np.asarray(tensor) for name, tensor in tensors.items()}}, protocol)


def tar(path: Path, **members: bytes) -> Path:
    """An archive of files whose names have _dot_ for the dot."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("_dot_", "."))
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return path
