"""The rows of the five papers, as `manifest.toml` has them, and what stands behind each in leanconv.

A `[[place]]` is a table, a figure or a section of a paper. Each of its rows names one of

    recipe     a recipe of leanconv; `options` are changes to its network, `size` another input than its own, `width`
               and `resolution` a configuration of an elastic one
    network    a network of the zoo with `options` and `size`, where the paper prints counts alone
    tested     tests that hold what the row prints, file::test, where no network stands behind it
    absent     the reason why leanconv will not have it
    open       what is not there yet

`printed` holds the figures as the paper prints them. Those of them that are counts ("4.1 G", params, weights, macs,
interactions) must be what `counted` rounds to, or `differs` says why they are not; `rule` says how an option was chosen
that the paper does not print. Where a printed total holds more than convolutions and linear layers, `beside` has what
else was counted, by kind as `measure(all_operations=True)` does, and `macs` with it must be what is printed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["BESIDE", "COUNTS", "MANIFEST", "PAPERS", "Row", "amount", "nearest", "read_rows"]

MANIFEST = Path(__file__).parent / "manifest.toml"

PAPERS = {
    "octave": "Drop an Octave (octave convolution)",
    "osep": "Optimized Separable Convolution",
    "igc": "Interleaved Group Convolutions",
    "csn": "Video Classification with Channel-Separated Convolutional Networks",
    "mutual": "A Closer Look at Network Resolution (MutualNet)",
}

COUNTS = ("params", "weights", "macs", "interactions")
"""Parameters; those of convolutions and linear layers alone; multiply-adds; channel interactions."""

BESIDE = ("norms", "pools")
"""What some printed totals hold, too: norms and pools, as `measure(all_operations=True)` counts them."""

_KINDS = ("recipe", "network", "tested", "absent", "open")
_UNITS = {"k": 1e3, "M": 1e6, "e8": 1e8, "G": 1e9}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of a table or a curve of a figure; see the head of this file."""

    paper: str
    place: str
    row: str
    recipe: str | None = None
    network: str | None = None
    tested: tuple[str, ...] = ()
    absent: str | None = None
    open: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, ...] | None = None
    width: float | None = None
    resolution: int | None = None
    rule: str | None = None
    printed: Mapping[str, str] = field(default_factory=dict)
    counted: Mapping[str, int] = field(default_factory=dict)
    beside: Mapping[str, int] = field(default_factory=dict)
    differs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = [kind for kind in _KINDS if getattr(self, kind)]
        if len(given) != 1:
            raise ValueError(f"{self}: a row names one of {', '.join(_KINDS)}, got {', '.join(given) or 'none'}")
        if self.paper not in PAPERS:
            raise ValueError(f"{self}: unknown paper {self.paper!r}")
        for name, keys in (("counted", self.counted), ("differs", self.differs)):
            if wrong := set(keys) - set(COUNTS):
                raise ValueError(f"{self}: {name} has {', '.join(sorted(wrong))}, expected {', '.join(COUNTS)}")
        if wrong := set(self.beside) - set(BESIDE):
            raise ValueError(f"{self}: beside has {', '.join(sorted(wrong))}, expected {', '.join(BESIDE)}")
        if self.present and (missing := set(COUNTS) & self.printed.keys() - self.counted.keys()):
            raise ValueError(f"{self}: {', '.join(sorted(missing))} is printed and not counted")

    @property
    def present(self) -> bool:
        """Whether a network of leanconv stands behind it."""
        return self.recipe is not None or self.network is not None

    @property
    def total(self) -> int:
        """`macs` and what was counted beside them."""
        return self.counted["macs"] + sum(self.beside.values())

    def fits(self, name: str) -> bool:
        """Whether a count, rounded, is what is printed; of `macs` also with what was counted beside them."""
        counts = [self.counted[name], *([self.total] if name == "macs" and self.beside else [])]
        return any(nearest(count, self.printed[name]) for count in counts)

    def __str__(self) -> str:
        return f"{self.paper}, {self.place}, {self.row}"


def read_rows(text: str | None = None) -> list[Row]:
    """Every row of the manifest (or of `text`), in order. `ValueError` names a row that says too little or too much."""
    rows = []
    for place in tomllib.loads(MANIFEST.read_text() if text is None else text)["place"]:
        shared = {key: place[key] for key in place.keys() - {"rows", "at"}}
        for own in place["rows"]:
            values = {**shared, **own, "place": place["at"]}
            tested = values.get("tested", ())
            values["tested"] = (tested,) if isinstance(tested, str) else tuple(tested)
            if "size" in values:
                values["size"] = tuple(values["size"])
            try:
                rows.append(Row(**values))
            except TypeError as error:
                raise ValueError(f"{values['paper']}, {values['place']}, {own.get('row')}: {error}") from error
    return rows


def amount(text: str) -> tuple[float, float]:
    """A printed count and the half of its last digit.

    >>> amount("4.1 G")
    (4100000000.0, 50000000.0)
    """
    number, _, unit = text.partition(" ")
    scale = _UNITS[unit] if unit else 1.0
    digits = len(number.partition(".")[2])
    return float(number) * scale, 0.5 * scale / 10**digits


def nearest(counted: int, printed: str) -> bool:
    """Whether `counted`, rounded, is what is printed."""
    value, half = amount(printed)
    return abs(counted - value) <= half * (1 + 1e-9)
