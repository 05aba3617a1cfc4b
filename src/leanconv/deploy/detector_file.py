"""A detector of torchvision as an ONNX file: one image (3, h, w) of any size in, the objects in it out.

    input float32 (3, h, w), values from 0 to 1 -> boxes (n, 4), labels (n,), scores (n,), and masks (n, 1, h, w)

How many objects there are depends on the values, which torch's exporter of programs does not follow yet; its tracer of
calls does, and torchvision's detectors are written for it. The file holds the resize, the suppression of overlapping
boxes and the masks, pasted into the image.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from leanconv.data.contract import InputContract
from leanconv.deploy.metadata import KEY, FileInput
from leanconv.deploy.verify import Difference, one_line
from leanconv.errors import ExportError, need
from leanconv.seeds import generator

__all__ = ["compared", "write_detector"]

_OPSET = 17


class _Decoder:
    """Corners of boxes from what the head says of regions, by torchvision's decoder, and of no regions as well."""

    def __init__(self, coder: Any) -> None:
        self.coder: Any = coder.coder if isinstance(coder, _Decoder) else coder

    def decode(self, told: Tensor, regions: Sequence[Tensor]) -> Tensor:
        """(n, 4 classes) of the regions of all images to (n, classes, 4)."""
        corners: Tensor = self.coder.decode_single(told, torch.cat(list(regions)))
        return corners.reshape(-1, told.shape[1] // 4, 4)


class _OneImage(nn.Module):
    """What a detector finds in one image, as a tuple."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector
        # Of no region at all torchvision's own decoder writes a reshape that no file can run: (0, n) to (0, -1).
        heads = detector.roi_heads
        heads.box_coder = _Decoder(heads.box_coder)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        [found] = self.detector([image])
        return tuple(found[name] for name in ("boxes", "labels", "scores", "masks") if name in found)


def write_detector(
    model: nn.Module, path: Path, size: Sequence[int], contract: InputContract | None, opset: int | None
) -> int:
    """Write the file; returns its opset. Raises `ExportError` naming what cannot be exported."""
    try:
        import onnx
    except ImportError as error:
        raise need("onnx", "export", "writing an ONNX file") from error
    names = ["boxes", "labels", "scores", *(["masks"] if model.roi_heads.has_mask() else [])]  # type: ignore[union-attr, operator]
    free: dict[str, dict[int, str]] = {"input": {1: "height", 2: "width"}}
    free |= {name: {0: "objects", **({2: "height", 3: "width"} if name == "masks" else {})} for name in names}
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _OneImage(model).eval(),
                (_image(size, 0),),
                str(path),
                dynamo=False,
                opset_version=opset or _OPSET,
                input_names=["input"],
                output_names=names,
                dynamic_axes=free,
            )
    except Exception as error:  # whatever the exporter raises for what it cannot follow
        raise ExportError(f"{path}: this detector cannot be written as ONNX: {one_line(error)}") from error
    if contract is not None:
        made = onnx.load(str(path))
        entry = made.metadata_props.add()
        entry.key, entry.value = KEY, FileInput(contract=contract).to_text()
        onnx.save(made, str(path))
    return opset or _OPSET


def compared(
    model: nn.Module, run: Callable[..., Any], size: Sequence[int], samples: int, tolerance: float
) -> Difference:
    """Model and file beside each other on images of several sizes.

    Where scores are equal to rounding their order may differ, so objects are compared where both have as many, and an
    image on which they have not is an error. Raises `ExportError` beyond `tolerance`.
    """
    whole = _OneImage(model).eval()
    gaps: dict[str, tuple[float, float]] = {}
    for number in range(samples):
        height, width = size[1] - 7 * number, size[2] - 11 * number
        image = _image((3, max(height, 16), max(width, 16)), number + 1)
        with torch.no_grad():
            wanted = whole(image)
        try:
            found = [torch.as_tensor(one) for one in run(image)]
        except Exception as error:  # onnxruntime has no public base class for its errors
            raise ExportError(
                f"the file does not run on an image of {tuple(image.shape)}, in which the model finds {len(wanted[0])}"
                f" objects ({one_line(error)}): where a detector of torchvision proposes no region at all, its file"
                " cannot go on; train it, or export another configuration"
            ) from error
        for name, mine, theirs in zip(("boxes", "labels", "scores", "masks"), wanted, found, strict=False):
            if mine.shape != theirs.shape:
                raise ExportError(
                    f"the file finds {len(theirs)} objects in an image of {tuple(image.shape)} and the model"
                    f" {len(mine)}: it is not the same detector"
                )
            gap = float((mine.double() - theirs.double()).abs().max()) if mine.numel() else 0.0
            largest = float(mine.double().abs().max()) if mine.numel() else 0.0
            before = gaps.get(name, (0.0, 0.0))
            gaps[name] = max(before[0], gap), max(before[1], largest)
    for name, (gap, largest) in gaps.items():
        # Pasted into a box of few pixels, the 28 x 28 of a mask enlarge what rounding does to the corners of the box.
        if gap > tolerance * max(largest, 1e-6) * (10 if name == "masks" else 1):
            raise ExportError(
                f"{name} of the file differ by {gap:.2g} from the model's, the largest being {largest:.2g}"
            )
    return Difference(outputs=tuple(gaps.values()), samples=samples)


def _image(size: Sequence[int], number: int) -> Tensor:
    """Coloured noise in blocks, in which an untrained detector finds something, too."""
    draws = generator("detector file", number)
    blocks = torch.rand(1, 3, 5, 7, generator=draws)
    return torch.nn.functional.interpolate(blocks, tuple(size[1:]), mode="nearest")[0]
