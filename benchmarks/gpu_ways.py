"""The networks that `gpu.py` measures, and the ways to run each."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["FAMILIES", "Setting", "Way", "inputs_of", "ways"]

FAMILIES: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "resnet20": {
        "resnet20": ("resnet20", {}),
        "o_resnet20": ("o_resnet20", {"multiplier": 3.625}),
        "d_resnet20": ("d_resnet20", {"multiplier": 2.75}),
    },
    "resnet3d_50": {
        "resnet3d_50": ("resnet3d_50", {"num_classes": 400}),
        "ir_csn_50": ("ir_csn_50", {"num_classes": 400}),
        "ip_csn_50": ("ip_csn_50", {"num_classes": 400}),
    },
    "regconv_w18": {
        "regconv_w18": ("regconv_w18", {}),
        "igc_l24m2": ("igc_l24m2", {}),
        "igc_l4m8": ("igc_l4m8", {}),
    },
    "resnet50": {
        "resnet50": ("torchvision/resnet50", {}),
        "oct_resnet50 .5": ("oct_resnet50", {"alpha": 0.5}),
        "oct_resnet50 .25": ("oct_resnet50", {"alpha": 0.25}),
    },
}
"""The first of a family is the dense network that the others are measured against."""
BATCHES = {"resnet20": 1024, "regconv_w18": 1024, "resnet50": 128, "resnet3d_50": 16}


class Way(NamedTuple):
    """One way to run a network: `form` None is the network as it is."""

    mode: str
    form: str | None
    multiple: int
    compiled: bool

    @property
    def label(self) -> str:
        """For tables: eager, compiled, composed x8 compiled."""
        words = [] if self.form is None else [self.form] + ([f"x{self.multiple}"] if self.multiple > 1 else [])
        return " ".join([*words, "compiled" if self.compiled else "eager"])


def ways(name: str) -> list[Way]:
    """The ways of a network, what is most likely to win first."""
    chains, separated, channelwise = name.startswith(("o_", "igc")), name.startswith("d_"), "csn" in name
    octave = name.startswith("oct")
    narrow = chains or separated or name == "regconv_w18"  # channels that are no multiple of 8
    multiple = 8 if narrow else 1
    if chains:
        found = [
            Way("infer", "composed", 8, True),
            Way("infer", "fused", 8, False),
            Way("infer", "kernel", 8, False),
            Way("train", "composed", 8, True),
            Way("train", "composed", 8, False),
            Way("infer", "kernel", 8, True),
        ]
    else:
        found = [Way("infer", "stages", multiple, True), Way("infer", "fused", multiple, False)]
        # Compiled training of channelwise 3D convolutions runs ten times slower, by the gradient of their weights.
        found += [] if channelwise else [Way("train", None, 1, True)]
    if octave:
        found += [Way("infer", "kernel", 1, True)]
    if channelwise:
        found += [Way("train", "kernel", 1, True), Way("infer", "fused", 1, True), Way("train", "kernel", 1, False)]
    if separated:
        found += [Way("infer", "kernel", 8, False), Way("train", "kernel", 8, True), Way("infer", "kernel", 8, True)]
    found += [Way("infer", "fused", 1, True)] if octave else []
    found += [Way("infer", None, 1, False), Way("train", None, 1, False)]
    if narrow and not chains:
        found += [Way("train", "stages", 8, True)]
    if not (channelwise or octave):
        found += [Way("infer", "fused", multiple, True)]
    return [*found, Way("infer", None, 1, True)]


class Setting(NamedTuple):
    """What every process is told."""

    rehearse: bool
    deadline: float
    only: tuple[str, ...] = ()


def inputs_of(family: str, rehearse: bool) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """The size of one input, that for proofs, and the batch."""
    if family in ("resnet20", "regconv_w18"):
        return (3, 32, 32), (3, 32, 32), 4 if rehearse else BATCHES[family]
    if family == "resnet50":
        return ((3, 64, 64) if rehearse else (3, 224, 224)), (3, 64, 64), 2 if rehearse else BATCHES[family]
    return ((3, 8, 32, 32) if rehearse else (3, 8, 224, 224)), (3, 8, 64, 64), 2 if rehearse else BATCHES[family]
