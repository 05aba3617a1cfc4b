"""Octave convolution in any network: `Octave` is the step.

step    the options; decide, follow, then replace layers in place
plan    which convolutions emit two resolutions, from who reads whom in a dry run
flows   what every layer then reads, from a second run with such maps
convs   octave convolutions and norms with the dense network's weights
chains  where convolutions are chains: composed before, chains again afterwards
"""

from __future__ import annotations

from leanconv.rewrites.octave.step import Octave

__all__ = ["Octave"]
