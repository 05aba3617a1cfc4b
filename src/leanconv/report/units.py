"""How numbers are written: three or four figures and a unit prefix, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

__all__ = ["NONE", "binary", "decimals", "fixed", "percent", "percent_interval", "ratio", "scientific", "si"]

NONE = "-"
"""What stands in a table where there is no number."""

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def si(value: float | None, digits: int = 2) -> str:
    """`value` with an SI prefix; below 1000 whole numbers stay whole.

    >>> si(25_557_032), si(4_089_184_256), si(999), si(999_999)
    ('25.56 M', '4.09 G', '999', '1.00 M')
    """
    return _scaled(value, 1000, _PREFIXES, digits)


def binary(value: float | None) -> str:
    """A number of bytes with a binary prefix.

    >>> binary(512), binary(44_763_139)
    ('512 B', '42.7 MiB')
    """
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"), 1)


def _scaled(value: float | None, base: int, prefixes: tuple[str, ...], digits: int) -> str:
    if value is None or not isfinite(value):
        return NONE
    power = 0
    # Rounded first: 999,999 is 1.00 M, not 1000.00 k.
    while power + 1 < len(prefixes) and round(abs(value) / base**power, digits if power else 0) >= base:
        power += 1
    whole = power == 0 and float(value).is_integer()
    number = f"{value / base**power:.{0 if whole else digits}f}"
    return f"{number} {prefixes[power]}".rstrip()


def percent(value: float | None, digits: int = 2) -> str:
    """A fraction in percent, without the sign, which stands in the header: 0.9617 is '96.17'."""
    return NONE if value is None or not isfinite(value) else f"{100 * value:.{digits}f}"


def percent_interval(low: float | None, high: float | None) -> str:
    """An interval of a fraction, in percent: '90.1-94.2'.

    >>> percent_interval(0.9013, 0.942), percent_interval(None, None)
    ('90.1-94.2', '-')
    """
    return NONE if low is None or high is None else f"{percent(low, 1)}-{percent(high, 1)}"


def ratio(value: float | None, base: float | None = 1.0) -> str:
    """`value / base`, such as '0.34', for a column headed x."""
    if value is None or not base or not isfinite(value / base):
        return NONE
    return f"{value / base:.2f}"


def scientific(value: float | None) -> str:
    """A small difference: '3.8e-05'; an exact one is '0'."""
    return NONE if value is None else "0" if value == 0 else f"{value:.1e}"


def decimals(values: Iterable[float | None]) -> int:
    """How many decimals give the smallest positive of `values` three figures, at most 3: for a column that lines up."""
    positive = [value for value in values if value is not None and value > 0]
    smallest = min(positive, default=1.0)
    return 0 if smallest >= 100 else 1 if smallest >= 10 else 2 if smallest >= 1 else 3


def fixed(value: float | None, digits: int) -> str:
    """`value` with `digits` decimals."""
    return NONE if value is None else f"{value:.{digits}f}"
